"""The gate on CUDA, in Triton; what it computes is defined by the references in :mod:`monitor.engine.ops.gate`.

The rules of :mod:`monitor.engine.ops.triton.tap_kernels` hold. There is a program for each row and gate; the one at the
first row of a request judges all of its rows, and the others end at once. So requests are judged side by side, and
nothing is written by two programs. A request's rows fall into three parts, by position:

* rows that are computed again: steered as the host says, a block at a time;
* new rows of the prompt, of which there may be thousands: averages and counts by scans, a block at a time;
* new response rows: one after the other. Without drafts, which the gate refuses, a step has one of them for a request.

Scans add in another order than the reference does, in float64.
"""
# ruff: noqa: ANN001, ANN202  A kernel's parameters are pointers and numbers, typed by Triton at each launch.
# pyright: reportMissingParameterType=none, reportCallIssue=none, reportGeneralTypeIssues=none
# pyright: reportOperatorIssue=none

from typing import Final

import triton
import triton.language as tl
from torch import Tensor

from monitor.engine.ops.gate_layout import Counter, Flag, Limit, Rule

_BLOCK: Final = 128
"""Rows scanned at once."""

_STEER = tl.constexpr(int(Flag.STEER))
_EARLY = tl.constexpr(int(Flag.EARLY))
_FIRED = tl.constexpr(int(Flag.FIRED))
_TAINTED = tl.constexpr(int(Flag.TAINTED))
_GIVEN = tl.constexpr(int(Flag.GIVEN))
_LIMITS = tl.constexpr(len(Limit))
_DECAY = tl.constexpr(int(Limit.DECAY))
_THRESHOLD = tl.constexpr(int(Limit.THRESHOLD))
_RELEASE = tl.constexpr(int(Limit.RELEASE))
_RULES = tl.constexpr(len(Rule))
_LAYER = tl.constexpr(int(Rule.LAYER))
_COLUMN = tl.constexpr(int(Rule.COLUMN))
_ROLES = tl.constexpr(int(Rule.ROLES))
_MIN_TOKENS = tl.constexpr(int(Rule.MIN_TOKENS))
_NEED = tl.constexpr(int(Rule.STREAK))
_CALM_NEED = tl.constexpr(int(Rule.CALM))
_HOLD = tl.constexpr(int(Rule.HOLD))
_BUDGET = tl.constexpr(int(Rule.BUDGET))
_COUNTERS = tl.constexpr(len(Counter))
_ARMED = tl.constexpr(int(Counter.ARMED))
_RESPOND = tl.constexpr(int(Counter.RESPOND))
_SEEN = tl.constexpr(int(Counter.SEEN))
_COUNT = tl.constexpr(int(Counter.COUNT))
_STREAK = tl.constexpr(int(Counter.STREAK))
_CALM = tl.constexpr(int(Counter.CALM))
_OPEN = tl.constexpr(int(Counter.OPEN))
_AFTER = tl.constexpr(int(Counter.AFTER))
_SPENT = tl.constexpr(int(Counter.SPENT))


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
    """Judge the rows of a step. The arguments are those of :func:`monitor.engine.ops.gate.gate`, all contiguous."""
    if not tokens:
        return
    _gate[tokens, len(rules)](
        scores,
        scores.stride(0),
        row_slot,
        row_position,
        row_role,
        gated,
        limits,
        rules,
        averages,
        counters,
        row_gates,
        row_average,
        tokens,
        layer,
        GATES=len(rules),
        BLOCK=_BLOCK,
        num_warps=4,
        enable_fp_fusion=False,
    )


@triton.jit
def _follow(left_scale, left_sum, right_scale, right_sum):
    """Two steps of ``x ← scale · x + sum`` as one, the left one first."""
    return left_scale * right_scale, right_scale * left_sum + right_sum


@triton.jit
def _last(values, rows, count):
    """The last of ``count`` values; ``count`` is 1 at least."""
    return tl.sum(tl.where(rows == count - 1, values, 0), axis=0)


