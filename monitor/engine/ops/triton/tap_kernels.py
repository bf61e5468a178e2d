r"""The tap on CUDA, in Triton; the reference in :mod:`monitor.engine.ops.tap` defines what it computes.

Three rules hold for all kernels of this folder, so that they can be recorded in a CUDA graph: the grid depends on
shapes alone, the host never waits for the device, and a configuration is computed, not timed. Results do not depend on
timing either: there are no atomics, and every sum has a fixed order for a given shape.

:func:`tap` is two kernels. ``_project`` is a matrix product that is skinny (at most 72 outputs) and often of one row,
so the hidden dimension is divided among programs as far as it takes to occupy the device; each reads its part of
``hidden + residual``, the only time that most rows are read, and leaves partial sums. ``_finish`` adds these up in
order, row by row, writes the scores and, where a row has an entry, steers it. The kernel boundary is what lets every
projection be of the row before steering without a barrier among programs.

Products are on tensor cores in three TF32 terms, ``big·big + big·small + small·big`` (Ootomo and Yokota, 2022,
`arXiv:2203.03341 <https://arxiv.org/abs/2203.03341>`_), with sums in float32. Each number is cut into two of 11 bits;
what the three terms leave out of a product is below 3 · 2⁻²⁰ of it, where plain TF32 loses up to 2⁻⁹.
"""
# ruff: noqa: ANN001  A kernel's parameters are pointers and numbers, typed by Triton at each launch.
# Triton's own types know neither the options of a launch nor that its loops unroll.
# pyright: reportMissingParameterType=none, reportCallIssue=none, reportGeneralTypeIssues=none

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from monitor.engine.ops.tap import STEER

_MAX_SPLITS: Final = 32
"""The most programs that share a row's projections; ``_finish`` adds up that many at once."""
_PROGRAMS: Final = 256
"""Programs to aim at: about two on each multiprocessor of an H100, so that one computes while the other waits."""
_SHORT: Final = 256
"""Up to this many rows come in blocks of 16, the fewest that tensor cores take; beyond, in blocks of 64.

Two configurations and no more: what a server runs before its first request, its largest step and the batches whose
graphs it records, has compiled both.
"""
_STEERED_AT_ONCE: Final = 4096
"""The part of a row that one program steers."""
_STEER = tl.constexpr(STEER)


