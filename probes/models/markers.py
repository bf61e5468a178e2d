r"""The markers of a chat template: what it writes around messages, found by rendering conversations of known words.

1. Conversations are rendered in which each content is a word of its own. The tokens between two contents are the
   template's: a terminator, what stands between messages, and the next header.
2. A role's header is what all its occurrences share, from the end. Where headers name their role, as in
   ``<|im_start|>user\n``, two made-up names show the form, and the header is the last stretch of that form.
3. Roles beyond system, user and assistant are asked for, too: results of tools, ``developer``, and names that no
   template knows. What a template refuses or leaves out has no header, and needs none.
4. What stands between a terminator and a header, and before the first header, is the template's own. Nothing else is:
   tokens outside of messages that were not found so are read as the user's (:mod:`probes.scoring.roles`).
5. Markers of thoughts are what is written around ``reasoning_content``, or else the pairs of the tokenizer's vocabulary
   that models in use think between.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from probes.errors import ModelError, reason
from probes.scoring.roles import AnyHeader, Markers, Role, Thought

_CONTENT: Final = {"system": "Zebras", "user": "Walnut", "assistant": "Copper"}
"""Words that stand for contents; whatever surrounds them is the template's."""
_OTHER: Final = "Velvet"
"""The content of any further role."""
_THOUGHT: Final = "Quartz"
"""Stands for a thought."""

_TURNS: Final = ("user", "assistant", "user")
_TURNS_AFTER_SYSTEM: Final = ("system", "user", "assistant", "user", "assistant")
"""Sequences of roles that show every marker: at the beginning, after a system message, and between turns."""
_NAMES: Final = ("critic", "oracle")
"""Roles that no template knows."""
_ASKED: Final = ("tool", "developer", *_NAMES)
"""Roles that are asked for beside system, user and assistant."""
_CALL: Final = {"id": "abcdefgh1", "type": "function", "function": {"name": "look", "arguments": {}}}
"""A call of a tool, which some templates want to see before its result."""
_THINKING: Final = ("reasoning_content", "reasoning", "thinking")
"""Keys under which templates take the thoughts of a message."""
_PAIRS: Final = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))
"""Markers that models in use think between."""


@dataclass(frozen=True, slots=True)
class _Gap:
    """The template's tokens before a content, and the token after it."""

    role: str
    before: list[int]
    after: int | None
    first: bool
    """Nothing was said before it."""


def find_markers(tokenizer: Any) -> Markers:
    """The tokens that the chat template writes before, between and after messages.

    Args:
        tokenizer: Of transformers.

    Returns:
        The markers; empty where the model has no chat template.

    Raises:
        ModelError: The template does not render a conversation of user and assistant.
    """
    if not tokenizer.chat_template:
        return Markers()
    form = _form(tokenizer)
    found = _gaps(tokenizer, _messages(_TURNS))
    headers = _headers(found, form)
    try:
        with_system = [*found, *_gaps(tokenizer, _messages(_TURNS_AFTER_SYSTEM))]
    except ModelError:
        with_system = found
    # Where a template writes the system message into the user's turn, its tokens are the user's.
    if _headers(with_system, form).items() >= headers.items():
        found, headers = with_system, _headers(with_system, form)
    terminator = _terminator(tokenizer, found, headers)
    headers = {role: _alone(tokenizer, header, terminator) for role, header in headers.items()}
    # What begins every prompt, a text without messages among them, is no part of a header.
    for begin in [gap.before[: -len(headers["user"])] for gap in found if gap.first and gap.role == "user"]:
        headers = {role: _without(header, begin) for role, header in headers.items()}
    others: list[list[int]] = []
    for role in _ASKED:
        gaps = [gap.before for gap in _asked(tokenizer, role)]
        shared = _common_suffix(gaps) if gaps else []
        named = _named(shared, form)
        header = named if named and shared[-len(named) :] == named else _from_special(tokenizer, shared)
        if header and header not in others and not _is_the_answers(tokenizer, header, headers):
            others.append(header)
    known = [header for header in (*headers.values(), *others) if header]
    return Markers(
        headers={role: header for role, header in headers.items() if header and role.upper() in Role.__members__},
        terminator=terminator,
        others=[header for header in others if not _has_form(header, form)],
        any_header=form,
        between=_between(tokenizer, found, known, terminator),
        thoughts=_thoughts(tokenizer),
    )


