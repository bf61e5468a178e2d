"""True and false statements: the sets of Geometry of Truth (Marks and Tegmark, arXiv 2310.06824; extended by Truth is
Universal, 2407.12831) and SAPLMA (Azaria and Mitchell, 2304.13734).

1. Files of one family are one source: affirmations, their negations, conjunctions of both.
2. A statement's group is its entity, or its first words without a negation: a fact, its negation and its variants.
   A conjunction ties the groups of its two statements into one; those that would tie too many are left out.
3. A statement found in two families stays in the first. One that is called both true and false stays in none.
4. Within each source, equally many are true and false among the affirmed, the negated and the joined: or negation
   would tell the label, as it does in the probe that this set is to prevent.
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from probes.data.examples import Example
from probes.data.sources._families import FAMILIES, NEGATION, Family, Statement
from probes.data.sources._files import Files, exchange, is_yes, normalised, user
from probes.models.chat import Message

_TIED: Final = 4
"""Groups that conjunctions may tie into one: without a limit they tie nearly all, with less few of them remain."""

_AUXILIARY: Final = re.compile(r"\b(?:do|does|did)(?: not|n['’]t)\b", re.IGNORECASE)
_SMALL: Final = re.compile(
    r"a|an|and|are|as|at|be|been|both|by|can|could|did|do|does|for|from|had|has|have|in|into|is|it|its|no|of|on|only|"
    r"our|s|that|the|their|there|to|was|were|which|who|will|with|would"
)
"""Words that say little about what a statement is about."""

_UNKNOWABLE: Final = re.compile(r"has a population of approximately|has the atomic number of (?!\d)")
"""Statements left out: populations to the last digit, which no model knows, and the atomic number of animals."""

_ANIMAL: Final = r"^the (.+?) is (?:not )?an? "
_BOTH: Final = re.compile(r"It is the case both that (.+?) and that (.+?)\.?$")


def false_statement(files: Files) -> list[Example]:
    """Statements, alternately as a user's message, an assistant's answer and a bare text; the false are positive."""
    said: Counter[tuple[str, bool, bool, bool]] = Counter()
    numbers: Counter[str] = Counter()
    examples: list[Example] = []
    for statement in statements(files):
        kind = (statement.source, statement.true, statement.negated, statement.joined)
        tags = ["negated"] * statement.negated + ["conjunction"] * statement.joined
        examples.append(
            Example(
                f"{statement.source}:{numbers[statement.source]}",
                statement.source,
                f"{statement.source}:{statement.group}",
                statement.topic,
                not statement.true,
                _messages(statement.text, said[kind]),
                tags,
            )
        )
        said[kind] += 1
        numbers[statement.source] += 1
    return examples


_REQUESTS: Final = (
    "Tell me something I could look up.", "Say one thing about the world.", "What comes to mind?", "Go on.",
    "Give me one sentence for my quiz.", "Write a line for the notice board.", "What else is there?",
    "One more, please.", "Let's hear it.", "And the next one?", "What should I write down?", "Name a piece of trivia.",
)  # fmt: skip


def _messages(text: str, number: int) -> list[Message]:
    form, turn = number % 3, number // 3
    if form == 0:
        return user(text)
    return exchange(_REQUESTS[turn % len(_REQUESTS)], text) if form == 1 else [Message("text", text)]


def statements(files: Files) -> list[Statement]:
    """All statements, deduplicated and balanced, family by family."""
    found = [statement for family in FAMILIES for statement in _family(files, family)]
    verdicts: defaultdict[str, set[bool]] = defaultdict(set)
    for statement in found:
        verdicts[normalised(statement.text)].add(statement.true)
    kept: dict[str, Statement] = {}
    for statement in found:
        text = normalised(statement.text)
        if len(verdicts[text]) == 1 and not _UNKNOWABLE.search(statement.text):
            kept.setdefault(text, statement)
    return _balanced(list(kept.values()))


def _family(files: Files, family: Family) -> Iterator[Statement]:
    groups: dict[str, str] = {}
    simple: list[Statement] = []
    group = ""
    for name in family.simple:
        for number, row in enumerate(files.table(family.folder, f"{name}.csv", ["statement", "label"], "label")):
            text = " ".join(row["statement"].split())
            known = normalised(text)
            if known in groups:
                group = groups[known]
            elif family.source == "saplma_generated":
                # Continuations that a model wrote: each seed, "X is located in Y", begins a run on the same names.
                group = f"{number}" if not group or " is located in " in text else group
            elif not (NEGATION.search(text) and name.startswith("neg_") and not family.entity):
                group = about(text, family.entity)
            # Otherwise it negates the line before it, in words that need not be the same.
            groups[known] = group
            simple.append(Statement(text, is_yes(row["label"]), family.source, family.topic, group))
    joined, tied = _joined(files, family, {_bare(statement.text): statement.group for statement in simple})
    for statement in [*simple, *joined]:
        yield replace(statement, group=tied.get(statement.group, statement.group))


def about(text: str, entity: str = "") -> str:
    """The topic of a statement: the same for its negation and its variants."""
    text = text.removeprefix("It's not true that ")
    match = re.search(entity, text, re.IGNORECASE) if entity else None
    if match:
        return " ".join(sorted(normalised(part) for part in match.groups() if part))
    return " ".join(_bare(text).split()[:2])


def _bare(text: str) -> str:
    """The words that carry a statement, without negation and endings."""
    text = _AUXILIARY.sub("", text.lower().replace("’", "'")).replace("can't", "can").replace("cannot", "can")
    words = re.findall(r"\w+", NEGATION.sub("", text).replace("'s", ""))
    # "protects" and "doesn't protect" are one verb.
    return " ".join(re.sub(r"(?<=...)(?:es|ed|s|e)$", "", word) for word in words if not _SMALL.fullmatch(word))


def _joined(files: Files, family: Family, groups: dict[str, str]) -> tuple[list[Statement], dict[str, str]]:
    """Conjunctions of known statements, and which groups they tie to which.

    Args:
        files: The sets.
        family: Whose conjunctions are read.
        groups: The statements of the family, bare, and their groups.
    """
    rows = files.table(family.folder, f"{family.joined}.csv", ["statement", "label"], "label") if family.joined else []
    tied: dict[str, str] = {}
    members: defaultdict[str, list[str]] = defaultdict(list)
    kept: list[Statement] = []
    # The true ones first: they are few, and each that is lost costs a false one.
    for row in sorted(rows, key=lambda row: not is_yes(row["label"])):
        parts = _parts(" ".join(row["statement"].split()), groups)
        if parts is None:
            continue
        first, second = (tied.get(part, part) for part in parts)
        for group in (first, second):
            members[group] = members[group] or [group]
        if first != second:
            if len(members[first]) + len(members[second]) > _TIED:
                continue
            members[first] += members[second]
            tied |= dict.fromkeys(members[second], first)
        text = " ".join(row["statement"].split())
        kept.append(Statement(text, is_yes(row["label"]), family.source, family.topic, first, joined=True))
    return kept, tied


def _parts(text: str, groups: dict[str, str]) -> tuple[str, str] | None:
    """The groups of the two statements that a conjunction joins; a statement may hold an "and" of its own."""
    match = _BOTH.match(text)
    if match:
        halves = [match.groups()]
    else:
        halves = [(text[: cut.start()], text[cut.end() :]) for cut in re.finditer(", and ", text)]
    for first, second in halves:
        if _bare(first) in groups and _bare(second) in groups:
            return groups[_bare(first)], groups[_bare(second)]
        if match:
            # Classes that the affirmations do not state: the animal is enough.
            return about(first, _ANIMAL), about(second, _ANIMAL)
    return None


def _balanced(found: list[Statement]) -> list[Statement]:
    """Equally many true and false of each source and polarity; which are left out depends on their text alone."""
    kinds: defaultdict[tuple[str, bool, bool], dict[bool, list[Statement]]] = defaultdict(lambda: {True: [], False: []})
    for statement in found:
        kinds[statement.source, statement.negated, statement.joined][statement.true].append(statement)
    kept: set[str] = set()
    for sides in kinds.values():
        count = min(len(side) for side in sides.values())
        for side in sides.values():
            kept.update(statement.text for statement in sorted(side, key=_shuffled)[:count])
    return [statement for statement in found if statement.text in kept]


def _shuffled(statement: Statement) -> int:
    return zlib.crc32(statement.text.encode())
