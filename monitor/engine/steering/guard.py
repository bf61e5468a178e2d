"""The degeneration guard: an answer that repeats itself while it is steered is steered no more.

1. The engine core watches each request from when it may first be steered: by an order, as it asked for, or by a gate.
   Every :data:`STRIDE` tokens it judges the last :data:`WINDOW` of the answer by the share of their sequences of three
   that repeat an earlier one (:func:`probes.steering.repetition.repetition`).
2. Where the share reaches :data:`THRESHOLD`, the core says so with the next step, so that every rank hears of it at the
   same one, and judges anew when a whole window of new tokens is there.
3. The workers know which rows were steered. They blame steering where it goes on, and touched at least half of the rows
   that the first of the windows that repeat in a row came from: an answer that repeated itself before is not theirs.
4. Everything that steers the request then lets it go for good, from its next row on: what was ordered is released,
   gates pass it by, and an order to steer it again is refused.

It needs no monitor; one that is there learns of it by a ``GuardEvent``. The release is for good: the rows that steering
touched are part of the context, and a text that repeats itself tends to go on so.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from monitor.engine.gates.host import Gates
from monitor.engine.slots import Slots
from monitor.wire.frames import GuardEvent
from probes.steering.repetition import NGRAM, repetition

WINDOW: Final = 64
"""Tokens of an answer that are judged together."""
STRIDE: Final = 16
"""New tokens from one judgement to the next."""
THRESHOLD: Final = 0.7
"""Share of sequences of three tokens that repeat an earlier one of the window: that of a loop of 18 tokens.

Measured with SmolLM2's tokenizer: of 1,575 ordinary texts of a window or more (worked sums, Python and its unit tests,
answers of GPT-4) one reaches it, a list of assertions; all others stay below 0.66, and all but the unit tests at 0.60
or below. Of SmolLM2-135M's greedy answers, of 224 tokens at most, 2 of 11 do by themselves. At a dose of 0.8, along the
direction of sycophancy, 13 of 13 do, between 0.81 and 0.97, and along a random one 14 of 14.
"""
MOST_DISTINCT: Final = math.floor((1 - THRESHOLD) * (WINDOW - NGRAM + 1)) + NGRAM - 1
"""Tokens that a window which reaches the threshold can have, each counted once: but for the first two, a token that is
new ends a sequence that is new. Windows with more are most, and need not be counted."""


class Repeats(msgspec.Struct, frozen=True):
    """A watched answer repeats itself: what the core tells the workers."""

    engine_request_id: str
    share: float
    """Of the window just judged."""
    noticed: int
    """Position of the last token of the first of those windows that have repeated without a break."""


@dataclass(slots=True)
class _Watched:
    due: int = WINDOW
    """Tokens of the answer at which it is judged next."""
    noticed: int = -1
    """See :class:`Repeats`; −1: the last window judged did not repeat."""


class Guard:
    """The core's part: which answers repeat themselves. One for each scheduler.

    Args:
        pace: The most tokens that a step adds to an answer: a request is not looked at before it can be due.
    """

    def __init__(self, pace: int = 1) -> None:
        self._pace = pace
        self._step = 0
        self._watched: dict[str, _Watched] = {}
        self._at: dict[int, list[str]] = {}
        """Step to the requests that are looked at then."""

    def watch(self, engine_request_id: str) -> None:
        """Judge a request's answer from now on, until it ends."""
        if engine_request_id not in self._watched:
            self._watched[engine_request_id] = _Watched()
            self._look_in(1, engine_request_id)

    def judge(self, requests: Mapping[str, Any]) -> list[Repeats]:
        """Judge what has become due. To be called once a step.

        Args:
            requests: vLLM's, by their id; one that is watched and not among them has ended.

        Returns:
            The answers that repeat themselves.
        """
        self._step += 1
        found: list[Repeats] = []
        for engine_request_id in self._at.pop(self._step, ()):
            watched, request = self._watched[engine_request_id], requests.get(engine_request_id)
            if request is None:
                del self._watched[engine_request_id]
                continue
            tokens = request.output_token_ids
            count = len(tokens)
            if count < watched.due - WINDOW:
                # A streaming session whose answer has become part of its prompt.
                watched.due, watched.noticed = WINDOW, -1
            if count >= watched.due and (repeats := self._judge(engine_request_id, watched, request)) is not None:
                found.append(repeats)
            self._look_in(max(1, (watched.due - count) // self._pace), engine_request_id)
        return found

    def _judge(self, engine_request_id: str, watched: _Watched, request: Any) -> Repeats | None:
        tokens = request.output_token_ids
        window, count = tokens[-WINDOW:], len(tokens)
        share = 0.0 if len(set(window)) > MOST_DISTINCT else repetition(window)
        if share < THRESHOLD:
            watched.due, watched.noticed = count + STRIDE, -1
            return None
        if watched.noticed < 0:
            watched.noticed = request.num_prompt_tokens + count - 1
        watched.due = count + WINDOW
        return Repeats(engine_request_id, share, watched.noticed)

    def _look_in(self, steps: int, engine_request_id: str) -> None:
        self._at.setdefault(self._step + steps, []).append(engine_request_id)


def blamed(stretches: Iterable[tuple[int, int]], noticed: int) -> bool:
    """Return True where at least half of the rows that a window's tokens came from were steered.

    Args:
        stretches: Positions that were, ``(first, one past the last)``; they may overlap.
        noticed: Position of the window's last token. The row before a token yields it.
    """
    begin = noticed - WINDOW
    rows = np.zeros(WINDOW, bool)
    for first, end in stretches:
        rows[max(first - begin, 0) : max(end - begin, 0)] = True
    return int(rows.sum()) * 2 >= WINDOW


def release(repeats: Repeats, slots: Slots, gates: Gates | None, number: int) -> GuardEvent | None:
    """Release a request that steering makes repeat itself: the workers' part. All ranks come to the same.

    Args:
        repeats: What the core found.
        slots: Knows what orders do to the request, and releases it.
        gates: The engine's; ``None``: it has none.
        number: Of the event.

    Returns:
        What was done; ``None`` where the request has ended, is not steered, or steering is not to blame.
    """
    request = slots.tracked(repeats.engine_request_id)
    if request is None:
        return None
    by_gates = [] if gates is None else gates.steered(request.slot)
    if not (slots.steers(request) or any(steered.steering for steered in by_gates)):
        return None
    stretches = [(push.start, push.end) for push in request.pushes]
    stretches += [(first, end) for steered in by_gates for first, end in (*steered.early, *steered.late)]
    if not blamed(stretches, repeats.noticed):
        return None
    slots.release(request)
    return GuardEvent(
        number=number,
        engine_request_id=request.engine_request_id,
        request_id=request.request_id,
        position=slots.upcoming(request.slot),
        repetition=repeats.share,
        threshold=THRESHOLD,
        window=WINDOW,
        gates=[] if gates is None else gates.exempt(request.slot),
    )