def describe_markers(markers: Markers, decode: Callable[[list[int]], str]) -> Iterator[tuple[str, str]]:
    """Say how roles are told.

    Args:
        markers: Of a chat template.
        decode: Makes text of tokens, special ones included.

    Yields:
        A role, and its markers as text.
    """
    tool = Role.TOOL.name.lower()
    for role, header in markers.headers.items():
        yield role, repr(decode(header))
    for header in markers.others:
        yield tool, repr(decode(header))
    if (form := markers.any_header) is not None:
        yield f"{tool} (any other name)", repr(f"{decode(form.begin)}…{decode(form.end)}")
    for thought in markers.thoughts:
        yield Role.REASONING.name.lower(), f"{decode(thought.begin)!r} to {decode(thought.end)!r}"
    if not markers.headers:
        yield Role.USER.name.lower(), "all of a prompt, since the model has no chat template"


def roles_in_words(directory: Path, markers: Markers) -> str:
    """Describe in one line how roles are told, by the fast tokenizer's file alone.

    Args:
        directory: Of the model.
        markers: Of its chat template.
    """
    file = directory / "tokenizer.json"
    return "; ".join(f"{role} {text}" for role, text in describe_markers(markers, _decoder(file)))


def _decoder(file: Path) -> Callable[[list[int]], str]:
    """Return a decoder of tokens; without a file, it shows their numbers."""
    if not file.is_file():
        return str
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


