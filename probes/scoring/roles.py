r"""Roles: the author of every token of a conversation, from the chat template's own markers.

A chat template writes fixed token sequences before, after and between messages (``<|im_start|>user\n`` …
``<|im_end|>\n``). A bundle stores those sequences, found by rendering the template, and the engine walks a prompt with
them:

1. After a header of role R, tokens are R until the terminator or the next header. The header and the terminator
   themselves are ``TEMPLATE``.
2. Outside of messages, what the template is known to write is ``TEMPLATE``; every other token is ``USER``: one whose
   role cannot be told is read as the least trusted.
3. Content under any other header of the template's form, and results of tools, are ``TOOL``: the probes of the user's
   tokens read them.
4. ``SYSTEM`` counts only before the first turn of a user or a tool: text that spoofs a system header later would
   otherwise hide from the probes of the user's tokens. Of a prompt into which a user typed markers, everything behind
   the first header of the user is ``USER``.
5. Thoughts are ``REASONING``: within an answer, from the token that completes a marker of their beginning to the one
   that completes a marker of their end. Generated tokens are walked alike (:class:`RoleWalk`).
6. A prompt without any header, of a model whose template writes them, is ``TEXT``, and so is what is generated after
   it. Where the model has no chat template, it is the user's: ``USER``.

Token ids never leave the engine; one byte of role a row does.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray


class Role(IntEnum):
    """The author of a token."""

    TEMPLATE = 0
    """Markers that the chat template adds."""
    SYSTEM = 1
    USER = 2
    ASSISTANT = 3
    TOOL = 4
    """Results of tools, and messages of roles that are none of the others."""
    REASONING = 5
    """Thinking that the model's user is not shown."""
    TEXT = 6
    """A text without the chat template's markers, and what the model adds to it."""


KEPT: Final = (Role.USER, Role.ASSISTANT)
"""Roles whose states are kept to fit on: those that concepts may read."""
CONTENT: Final = (Role.USER, Role.ASSISTANT, Role.TOOL, Role.REASONING, Role.TEXT)
"""Roles whose tokens are counted as unread where no probe reads them. The system's are the operator's own."""
NAME_TOKENS: Final = 16
"""Tokens that the name of a role may have in a header."""


class Thought(msgspec.Struct, frozen=True):
    """The tokens around a thought."""

    begin: list[int]
    end: list[int]


class AnyHeader(msgspec.Struct, frozen=True):
    """The form of a header that names its role: ``begin``, the name, ``end``."""

    begin: list[int]
    end: list[int]


class Markers(msgspec.Struct, frozen=True):
    """The token sequences that a chat template writes around messages."""

    headers: dict[str, list[int]] = {}
    """Role name (lower case) to the tokens before its content; empty where the model has no chat template."""
    terminator: list[int] = []
    """The tokens that end a message."""
    others: list[list[int]] = []
    """Headers of further roles, whose content is ``TOOL``."""
    any_header: AnyHeader | None = None
    """The form of headers of roles that were not asked about; ``None``: they have none."""
    between: list[list[int]] = []
    """What the template writes outside of messages: at the beginning, and between a terminator and the next header."""
    thoughts: list[Thought] = []
    """Markers of reasoning, within an answer."""


class RoleWalk:
    """Assigns roles to the generated tokens of one request, one after the other.

    Args:
        thoughts: Markers of reasoning.
        role: Of the next token, if nothing changes: ``ASSISTANT``, ``REASONING`` or ``TEXT``.
    """

    def __init__(self, thoughts: Sequence[Thought], role: Role) -> None:
        self._begins = [tuple(thought.begin) for thought in thoughts if thought.begin]
        self._ends = [tuple(thought.end) for thought in thoughts if thought.end]
        self._keep = max((len(marker) for marker in (*self._begins, *self._ends)), default=0)
        self.role = role
        """Of the next token, if nothing changes."""
        self._last: list[int] = []

    def next(self, token_id: int) -> Role:
        """The role of the next token."""
        if not self._keep or self.role is Role.TEXT:
            return self.role
        self._last = [*self._last, token_id][-self._keep :]
        if self.role is Role.ASSISTANT and self._completes(self._begins):
            self.role = Role.REASONING
        elif self.role is Role.REASONING and self._completes(self._ends):
            # The marker of the end is still part of the thought.
            self.role = Role.ASSISTANT
            return Role.REASONING
        return self.role

    def _completes(self, markers: Sequence[tuple[int, ...]]) -> bool:
        return any(tuple(self._last[-len(marker) :]) == marker for marker in markers)