@triton.jit(do_not_specialize=["tokens", "layer"])
def _gate(
    scores,
    scores_stride,
    row_slot,
    row_position,
    row_role,
    gated,
    limits,
    rules,
    averages,
    counters,
    row_gates,
    row_average,
    tokens,
    layer,
    GATES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Judge the request that begins at a row, by one gate; the grid is (rows, gates)."""
    first, index = tl.program_id(0), tl.program_id(1)
    slot = tl.load(row_slot + first)
    before = tl.load(row_slot + first - 1, mask=first > 0, other=-1)
    rule = rules + index * _RULES
    mine = tl.load(rule + _LAYER) == layer
    if (tl.load(gated) != 0) & mine & (slot >= 0) & (slot != before):
        offset = tl.arange(0, BLOCK)
        # How many rows the request has.
        rows = 0
        more = True
        while more:
            at = first + rows + offset
            theirs = tl.load(row_slot + at, mask=at < tokens, other=-1) == slot
            whole = tl.sum(theirs.to(tl.int32), axis=0)
            rows += whole
            more = whole == BLOCK

        state = slot.to(tl.int64) * GATES + index
        counter, average = counters + state * _COUNTERS, averages + state * 2
        begin = tl.load(row_position + first)
        end = begin + rows
        armed = tl.load(counter + _ARMED) != 0
        respond, seen = tl.load(counter + _RESPOND), tl.load(counter + _SEEN)
        flags = row_gates + first.to(tl.int64) * GATES + index
        again = tl.where(armed, tl.minimum(tl.maximum(seen - begin, 0), rows), rows)
        start = 0
        while start < again:
            at = start + offset
            flag = tl.load(flags + at * GATES, mask=at < again, other=0).to(tl.int32)
            steered = tl.where((flag & _GIVEN) != 0, _STEER, 0)
            tl.store(flags + at * GATES, ((flag & ~_STEER) | steered).to(tl.int8), mask=at < again)
            start += BLOCK

        if armed:
            column, roles = tl.load(rule + _COLUMN), tl.load(rule + _ROLES)
            min_tokens, need = tl.load(rule + _MIN_TOKENS), tl.load(rule + _NEED)
            calm_need, hold, budget = tl.load(rule + _CALM_NEED), tl.load(rule + _HOLD), tl.load(rule + _BUDGET)
            limit = limits + index * _LIMITS
            decay, threshold, release = tl.load(limit + _DECAY), tl.load(limit + _THRESHOLD), tl.load(limit + _RELEASE)
            weighted, weight = tl.load(average), tl.load(average + 1)
            count, streak = tl.load(counter + _COUNT), tl.load(counter + _STREAK)
            calm, is_open = tl.load(counter + _CALM), tl.load(counter + _OPEN)
            after, spent = tl.load(counter + _AFTER), tl.load(counter + _SPENT)
            scores += first.to(tl.int64) * scores_stride + column
            written = row_average + first.to(tl.int64) * GATES + index

            prompt = tl.maximum(again, tl.minimum(respond - begin, rows))
            start = again
            while start < prompt:
                at = start + offset
                inside = at < prompt
                size = tl.minimum(prompt - start, BLOCK)
                score = tl.load(scores + at * scores_stride, mask=inside, other=0.0).to(tl.float64)
                role = tl.load(row_role + first + at, mask=inside, other=0).to(tl.int32)
                # Infinity less itself is not a number either.
                read = inside & (((roles >> role) & 1) != 0) & (score - score == 0.0)
                scale = tl.where(read, decay, 1.0)
                kept, added = tl.associative_scan((scale, tl.where(read, score, 0.0)), 0, _follow)
                _, tokens_added = tl.associative_scan((scale, tl.where(read, 1.0, 0.0).to(tl.float64)), 0, _follow)
                sums, weights = kept * weighted + added, kept * weight + tokens_added
                mean = sums / tl.where(weights == 0.0, 1.0, weights)
                counts = count + tl.cumsum(read.to(tl.int32), 0)
                reaches, below = (mean >= threshold).to(tl.int32), (mean < release).to(tl.int32)
                keeps, adds = tl.associative_scan((tl.where(read, reaches, 1), tl.where(read, reaches, 0)), 0, _follow)
                streaks = keeps * streak + adds
                keeps, adds = tl.associative_scan((tl.where(read, below, 1), tl.where(read, below, 0)), 0, _follow)
                calms = keeps * calm + adds
                over = read & (streaks >= need) & (counts >= min_tokens) & (spent < budget)
                fires = tl.min(tl.where(over, offset, BLOCK), axis=0)
                flag = tl.where((offset == fires) & (is_open == 0), _FIRED, 0) | tl.where(spent > 0, _TAINTED, 0)
                tl.store(flags + at * GATES, flag.to(tl.int8), mask=inside)
                tl.store(written + at * GATES, mean.to(tl.float32), mask=read)
                after = tl.where(fires < BLOCK, 0, after)
                is_open = tl.where(fires < BLOCK, 1, is_open)
                weighted, weight = _last(sums, offset, size), _last(weights, offset, size)
                count, streak = _last(counts, offset, size), _last(streaks, offset, size)
                calm = _last(calms, offset, size)
                start += BLOCK

            for row in range(prompt, rows):
                score = tl.load(scores + row * scores_stride).to(tl.float64)
                role = tl.load(row_role + first + row).to(tl.int32)
                read = (((roles >> role) & 1) != 0) & (score - score == 0.0)
                weighted = tl.where(read, decay * weighted + score, weighted)
                weight = tl.where(read, decay * weight + 1.0, weight)
                mean = weighted / tl.where(weight == 0.0, 1.0, weight)
                tl.store(written + row * GATES, mean.to(tl.float32), mask=read)
                count += read.to(tl.int32)
                streak = tl.where(read, tl.where(mean >= threshold, streak + 1, 0), streak)
                calm = tl.where(read, tl.where(mean < release, calm + 1, 0), calm)
                over = read & (streak >= need) & (count >= min_tokens) & (spent < budget)
                early = tl.load(flags + row * GATES).to(tl.int32) & _EARLY
                flag = early | tl.where(spent > 0, _TAINTED, 0) | tl.where(over & (is_open == 0), _FIRED, 0)
                is_open = tl.where(over, 1, is_open)
                after = tl.where(over, 0, after)
                steers = is_open != 0
                spent += steers.to(tl.int32)
                closes = steers & (((after >= hold) & (calm >= calm_need)) | (spent >= budget))
                is_open = tl.where(closes, 0, is_open)
                after += steers.to(tl.int32)
                tl.store(flags + row * GATES, (flag | tl.where(steers, _STEER, 0)).to(tl.int8))

            tl.store(average, weighted)
            tl.store(average + 1, weight)
            tl.store(counter + _SEEN, tl.maximum(seen, end))
            tl.store(counter + _COUNT, count)
            tl.store(counter + _STREAK, streak)
            tl.store(counter + _CALM, calm)
            tl.store(counter + _OPEN, is_open)
            tl.store(counter + _AFTER, after)
            tl.store(counter + _SPENT, spent)


def open_rows(row_slot: Tensor, row_position: Tensor, counters: Tensor, row_gates: Tensor, rows: int) -> None:
    """Let every layer steer the new response rows of requests whose gates are open.

    The arguments are those of :func:`monitor.engine.ops.gate.open_rows`, all contiguous.
    """
    gates = counters.shape[1]
    if not rows or not gates:
        return
    _open_rows[(triton.cdiv(rows * gates, _BLOCK),)](
        row_slot,
        row_position,
        counters,
        row_gates,
        rows * gates,
        GATES=gates,
        BLOCK=_BLOCK,
        num_warps=4,
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize=["elements"])
def _open_rows(row_slot, row_position, counters, row_gates, elements, GATES: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Open one block of rows and gates."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < elements
    row, index = element // GATES, element % GATES
    slot = tl.load(row_slot + row, mask=inside, other=-1)
    position = tl.load(row_position + row, mask=inside, other=0)
    judged = inside & (slot >= 0)
    counter = counters + (slot.to(tl.int64) * GATES + index) * _COUNTERS
    new = judged & (tl.load(counter + _ARMED, mask=judged, other=0) != 0)
    new &= position >= tl.load(counter + _SEEN, mask=judged, other=0)
    steer = (tl.load(counter + _OPEN, mask=new, other=0) != 0) & (
        position >= tl.load(counter + _RESPOND, mask=new, other=0)
    )
    tainted = tl.load(counter + _SPENT, mask=new, other=0) > 0
    flag = tl.where(steer, _STEER | _EARLY, 0) | tl.where(tainted, _TAINTED, 0)
    tl.store(row_gates + element, flag.to(tl.int8), mask=new)
