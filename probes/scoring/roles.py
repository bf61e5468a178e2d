r"""Roles: the author of every token of a conversation, from the chat template's own markers.

A chat template writes fixed token sequences before and after each message (``<|im_start|>user\n`` … ``<|im_end|>``).
A bundle stores those sequences, found once at fit time, and the engine walks a prompt with them:

1. Outside any message, tokens are ``TEMPLATE`` until a header matches; the header itself is ``TEMPLATE``.
2. After a header of role R, tokens are R until the terminator or the next header, which are ``TEMPLATE`` again.
3. A prompt without any header (a plain completion) is the user's text: ``USER``.
4. ``SYSTEM`` counts only before the first user turn: text that spoofs a system header later would otherwise hide from
   the probes of the user's tokens.
5. Where markers were typed into a message, which the tokens do not tell, all is ``USER`` from the first user turn on.

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
    REASONING = 5
    """Thinking that the model's user is not shown."""


KEPT: Final = (Role.USER, Role.ASSISTANT)
"""Roles whose states are kept to fit on: those that concepts may read."""


class Markers(msgspec.Struct, frozen=True):
    """The token sequences that a chat template writes around messages."""

    headers: dict[str, list[int]] = {}
    """Role name (lower case) to the tokens before its content; empty where the model has no chat template."""
    terminator: list[int] = []
    """The tokens that end a message."""


class RoleReader:
    """Assigns roles to the tokens of one request, prompt first, then each generated token.

    Args:
        markers: The markers of the model's chat template.
    """

    def __init__(self, markers: Markers) -> None:
        self._headers = [(Role[name.upper()], np.asarray(ids, np.int64)) for name, ids in markers.headers.items()]
        self._terminator = np.asarray(markers.terminator, np.int64)

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
        # Longest first at one position: a header may be the beginning of another.
        starts = sorted(
            ((int(at), len(header), role) for role, header in self._headers for at in _find(ids, header)),
            key=lambda start: (start[0], -start[1]),
        )
        if not starts:
            return np.full(len(ids), Role.USER, np.uint8)
        contents: list[tuple[int, int, Role]] = []
        for at, width, role in starts:
            if not contents or at >= contents[-1][1]:
                contents.append((at, at + width, role))
        roles = np.full(len(ids), Role.TEMPLATE, np.uint8)
        terminators = _find(ids, self._terminator)
        user_spoke = False
        for (_, begin, role), following in zip(contents, [*contents[1:], (len(ids), 0, Role.TEMPLATE)], strict=True):
            stops = terminators[terminators >= begin]
            end = min(following[0], int(stops[0]) if len(stops) else len(ids))
            user_spoke |= role is Role.USER
            roles[begin:end] = Role.USER if role is Role.SYSTEM and user_spoke else role
        if typed:
            roles[next((begin for _, begin, role in contents if role is Role.USER), contents[0][1]) :] = Role.USER
        return roles


def _find(ids: NDArray[np.int64], pattern: NDArray[np.int64]) -> NDArray[np.int64]:
    """Start indices of ``pattern`` in ``ids``, ascending."""
    width = len(pattern)
    if width == 0 or width > len(ids):
        return np.zeros(0, np.int64)
    candidates = np.flatnonzero(ids[: len(ids) - width + 1] == pattern[0])
    for offset in range(1, width):
        candidates = candidates[ids[candidates + offset] == pattern[offset]]
    return candidates
