r"""The gate: an op behind the tap of a layer that decides, at the very token, that a request is steered from there on.

For each request and gate it keeps the running verdict of :mod:`probes.scoring.aggregate` on one probe, over the tokens
that the gate reads: with half-life ``h``, :math:`n_t = d\,n_{t-1} + w_t`, :math:`m_t = d\,m_{t-1} + 1`, :math:`a_t =
n_t / m_t`, :math:`d = 2^{-1/h}`. Then, token by token,

1. a token is **over** when the last ``streak`` averages all reach the threshold and ``min_tokens`` have been read: that
   is ``Aggregate(h, min_tokens, agree=streak, agree_of=streak)``. Everything richer is the monitor's;
2. at a token that is over, a gate with budget left **opens**;
3. while it is open, **response rows** are steered: those at position ``prompt_tokens − 1`` or later;
4. it **closes** behind a steered row when ``hold`` further ones have been steered since the last token that was over
   and, where the gate has a release, the last ``calm`` averages were all below it; and when the budget is spent.

The rest of the same pass sees it: in the row that opens the gate, and in every one after, taps of *later* layers steer.
Those of the same and of earlier layers have run by then, and steer from the request's next step on, when the gate is
found open before the pass (:func:`open_rows`). For each row, flags say what was done (:class:`Flag`).

A token counts once. Rows that were computed before, as after a preemption, are told by their position, leave the state
as it is, and are steered as the host says that they were (:mod:`monitor.engine.gates.host`). Scores that are not finite
are not read, as in the monitor.

State is float64: neither the order of a scan on the GPU nor the division of a prompt into steps moves an average by
more than its last bits. The reference, which serves the CPU, is here; :mod:`monitor.engine.ops.triton.gate_kernels`
serves CUDA.
"""

import math
from enum import IntEnum, IntFlag
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monitor.engine.ops import tap as op

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
    """Whether the gate applies to the request."""
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
    """What ``row_gates`` says of a row and a gate."""

    STEER = op.STEER
    """Taps steer the row, from here on in the pass."""
    EARLY = 2
    """They did so from the first layer on."""
    FIRED = 4
    """At this row the gate opened."""
    TAINTED = 8
    """An earlier row of the request was steered by the gate."""
    GIVEN = 16
    """A row that is computed again: behind the gate's layer it is steered, as it was then."""


_library = torch.library.Library("plumbob", "FRAGMENT")
_library.define(
    "gate(Tensor scores, Tensor row_slot, Tensor row_position, Tensor row_role, Tensor gated, Tensor limits, "
    "Tensor rules, Tensor(a!) averages, Tensor(b!) counters, Tensor(c!) row_gates, Tensor(d!) row_average, "
    "SymInt tokens, int layer) -> ()"
)


def gate(
    scores: Tensor,
    row_slot: Tensor,
    row_position: Tensor,
    row_role: Tensor,
    gated: Tensor,
    limits: Tensor,
    rules: Tensor,
    averages: Tensor,
    counters: Tensor,
    row_gates: Tensor,
    row_average: Tensor,
    tokens: int,
    layer: int,
) -> None:
    """Judge the rows of a step by the gates that read one layer; the reference in numpy.

    Args:
        scores: Token-major, with this layer's already written, ``(at least tokens, probes)``, float32.
        row_slot: Slot of each row, ``(at least tokens,)``, int32; −1: not judged. Rows of one request are consecutive,
            in order of position.
        row_position: ``(at least tokens,)``, int32.
        row_role: :class:`probes.scoring.roles.Role` of each row, ``(at least tokens,)``, int8.
        gated: ``(1,)``, int32: not zero while a gate reads this layer; otherwise the op returns at once.
        limits: ``(gates, 3)``, float64; see :class:`Limit`.
        rules: ``(gates, 8)``, int32; see :class:`Rule`.
        averages: ``n`` and ``m`` of each request, ``(slots, gates, 2)``, float64; carried on.
        counters: ``(slots, gates, 9)``, int32; see :class:`Counter`; carried on.
        row_gates: ``(at least tokens, gates)``, int8, of :class:`Flag`; as :func:`open_rows` left it.
        row_average: The average after each row that a gate read, ``(at least tokens, gates)``, float32; written there.
        tokens: Rows of the step, padding included.
        layer: Gates of this layer are judged, and no others' rows written.
    """
    if not gated.item():
        return
    slots = row_slot.numpy()[:tokens]
    edges = np.flatnonzero(np.diff(slots, prepend=-1, append=-1)).tolist()
    runs = [slice(start, stop) for start, stop in pairwise(edges) if slots[start] >= 0 and stop > start + 1]
    single = np.array([start for start, stop in pairwise(edges) if slots[start] >= 0 and stop == start + 1], np.intp)
    positions, roles, columns = row_position.numpy(), row_role.numpy(), scores.numpy()
    flags, written = row_gates.numpy(), row_average.numpy()
    for index, (rule, limit) in enumerate(zip(rules.tolist(), limits.tolist(), strict=True)):
        if rule[Rule.LAYER] != layer:
            continue
        if len(single):
            _judge_each(
                columns[single, rule[Rule.COLUMN]].astype(np.float64),
                positions[single],
                roles[single],
                limit,
                rule,
                averages.numpy()[:, index],
                counters.numpy()[:, index],
                flags[:, index],
                written[:, index],
                single,
                slots[single],
            )
        for run in runs:
            slot = int(slots[run.start])
            _judge(
                columns[run, rule[Rule.COLUMN]],
                positions[run],
                roles[run],
                limit,
                rule,
                averages.numpy()[slot, index],
                counters.numpy()[slot, index],
                flags[run, index],
                written[run, index],
            )


