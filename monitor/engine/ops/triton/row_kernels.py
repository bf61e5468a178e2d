"""The row map and the copy of scores on CUDA, in Triton; the references in :mod:`monitor.engine.rows` define them.

The rules of :mod:`monitor.engine.ops.triton.tap_kernels` hold.
"""
# ruff: noqa: ANN001  A kernel's parameters are pointers and numbers, typed by Triton at each launch.
# Triton's own types know neither the options of a launch nor that its loops unroll.
# pyright: reportMissingParameterType=none, reportCallIssue=none, reportGeneralTypeIssues=none

import triton
import triton.language as tl
from torch import Tensor


def map_rows(
    query_start: Tensor,
    batch_slot: Tensor,
    batch_first: Tensor,
    segments: Tensor,
    row_slot: Tensor,
    row_position: Tensor,
    row_entry: Tensor,
    rows: int,
    requests: int,
) -> None:
    """Say whose every row is, where it stands in its request, and which entry of the steering table it has.

    Args:
        query_start: The first row of each request and the end of the last, ``(at least requests + 1,)``, int32,
            ascending from 0.
        batch_slot: The slot of each request, ``(at least requests,)``, int32; −1: not scored.
        batch_first: The position of each request's first row, ``(at least requests,)``, int32.
        segments: What is steered, ``(slots, S, 3)``, int32: positions from and to (exclusive), and the table's entry.
            At most one segment of a slot has any position; unused ones are empty.
        row_slot: Written, ``(max_tokens,)``, int32; −1 in rows of no request and of requests that are not scored.
        row_position: Written for rows of a request, ``(max_tokens,)``, int32; others are left.
        row_entry: Written, ``(max_tokens,)``, int32; −1: not steered.
        rows: The step's rows; those from here on are padding.
        requests: The step's requests.
    """
    capacity, block = len(row_slot), 128
    _map_rows[(triton.cdiv(capacity, block),)](
        query_start,
        batch_slot,
        batch_first,
        segments,
        row_slot,
        row_position,
        row_entry,
        rows,
        requests,
        requests.bit_length(),
        capacity,
        SEGMENTS=segments.shape[1],
        BLOCK=block,
        num_warps=4,
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize=["rows", "requests", "halvings"])
def _map_rows(
    query_start,
    batch_slot,
    batch_first,
    segments,
    row_slot,
    row_position,
    row_entry,
    rows,
    requests,
    halvings,
    capacity,
    SEGMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Look up a block of rows by bisection: ``halvings`` of them tell ``requests`` apart."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # Through the end of the last request; nothing is read where no row is left.
    owned = (row < rows) & (row < tl.load(query_start + requests))
    request = tl.full((BLOCK,), 0, tl.int32)
    end = request + requests
    for _ in range(halvings):
        middle = (request + end) // 2
        started = tl.load(query_start + middle, mask=owned, other=0) <= row
        request = tl.where(started, middle, request)
        end = tl.where(started, end, middle)
    slot = tl.load(batch_slot + request, mask=owned, other=-1)
    first = tl.load(batch_first + request, mask=owned, other=0)
    position = first + row - tl.load(query_start + request, mask=owned, other=0)
    entry = tl.full((BLOCK,), -1, tl.int32)
    scored = slot >= 0
    for index in tl.static_range(SEGMENTS):
        segment = segments + (slot.to(tl.int64) * SEGMENTS + index) * 3
        begins = tl.load(segment, mask=scored, other=0)
        ends = tl.load(segment + 1, mask=scored, other=0)
        steered = scored & (begins <= position) & (position < ends)
        entry = tl.where(steered, tl.load(segment + 2, mask=steered, other=-1), entry)
    inside = row < capacity
    tl.store(row_slot + row, slot, mask=inside)
    tl.store(row_entry + row, entry, mask=inside)
    tl.store(row_position + row, position, mask=inside & owned)


def commit(
    scores: Tensor,
    row_slot: Tensor,
    kv_slots: Tensor | None,
    kv_scores: Tensor | None,
    staged: Tensor,
    rows: int,
) -> None:
    """Copy a step's scores to where they leave from, and to where the prefix cache finds them again.

    Args:
        scores: ``(at least rows, probes)``, float32.
        row_slot: As :func:`map_rows` wrote it.
        kv_slots: Where each row's keys and values are kept, ``(at least rows,)``, int64, no two alike; −1: nowhere.
        kv_scores: The scores of each such place, ``(places, probes)``, float32: not a number where the row is not
            scored.
        staged: The step's scores, ``(at least rows, probes)``, float32.
        rows: The step's rows.
    """
    probes = scores.shape[1]
    if not rows or not probes:
        return
    block_probes = min(triton.next_power_of_2(probes), 128)
    block_rows = 1024 // block_probes
    _commit[triton.cdiv(rows, block_rows), triton.cdiv(probes, block_probes)](
        scores,
        scores.stride(0),
        row_slot,
        kv_slots,
        kv_scores,
        0 if kv_scores is None else kv_scores.stride(0),
        staged,
        staged.stride(0),
        rows,
        probes,
        BLOCK_ROWS=block_rows,
        BLOCK_PROBES=block_probes,
        num_warps=4,
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize=["rows"])
def _commit(
    scores,
    scores_stride,
    row_slot,
    kv_slots,
    kv_scores,
    kv_scores_stride,
    staged,
    staged_stride,
    rows,
    probes,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PROBES: tl.constexpr,
) -> None:
    """Copy one block; the grid is (blocks of rows, blocks of probes)."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    probe = (tl.program_id(1) * BLOCK_PROBES + tl.arange(0, BLOCK_PROBES))[None, :]
    inside = (row < rows)[:, None] & (probe < probes)
    wide = row.to(tl.int64)[:, None]
    score = tl.load(scores + wide * scores_stride + probe, mask=inside, other=0.0)
    tl.store(staged + wide * staged_stride + probe, score, mask=inside)
    if kv_slots is not None:
        place = tl.load(kv_slots + row, mask=row < rows, other=-1)[:, None]
        scored = tl.load(row_slot + row, mask=row < rows, other=-1)[:, None] >= 0
        kept = tl.where(scored, score, float("nan"))
        tl.store(kv_scores + place * kv_scores_stride + probe, kept, mask=inside & (place >= 0))