def tap(
    hidden: Tensor,
    residual: Tensor | None,
    weights: Tensor,
    bias: Tensor,
    row_entry: Tensor,
    table: Tensor,
    vectors: Tensor,
    scores: Tensor,
    column: int,
    states: Tensor,
    stream: Tensor,
    row_gates: Tensor | None = None,
    gate_table: Tensor | None = None,
) -> None:
    """Score every row, steer the rows that have an entry, copy the states while they are streamed.

    The arguments are those of :func:`monitor.engine.ops.tap.tap`. Rows of ``hidden`` and ``residual`` may be strided;
    the last dimension of every argument is contiguous, and all but these and ``scores`` and ``states`` are contiguous.
    Partial sums go to the caching allocator: within a graph's recording that is the graph's own pool.
    """
    (rows, width), count, vector_count = hidden.shape, len(weights), len(vectors)
    if not rows or not (count or len(states)):
        return
    # The largest tiles of 128 outputs that still fit in registers.
    block_rows, block_width, warps = (16, 64, 8) if rows <= _SHORT else (64, 32, 4)
    row_blocks = triton.cdiv(rows, block_rows)
    steps = triton.cdiv(width, block_width * max(1, min(_MAX_SPLITS, _PROGRAMS // row_blocks)))
    splits = triton.cdiv(width, block_width * steps)
    block_count = max(16, triton.next_power_of_2(count))
    partial = torch.empty((splits, rows, count), dtype=torch.float32, device=hidden.device)
    _project[row_blocks, splits](
        hidden,
        hidden.stride(0),
        residual,
        0 if residual is None else residual.stride(0),
        weights,
        partial,
        states if len(states) else None,
        states.stride(0),
        stream,
        rows,
        width,
        count,
        steps,
        BLOCK_ROWS=block_rows,
        BLOCK_WIDTH=block_width,
        BLOCK_COUNT=block_count,
        num_warps=warps,
        num_stages=4,
        enable_fp_fusion=False,
    )
    if not count:
        return
    block_width = min(triton.next_power_of_2(width), _STEERED_AT_ONCE)
    _finish[rows, triton.cdiv(width, block_width) if vector_count else 1](
        hidden,
        hidden.stride(0),
        partial,
        bias,
        row_entry,
        table,
        row_gates,
        gate_table,
        vectors,
        scores,
        scores.stride(0),
        column,
        rows,
        splits,
        width,
        GATES=0 if gate_table is None else len(gate_table),
        PROBES=count - vector_count,
        VECTORS=vector_count,
        SPLITS=_MAX_SPLITS,
        BLOCK_WIDTH=block_width,
        BLOCK_COUNT=block_count,
        num_warps=8,
        # A fused multiply-add rounds once where its twin of opposite sign rounds twice: opposite vectors would leave
        # a trace.
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize=["rows", "steps"])
def _project(
    hidden,
    hidden_stride,
    residual,
    residual_stride,
    weights,
    partial,
    states,
    states_stride,
    stream,
    rows,
    width,
    count,
    steps,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_COUNT: tl.constexpr,
) -> None:
    """Project a block of rows on all weights, over one part of the hidden dimension: ``partial[split, row, output]``.

    The grid is (blocks of rows, splits); a split is ``steps`` blocks wide.
    """
    split = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    output = tl.arange(0, BLOCK_COUNT)
    # A long prefill of a wide model has more than 2³¹ elements.
    hidden += row.to(tl.int64)[:, None] * hidden_stride
    if residual is not None:
        residual += row.to(tl.int64)[:, None] * residual_stride
    if states is not None:
        states += row.to(tl.int64)[:, None] * states_stride
    streamed = tl.where(tl.load(stream) != 0, width, 0)
    first = split * steps * BLOCK_WIDTH
    sums = tl.full((BLOCK_ROWS, BLOCK_COUNT), 0.0, tl.float32)
    for start in range(first, first + steps * BLOCK_WIDTH, BLOCK_WIDTH):
        position = start + tl.arange(0, BLOCK_WIDTH)[None, :]
        inside = (row < rows)[:, None] & (position < width)
        state = tl.load(hidden + position, mask=inside, other=0.0).to(tl.float32)
        if residual is not None:
            state += tl.load(residual + position, mask=inside, other=0.0).to(tl.float32)
        if states is not None:
            tl.store(states + position, state, mask=(row < rows)[:, None] & (position < streamed))
        weight = tl.load(
            weights + output[:, None] * width + position, mask=(output < count)[:, None] & (position < width), other=0.0
        )
        sums = tl.dot(state, tl.trans(weight), sums, input_precision="tf32x3")
    tl.store(
        partial + (split * rows + row)[:, None] * count + output[None, :],
        sums,
        mask=(row < rows)[:, None] & (output < count)[None, :],
    )


@triton.jit(do_not_specialize=["column", "rows", "splits"])
def _finish(
    hidden,
    hidden_stride,
    partial,
    bias,
    row_entry,
    table,
    row_gates,
    gate_table,
    vectors,
    scores,
    scores_stride,
    column,
    rows,
    splits,
    width,
    GATES: tl.constexpr,
    PROBES: tl.constexpr,
    VECTORS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_COUNT: tl.constexpr,
) -> None:
    """Write one row's scores and steer one block of it; the grid is (rows, blocks of the hidden dimension)."""
    row = tl.program_id(0)
    entry = tl.load(row_entry + row)
    split = tl.arange(0, SPLITS)
    # Each split's projections of this row.
    part = partial + (split * rows + row) * (PROBES + VECTORS)
    if tl.program_id(1) == 0:
        probe = tl.arange(0, BLOCK_COUNT)
        sums = tl.load(part[:, None] + probe[None, :], mask=(split < splits)[:, None] & (probe < PROBES), other=0.0)
        score = tl.sum(sums, axis=0) + tl.load(bias + probe, mask=probe < PROBES, other=0.0)
        tl.store(scores + row.to(tl.int64) * scores_stride + column + probe, score, mask=probe < PROBES)
    if VECTORS > 0:
        ordered = entry >= 0
        steered = ordered
        for gate in tl.static_range(GATES):
            steered |= (tl.load(row_gates + row * GATES + gate) & _STEER) != 0
        if steered:
            position = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
            change = tl.full((BLOCK_WIDTH,), 0.0, tl.float32)
            for vector in tl.static_range(VECTORS):
                sums = tl.load(part + (PROBES + vector), mask=split < splits, other=0.0)
                projection = tl.sum(sums, axis=0) + tl.load(bias + (PROBES + vector))
                amounts = table + (entry * VECTORS + vector) * 4
                # Without an entry of its own, a row begins with the neutral one.
                add, scale = tl.load(amounts, mask=ordered, other=0.0), tl.load(amounts + 1, mask=ordered, other=1.0)
                low = tl.load(amounts + 2, mask=ordered, other=float("-inf"))
                high = tl.load(amounts + 3, mask=ordered, other=float("inf"))
                for gate in tl.static_range(GATES):
                    mine = (tl.load(row_gates + row * GATES + gate) & _STEER) != 0
                    theirs = gate_table + (gate * VECTORS + vector) * 4
                    add += tl.load(theirs, mask=mine, other=0.0)
                    scale *= tl.load(theirs + 1, mask=mine, other=1.0)
                    low = tl.maximum(low, tl.load(theirs + 2, mask=mine, other=float("-inf")))
                    high = tl.minimum(high, tl.load(theirs + 3, mask=mine, other=float("inf")))
                # The difference first: where nothing is scaled or clipped it is exactly zero.
                amount = add + (tl.minimum(tl.maximum(scale * projection, low), high) - projection)
                direction = tl.load(vectors + vector * width + position, mask=position < width, other=0.0)
                change += amount * direction
            target = hidden + row.to(tl.int64) * hidden_stride + position
            before = tl.load(target, mask=position < width, other=0.0)
            after = (before.to(tl.float32) + change).to(before.dtype)
            # Adding zero would turn −0 into 0.
            tl.store(target, tl.where(change == 0.0, before, after), mask=position < width)