def _judge(
    scores: NDArray[np.float32],
    positions: NDArray[np.int32],
    roles: NDArray[np.int8],
    limit: list[float],
    rule: list[int],
    average: NDArray[np.float64],
    counter: NDArray[np.int32],
    flags: NDArray[np.int8],
    written: NDArray[np.float32],
) -> None:
    """Judge the rows of one request by one gate, in order.

    In Python's own numbers: on one row, an operation of numpy costs ten times as much.
    """
    decay, threshold, release = limit
    armed, respond, seen, count, streak, calm, is_open, after, spent = counter.tolist()
    weighted, weight = average.tolist()
    begin = int(np.searchsorted(positions, seen)) if armed else len(positions)
    again = flags[:begin]
    again[:] = (again & ~int(Flag.STEER)) | ((again & Flag.GIVEN) != 0)
    if not armed:
        return
    rows = zip(scores[begin:].tolist(), positions[begin:].tolist(), roles[begin:].tolist(), strict=True)
    for row, (score, position, role) in enumerate(rows, begin):
        over = False
        if rule[Rule.ROLES] >> role & 1 and math.isfinite(score):
            weighted, weight, count = decay * weighted + score, decay * weight + 1.0, count + 1
            mean = weighted / weight
            written[row] = mean
            streak = streak + 1 if mean >= threshold else 0
            calm = calm + 1 if mean < release else 0
            over = streak >= rule[Rule.STREAK] and count >= rule[Rule.MIN_TOKENS] and spent < rule[Rule.BUDGET]
        flag = int(flags[row]) & Flag.EARLY | (Flag.TAINTED if spent else 0)
        if over:
            flag |= 0 if is_open else Flag.FIRED
            is_open, after = 1, 0
        if is_open and position >= respond:
            flag |= Flag.STEER
            spent += 1
            calm_enough = not rule[Rule.CALM] or calm >= rule[Rule.CALM]
            if (after >= rule[Rule.HOLD] and calm_enough) or spent >= rule[Rule.BUDGET]:
                is_open = 0
            after += 1
        flags[row] = flag
    average[:] = weighted, weight
    seen = max(seen, int(positions[-1]) + 1)
    counter[:] = armed, respond, seen, count, streak, calm, is_open, after, spent


