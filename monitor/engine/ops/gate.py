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
found open before the pass (:func:`open_rows`). For each row, flags say what was done
(:class:`monitor.engine.ops.gate_layout.Flag`, which stands beside the columns of the other tensors).

A token counts once. Rows that were computed before, as after a preemption, are known by their position, leave the state
as it is, and are steered as the host says that they were (:mod:`monitor.engine.gates.host`). Scores that are not finite
are not read, as in the monitor.

State is float64: neither the order of a scan on the GPU nor the division of a prompt into steps moves an average by
more than its last bits. The reference is here and serves the CPU; :mod:`monitor.engine.ops.triton.gate_kernels` serves
CUDA. The reference judges row by row in Python's own numbers: a step of 32 rows costs less that way than by some forty
operations of NumPy or torch on arrays of 32, and the rows of one request depend on each other anyway.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monitor.engine.ops.gate_layout import Counter, Flag, Rule

# As plain numbers: a flag's own operators cost more than all else that is done to a row.
STEER, EARLY, FIRED, TAINTED, GIVEN = (
    int(flag) for flag in (Flag.STEER, Flag.EARLY, Flag.FIRED, Flag.TAINTED, Flag.GIVEN)
)

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
    """Judge the rows of a step by the gates that read one layer; the reference, which serves the CPU.

    Args:
        scores: Token-major, with this layer's already written, ``(at least tokens, probes)``, float32.
        row_slot: Slot of each row, ``(at least tokens,)``, int32; −1: not judged. Rows of one request are consecutive,
            in order of position.
        row_position: ``(at least tokens,)``, int32.
        row_role: :class:`probes.scoring.roles.Role` of each row, ``(at least tokens,)``, int8.
        gated: ``(1,)``, int32: not zero while a gate reads this layer; otherwise the op returns at once.
        limits: ``(gates, 3)``, float64; see ``Limit``.
        rules: ``(gates, 8)``, int32; see ``Rule``.
        averages: ``n`` and ``m`` of each request, ``(slots, gates, 2)``, float64; carried on.
        counters: ``(slots, gates, 9)``, int32; see ``Counter``; carried on.
        row_gates: ``(at least tokens, gates)``, int8, of ``Flag``; as :func:`open_rows` left it.
        row_average: The average after each row that a gate read, ``(at least tokens, gates)``, float32; written there.
        tokens: Rows of the step, padding included.
        layer: Gates of this layer are judged, and no others' rows written.
    """
    if not gated.item():
        return
    rows = np.flatnonzero(row_slot.numpy()[:tokens] >= 0)
    if not len(rows):
        return
    owners = row_slot.numpy()[rows]
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    runs = list(pairwise([*starts.tolist(), len(rows)]))
    held = owners[starts]
    positions, roles = row_position.numpy()[rows].tolist(), row_role.numpy()[rows].tolist()
    for index, (rule, limit) in enumerate(zip(rules.tolist(), limits.tolist(), strict=True)):
        if rule[Rule.LAYER] != layer:
            continue
        state = State(
            averages=averages.numpy()[held, index].tolist(),
            counters=counters.numpy()[held, index].tolist(),
            flags=row_gates.numpy()[rows, index].tolist(),
        )
        column = scores.numpy()[rows, rule[Rule.COLUMN]].tolist()
        read = judge(runs, column, positions, roles, rule, limit, state)
        averages.numpy()[held, index], counters.numpy()[held, index] = state.averages, state.counters
        row_gates.numpy()[rows, index] = state.flags
        row_average.numpy()[rows[list(read)], index] = list(read.values())


@dataclass(frozen=True, slots=True)
class State:
    """State of one gate on the requests of a step, in order, and the flags of their rows."""

    averages: list[list[float]]
    """``n`` and ``m`` of each request."""
    counters: list[list[int]]
    """Of each request; see :class:`monitor.engine.ops.gate_layout.Counter`."""
    flags: list[int]
    """Of each row; see :class:`monitor.engine.ops.gate_layout.Flag`."""


def judge(
    runs: Sequence[tuple[int, int]],
    scores: Sequence[float],
    positions: Sequence[int],
    roles: Sequence[int],
    rule: Sequence[int],
    limit: Sequence[float],
    state: State,
) -> dict[int, float]:
    """Judge rows by one gate: the state machine above.

    Args:
        runs: For each request its rows, ``(first, one past the last)``.
        scores: Of the gate's probe, a row each, in logits.
        positions: Of each row, ascending within a request.
        roles: Of each row.
        rule: The gate's row of ``rules``.
        limit: The gate's row of ``limits``.
        state: Carried on.

    Returns:
        The average after each row that the gate read, in logits.
    """
    decay, threshold, release = limit
    _, _, read_roles, min_tokens, need_streak, need_calm, hold, budget = rule
    flags, read = state.flags, dict[int, float]()
    for request, (first, end) in enumerate(runs):
        armed, respond, seen, count, streak, calm, is_open, after, spent = state.counters[request]
        weighted, weight = state.averages[request]
        for row in range(first, end):
            position, flag = positions[row], flags[row]
            if not armed or position < seen:
                flags[row] = flag & ~STEER | (STEER if flag & GIVEN else 0)
                continue
            over = False
            if read_roles >> roles[row] & 1 and math.isfinite(score := scores[row]):
                weighted, weight, count = decay * weighted + score, decay * weight + 1.0, count + 1
                average = read[row] = weighted / weight
                streak = streak + 1 if average >= threshold else 0
                calm = calm + 1 if average < release else 0
                over = streak >= need_streak and count >= min_tokens and spent < budget
            flag = flag & EARLY | (TAINTED if spent else 0)
            if over:
                flag |= 0 if is_open else FIRED
                is_open, after = 1, 0
            if is_open and position >= respond:
                flag |= STEER
                spent += 1
                if (after >= hold and (not need_calm or calm >= need_calm)) or spent >= budget:
                    is_open = 0
                after += 1
            flags[row] = flag
        if armed:
            seen = max(seen, positions[end - 1] + 1)
        state.counters[request] = [armed, respond, seen, count, streak, calm, is_open, after, spent]
        state.averages[request] = [weighted, weight]
    return read


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
        from monitor.engine.ops.triton import gate_kernels

        return gate_kernels.open_rows(row_slot, row_position, counters, row_gates, rows)
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
    from monitor.engine.ops.triton import gate_kernels

    gate_kernels.gate(*arguments)


def _fake(*_: Any) -> None:
    """Tell the compiler that nothing is returned."""


torch.library.register_fake("plumbob::gate", _fake, lib=_library)
_library.impl("gate", gate, "CPU")
_library.impl("gate", _gate_on_cuda, "CUDA")