class RoleReader:
    """Assigns roles to the tokens of one request, prompt first, then each generated token.

    Args:
        markers: The markers of the model's chat template.
    """

    def __init__(self, markers: Markers) -> None:
        self.thoughts = markers.thoughts
        self._headers = [(Role[name.upper()], np.asarray(ids, np.int64)) for name, ids in markers.headers.items()]
        self._headers += [(Role.TOOL, np.asarray(ids, np.int64)) for ids in markers.others]
        self._any = markers.any_header
        self._terminator = np.asarray(markers.terminator, np.int64)
        # The longest first: one may be the beginning of another.
        self._between = sorted((tuple(ids) for ids in markers.between if ids), key=len, reverse=True)

    @property
    def tells_reasoning(self) -> bool:
        """True where generated tokens may have more than one role."""
        return bool(self.thoughts)

    def prompt(self, token_ids: Sequence[int] | NDArray[np.integer], *, typed: bool = False) -> NDArray[np.uint8]:
        """The role of every prompt token.

        Args:
            token_ids: The prompt, shape ``(tokens,)``.
            typed: Markers were typed into its messages, and look like the template's: from the first user's turn on,
                and without one from the first header on, all tokens are ``USER``.

        Returns:
            Roles, ``uint8``, shape ``(tokens,)``.
        """
        ids = np.asarray(token_ids, np.int64)
        starts = self._starts(ids)
        if not starts:
            return np.full(len(ids), Role.TEXT if self._headers and not typed else Role.USER, np.uint8)
        # What cannot be told is the user's.
        roles = np.full(len(ids), Role.USER, np.uint8)
        terminators, width = _find(ids, self._terminator), len(self._terminator)
        user_spoke, outside = False, 0
        for at, begin, role, following in starts:
            self._outside(ids, roles, outside, at)
            roles[at:begin] = Role.TEMPLATE
            stops = terminators[(terminators >= begin) & (terminators < following)]
            end = int(stops[0]) if len(stops) else following
            user_spoke |= role in (Role.USER, Role.TOOL)
            said = Role.USER if role is Role.SYSTEM and user_spoke else role
            roles[begin:end] = said
            if said is Role.ASSISTANT and self.thoughts:
                walk = RoleWalk(self.thoughts, said)
                roles[begin:end] = [walk.next(token) for token in ids[begin:end].tolist()]
            outside = min(end + width, following) if len(stops) else end
            roles[end:outside] = Role.TEMPLATE
        self._outside(ids, roles, outside, len(ids))
        if typed:
            roles[next((begin for _, begin, role, _ in starts if role is Role.USER), starts[0][1]) :] = Role.USER
        return roles

    def walk(self, token_ids: Sequence[int] | NDArray[np.integer]) -> RoleWalk:
        """Follow the tokens that are generated after a prompt.

        Args:
            token_ids: The prompt, shape ``(tokens,)``.
        """
        ids = np.asarray(token_ids, np.int64)
        starts = self._starts(ids)
        if not starts:
            return RoleWalk(self.thoughts, Role.TEXT if self._headers else Role.ASSISTANT)
        _, begin, role, _ = starts[-1]
        walk = RoleWalk(self.thoughts, Role.ASSISTANT)
        if role is Role.ASSISTANT and self.thoughts:
            # Its answer has begun: with a prefill, or with a thought that the template opens.
            for token in ids[begin:].tolist():
                walk.next(token)
        return walk

    def _starts(self, ids: NDArray[np.int64]) -> list[tuple[int, int, Role, int]]:
        """Of each message: its header's start, its content's, its role, and the start of the next header."""
        found = [(int(at), len(header), role) for role, header in self._headers for at in _find(ids, header)]
        if self._any is not None:
            known = {at for at, _, _ in found}
            ends = _find(ids, np.asarray(self._any.end, np.int64))
            for at in _find(ids, np.asarray(self._any.begin, np.int64)).tolist():
                name = at + len(self._any.begin)
                index = int(np.searchsorted(ends, name))
                end = int(ends[index]) if index < len(ends) else name
                if at not in known and name < end <= name + NAME_TOKENS:
                    found.append((at, end + len(self._any.end) - at, Role.TOOL))
        # Longest first at one position: a header may be the beginning of another.
        found.sort(key=lambda start: (start[0], -start[1]))
        kept: list[tuple[int, int, Role]] = []
        for at, length, role in found:
            if not kept or at >= kept[-1][1]:
                kept.append((at, at + length, role))
        following = [*(at for at, _, _ in kept[1:]), len(ids)] if kept else []
        return [(*start, after) for start, after in zip(kept, following, strict=True)]

    def _outside(self, ids: NDArray[np.int64], roles: NDArray[np.uint8], begin: int, end: int) -> None:
        """Mark what the template is known to write between two messages."""
        rest = tuple(ids[begin:end].tolist())
        while known := next((ids for ids in self._between if rest[: len(ids)] == ids), None):
            roles[begin : begin + len(known)] = Role.TEMPLATE
            begin, rest = begin + len(known), rest[len(known) :]


def _find(ids: NDArray[np.int64], pattern: NDArray[np.int64]) -> NDArray[np.int64]:
    """Start indices of ``pattern`` in ``ids``, ascending."""
    width = len(pattern)
    if width == 0 or width > len(ids):
        return np.zeros(0, np.int64)
    candidates = np.flatnonzero(ids[: len(ids) - width + 1] == pattern[0])
    for offset in range(1, width):
        candidates = candidates[ids[candidates + offset] == pattern[offset]]
    return candidates