def _judge_each(
    scores: NDArray[np.float64],
    positions: NDArray[np.int32],
    roles: NDArray[np.int8],
    limit: list[float],
    rule: list[int],
    averages: NDArray[np.float64],
    counters: NDArray[np.int32],
    flags: NDArray[np.int8],
    written: NDArray[np.float32],
    rows: NDArray[np.intp],
    slots: NDArray[np.int32],
) -> None:
    """Judge one row each of different requests by one gate, as at decode: what :func:`_judge` does, side by side.

    Args:
        scores: Of these rows, shape ``(requests,)``.
        positions: Absolute, shape ``(requests,)``.
        roles: Shape ``(requests,)``.
        limit: The gate's.
        rule: The gate's.
        averages: Of all slots, ``(slots, 2)``; carried on.
        counters: Of all slots, ``(slots, 9)``; carried on.
        flags: Of all rows; written.
        written: Averages of all rows; written where the gate read.
        rows: Which rows these are, shape ``(requests,)``.
        slots: Their requests', shape ``(requests,)``.
    """
    decay, threshold, release = limit
    armed, respond, seen, count, streak, calm, is_open, after, spent = counters[slots].T
    before = flags[rows]
    new = (armed != 0) & (positions >= seen)
    read = new & ((rule[Rule.ROLES] >> roles) & 1 != 0) & np.isfinite(scores)
    weighted, weight = averages[slots].T
    weighted = np.where(read, decay * weighted + np.where(read, scores, 0.0), weighted)
    weight = np.where(read, decay * weight + 1.0, weight)
    mean = weighted / np.where(weight, weight, 1.0)
    written[rows[read]] = mean[read]
    count = count + read
    streak = np.where(read, np.where(mean >= threshold, streak + 1, 0), streak)
    calm = np.where(read, np.where(mean < release, calm + 1, 0), calm)
    over = read & (streak >= rule[Rule.STREAK]) & (count >= rule[Rule.MIN_TOKENS]) & (spent < rule[Rule.BUDGET])
    flag = before & Flag.EARLY | np.where(spent > 0, int(Flag.TAINTED), 0)
    flag |= np.where(over & (is_open == 0), int(Flag.FIRED), 0)
    is_open, after = np.where(over, 1, is_open), np.where(over, 0, after)
    steers = new & (is_open != 0) & (positions >= respond)
    spent = spent + steers
    closes = steers & (after >= rule[Rule.HOLD]) & ((rule[Rule.CALM] == 0) | (calm >= rule[Rule.CALM]))
    is_open = np.where(closes | (steers & (spent >= rule[Rule.BUDGET])), 0, is_open)
    again = (before & ~int(Flag.STEER)) | ((before & Flag.GIVEN) != 0)
    flags[rows] = np.where(new, flag | steers, again)
    averages[slots] = np.stack([weighted, weight], axis=1)
    seen = np.where(new, positions + 1, seen)
    counters[slots] = np.stack([armed, respond, seen, count, streak, calm, is_open, after + steers, spent], axis=1)


def open_rows(row_slot: Tensor, row_position: Tensor, counters: Tensor, row_gates: Tensor, rows: int) -> None:
    """Before the pass: let every layer steer the new response rows of requests whose gates are open.

    Args:
        row_slot: ``(at least rows,)``, int32; −1: not judged.
        row_position: ``(at least rows,)``, int32.
        counters: ``(slots, gates, 9)``, int32.
        row_gates: ``(at least rows, gates)``, int8: zero, or what the host says of rows that are computed again;
            written for the others.
        rows: Rows of the step.
    """
    if row_gates.is_cuda:
        from monitor.engine.ops.triton import gate_kernels as kernels_gate

        return kernels_gate.open_rows(row_slot, row_position, counters, row_gates, rows)
    slots, flags = row_slot.numpy()[:rows], row_gates.numpy()[:rows]
    judged = np.flatnonzero(slots >= 0)
    state = counters.numpy()[slots[judged]]
    position = row_position.numpy()[:rows][judged, None]
    new = (state[..., Counter.ARMED] != 0) & (position >= state[..., Counter.SEEN])
    steer = (state[..., Counter.OPEN] != 0) & (position >= state[..., Counter.RESPOND])
    found = np.where(steer, int(Flag.STEER | Flag.EARLY), 0) | np.where(
        state[..., Counter.SPENT] > 0, int(Flag.TAINTED), 0
    )
    flags[judged] = np.where(new, found, flags[judged])
    return None


def _gate_on_cuda(*arguments: Any) -> None:
    # Imported at the first call, as the tap's kernels are.
    from monitor.engine.ops.triton import gate_kernels as kernels_gate

    kernels_gate.gate(*arguments)


def _fake(
    scores: Tensor,
    row_slot: Tensor,
    row_position: Tensor,
    row_role: Tensor,
    gated: Tensor,
    limits: Tensor,
    rules: Tensor,
    averages: Tensor,
    counters: Tensor,
    row_gates: Tensor,
    row_average: Tensor,
    tokens: int,
    layer: int,
) -> None:
    """Tell the compiler that nothing is returned."""


torch.library.register_fake("plumbob::gate", _fake, lib=_library)
_library.impl("gate", gate, "CPU")
_library.impl("gate", _gate_on_cuda, "CUDA")
