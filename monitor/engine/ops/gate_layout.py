"""Columns and flags of the gate's tensors, for its reference, its kernels and the host."""

from enum import IntEnum, IntFlag
from typing import Final

from monitor.engine.ops.tap import STEER

MAX_GATES: Final = 8
"""Gates that an engine can be started with: each costs a read of one byte a row in every tap that steers."""
FOREVER: Final = 2**31 - 1
"""A hold or a budget that never ends."""


class Rule(IntEnum):
    """Columns of ``rules``, int32: one row a gate."""

    LAYER = 0
    """Of its probe; −1 where the gate is free."""
    COLUMN = 1
    """Of its probe's scores."""
    ROLES = 2
    """Whose tokens it reads: bit ``r`` for role ``r``."""
    MIN_TOKENS = 3
    """Tokens that must have been read before it may open."""
    STREAK = 4
    """Averages in a row that must reach the threshold."""
    CALM = 5
    """Averages in a row that must be below the release; 0: it has none."""
    HOLD = 6
    """Rows steered after the last token that was over, at least."""
    BUDGET = 7
    """The most rows steered of a request."""


class Limit(IntEnum):
    """Columns of ``limits``, float64: one row a gate."""

    DECAY = 0
    """The weight that a score keeps from one token to the next."""
    THRESHOLD = 1
    RELEASE = 2


class Counter(IntEnum):
    """The last dimension of ``counters``, int32: the state of one gate on one request, beside its average."""

    ARMED = 0
    """1: the gate applies to the request."""
    RESPOND = 1
    """Position of the first response row."""
    SEEN = 2
    """Positions below were judged already."""
    COUNT = 3
    """Tokens read."""
    STREAK = 4
    """Averages in a row that reached the threshold."""
    CALM = 5
    """Averages in a row that were below the release."""
    OPEN = 6
    AFTER = 7
    """Rows steered since the last token that was over."""
    SPENT = 8
    """Rows steered."""


class Flag(IntFlag):
    """Bits of ``row_gates``, of a row and a gate."""

    STEER = STEER
    """Taps steer the row, from here on in the pass."""
    EARLY = 2
    """They did so from the first layer on."""
    FIRED = 4
    """At this row the gate opened."""
    TAINTED = 8
    """An earlier row of the request was steered by the gate."""
    GIVEN = 16
    """A row that is computed again: behind the gate's layer it is steered, as it was then."""