def _messages(roles: Sequence[str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": _CONTENT.get(role, _OTHER)} for role in roles]


def _render(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[int], list[tuple[int, int]]]:
    """A conversation as text, as tokens, and the characters of each token.

    Raises:
        ModelError: The template does not render it.
    """
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except Exception as error:
        # Templates refuse roles they do not know with errors of their own (jinja2.TemplateError among them).
        raise ModelError(f"The chat template of {tokenizer.name_or_path} cannot be used: {reason(error)}.") from error
    return text, encoded["input_ids"], encoded["offset_mapping"]


def _gaps(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[_Gap]:
    """For each content that has text: the tokens between the content before it and itself, and the token after it.

    Raises:
        ModelError: The template does not render the conversation, or does not write a content as it is.
    """
    text, ids, offsets = _render(tokenizer, messages)
    found: list[_Gap] = []
    searched, previous = 0, 0
    for message in messages:
        role, content = str(message["role"]), str(message["content"] or "")
        if not content:
            continue
        begin = text.find(content, searched)
        if begin < 0:
            raise ModelError(
                f"The chat template of {tokenizer.name_or_path} does not write {role} messages as they are."
            )
        searched = end = begin + len(content)
        inside = [index for index, (left, right) in enumerate(offsets) if left < end and right > begin]
        after = ids[inside[-1] + 1] if inside[-1] + 1 < len(ids) else None
        found.append(_Gap(role, ids[previous : inside[0]], after, first=not found))
        previous = inside[-1] + 1
    return found


def _form(tokenizer: Any) -> AnyHeader | None:
    """The form of headers that name their role, as made-up names show it."""
    shown: list[list[int]] = []
    for name in _NAMES:
        for before in (["user"], ["user", "assistant"]):
            try:
                shown.append(_gaps(tokenizer, _messages([*before, name]))[-1].before)
                break
            except ModelError:
                continue
    if len(shown) < len(_NAMES):
        return None
    names = [tokenizer.encode(name, add_special_tokens=False) for name in _NAMES]
    parts: list[tuple[list[int], list[int]]] = []
    for gap, name in zip(shown, names, strict=True):
        at = [i for i in range(len(gap)) if gap[i : i + len(name)] == name]
        if not at:
            return None
        parts.append((gap[: at[-1]], gap[at[-1] + len(name) :]))
    end = parts[0][1]
    begin = _common_suffix([before for before, _ in parts])
    special = _special(tokenizer)
    # From the last special token on: what is before it closes the message before.
    opening = max((i for i, token in enumerate(begin) if token in special), default=len(begin))
    begin = begin[opening:]
    if end != parts[1][1] or not begin or not end:
        return None
    return AnyHeader(begin, end)


def _named(gap: Sequence[int], form: AnyHeader | None) -> list[int]:
    """The last header of the form in a gap; empty where there is none."""
    if form is None:
        return []
    width = len(form.begin)
    for at in range(len(gap) - width, -1, -1):
        if list(gap[at : at + width]) == form.begin:
            for end in range(at + width + 1, len(gap) - len(form.end) + 1):
                if list(gap[end : end + len(form.end)]) == form.end:
                    return list(gap[at : end + len(form.end)])
            return []
    return []


def _has_form(header: Sequence[int], form: AnyHeader | None) -> bool:
    return bool(_named(header, form)) and _named(header, form) == list(header)


def _headers(found: Iterable[_Gap], form: AnyHeader | None) -> dict[str, list[int]]:
    before: dict[str, list[list[int]]] = {}
    for gap in found:
        before.setdefault(gap.role, []).append(gap.before)
    headers: dict[str, list[int]] = {}
    for role, gaps in before.items():
        named = [_named(gap, form) for gap in gaps]
        same = all(header == named[0] for header in named)
        headers[role] = named[0] if same and named[0] else _common_suffix(gaps)
    return headers


def _terminator(tokenizer: Any, found: Sequence[_Gap], headers: Mapping[str, list[int]]) -> list[int]:
    special = set(tokenizer.all_special_ids)
    # Of messages that end differently, the answers': what they have is what a model ends with.
    for roles in (set(_CONTENT), {"assistant"}):
        ends = {gap.after for gap in found if gap.role in roles and gap.after is not None and gap.after in special}
        if len(ends) > 1:
            # A header that follows a content at once ends it, too.
            ends -= {header[0] for header in headers.values() if header}
        if len(ends) == 1:
            return [ends.pop()]
    return []


def _asked(tokenizer: Any, role: str) -> Iterator[_Gap]:
    """Gaps before the contents of a role, in conversations of the kinds that templates take."""
    result = {"role": role, "content": _OTHER, "name": "look", "tool_call_id": _CALL["id"]}
    user, answer = _messages(["user", "assistant"])
    conversations = [
        [user, answer, result, answer],
        [user, {"role": "assistant", "content": None, "tool_calls": [_CALL]}, result, answer],
        [user, {"role": "assistant", "content": "", "tool_calls": [_CALL]}, result, {**result}, answer],
        [user, result],
        [result, user],
    ]
    for messages in conversations:
        try:
            yield from (gap for gap in _gaps(tokenizer, messages) if gap.role == role)
        except ModelError:
            continue


def _behind(gap: Sequence[int], terminator: Sequence[int]) -> list[int]:
    """Cut a gap to what is behind its last terminator."""
    width = len(terminator)
    for at in range(len(gap) - width, -1, -1):
        if width and list(gap[at : at + width]) == list(terminator):
            return list(gap[at + width :])
    return list(gap)


def _alone(tokenizer: Any, header: Sequence[int], terminator: Sequence[int]) -> list[int]:
    """A header without what ends the message before it, and without what stands between the two."""
    rest = _behind(header, terminator)
    return rest if len(rest) == len(header) else _from_special(tokenizer, rest)


def _without(header: list[int], begin: list[int]) -> list[int]:
    return header[len(begin) :] if begin and header[: len(begin)] == begin else header


def _from_special(tokenizer: Any, tokens: Sequence[int]) -> list[int]:
    """Tokens from the first special one on; all where there is none."""
    special = _special(tokenizer)
    return list(tokens[next((i for i, token in enumerate(tokens) if token in special), 0) :])


def _is_the_answers(tokenizer: Any, header: list[int], headers: Mapping[str, list[int]]) -> bool:
    """A template that has no other way to write it writes it as it does an answer, or as one of the three roles."""
    answer = headers.get("assistant") or []
    beyond = header[len(answer) :] if answer and header[: len(answer)] == answer else None
    return header in headers.values() or (beyond is not None and not tokenizer.decode(beyond).strip())


def _special(tokenizer: Any) -> set[int]:
    return set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))


def _between(
    tokenizer: Any, found: Sequence[_Gap], headers: Sequence[list[int]], terminator: Sequence[int]
) -> list[list[int]]:
    """Collect the sequences before the first header, between a terminator and a header, and at the end."""
    pieces: list[list[int]] = []
    for gap in found:
        begin = [] if gap.first else [i + len(terminator) for i in _positions(gap.before, terminator)][:1]
        rest = gap.before if gap.first else gap.before[begin[0] :] if begin else []
        ends = [at for header in headers for at in _positions(rest, header)]
        pieces.append(list(rest[: min(ends)]) if ends else [])
    text, ids, offsets = _render(tokenizer, _messages(("user", "assistant")))
    last = text.rfind(_CONTENT["assistant"]) + len(_CONTENT["assistant"])
    pieces.append(_behind([token for token, (left, _) in zip(ids, offsets, strict=True) if left >= last], terminator))
    unique: list[list[int]] = []
    for piece in pieces:
        if piece and piece not in unique:
            unique.append(piece)
    return unique


def _positions(sequence: Sequence[int], pattern: Sequence[int]) -> list[int]:
    width = len(pattern)
    return [i for i in range(len(sequence) - width + 1) if width and list(sequence[i : i + width]) == list(pattern)]


def _thoughts(tokenizer: Any) -> list[Thought]:
    found: list[Thought] = []
    added = {str(token): number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    for begin, end in _PAIRS:
        if begin in added and end in added:
            found.append(Thought([added[begin]], [added[end]]))
        elif begin in str(tokenizer.chat_template) and end in str(tokenizer.chat_template):
            found.append(Thought(*(tokenizer.encode(text, add_special_tokens=False) for text in (begin, end))))
    for key in _THINKING:
        thought = _rendered_thought(tokenizer, key)
        if thought is not None and not any(_positions(thought.begin, other.begin) for other in found):
            found.append(thought)
    return found


def _rendered_thought(tokenizer: Any, key: str) -> Thought | None:
    """Markers around a thought that the template takes as part of a message."""
    user, answer = _messages(["user", "assistant"])
    try:
        text, ids, offsets = _render(tokenizer, [user, {**answer, key: _THOUGHT}])
    except ModelError:
        return None
    at, said = text.find(_THOUGHT), text.find(_CONTENT["assistant"])
    if at < 0 or said < at:
        return None
    special = _special(tokenizer)
    before = [token for token, (_, right) in zip(ids, offsets, strict=True) if right <= at]
    after = [
        token for token, (left, right) in zip(ids, offsets, strict=True) if left >= at + len(_THOUGHT) and right <= said
    ]
    begins, ends = [t for t in before if t in special], [t for t in after if t in special]
    return Thought([begins[-1]], [ends[0]]) if begins and ends else None


def _common_suffix(sequences: list[list[int]]) -> list[int]:
    width = 0
    shortest = min(len(sequence) for sequence in sequences)
    while width < shortest and len({sequence[-width - 1] for sequence in sequences}) == 1:
        width += 1
    return sequences[0][len(sequences[0]) - width :] if width else []
