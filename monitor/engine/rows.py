r"""Rows on the device: whose each row of a step is, and where its scores go.

Two operations around the forward pass, outside the recorded graph. They need nothing from the host but what the model
runner has on the device already, so that a step whose positions only the device knows (speculative decoding, scheduling
ahead) is described as exactly as any other.

The references, which serve the CPU, are here; :mod:`monitor.engine.ops.triton.row_kernels` serves CUDA. They are of
numpy, on the tensors' own memory: on so few numbers an operation of torch costs several times as much, and wakes
threads.
"""

from typing import Final

import numpy as np
from torch import Tensor

SEGMENTS: Final = 8
"""Stretches of positions of one request that are steered differently; see :mod:`monitor.engine.slots`."""


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
    """Describe the rows of the coming forward pass.

    Args:
        query_start: First row of each request of the batch, and one past the last row, ``(at least requests + 1,)``.
        batch_slot: Slot of each request, ``(at least requests,)``, int32; −1: not scored.
        batch_first: Position of each request's first row, ``(at least requests,)``, int32.
        segments: Steered stretches of each slot's positions, ``(slots, SEGMENTS, 3)``, int32: first position, one past
            the last, entry of the steering table. They do not overlap; unused ones are empty.
        row_slot: Written, ``(max_tokens,)``, int32; −1 from ``rows`` on.
        row_position: Written up to ``rows``, ``(max_tokens,)``, int32.
        row_entry: Written, ``(max_tokens,)``, int32: the steering table's entry for the row, −1 for none.
        rows: Rows of the step.
        requests: Requests of the batch.
    """
    if query_start.is_cuda:
        from monitor.engine.ops.triton import row_kernels

        return row_kernels.map_rows(
            query_start, batch_slot, batch_first, segments, row_slot, row_position, row_entry, rows, requests
        )
    starts = query_start.numpy()[: requests + 1]
    row = np.arange(rows, dtype=np.int32)
    request = np.repeat(np.arange(requests), np.diff(starts))
    slot = batch_slot.numpy()[request]
    position = batch_first.numpy()[request] + row - starts[request]
    entry = np.full(rows, -1, np.int32)
    if (steered := np.flatnonzero(slot >= 0)).size:
        first, end, entries = np.moveaxis(segments.numpy()[slot[steered]], -1, 0)
        at = position[steered, None]
        entry[steered] = np.where((at >= first) & (at < end), entries, -1).max(axis=-1)
    row_position.numpy()[:rows] = position
    for target, values in ((row_slot, slot), (row_entry, entry)):
        memory = target.numpy()
        memory[:rows], memory[rows:] = values, -1
    return None


def commit(
    scores: Tensor, row_slot: Tensor, kv_slots: Tensor | None, kv_scores: Tensor | None, staged: Tensor, rows: int
) -> None:
    """Take the scores of a step out of the buffer that the next one overwrites.

    Args:
        scores: What the taps wrote, ``(max_tokens, probes)``, float32.
        row_slot: Slot of each row, ``(at least rows,)``, int32; −1: not scored.
        kv_slots: Where each row's keys and values went, ``(at least rows,)``, int64; ``None``: nothing is kept.
        kv_scores: Scores by KV slot, ``(KV slots, probes)``, float32; rows that are not scored write NaN, so that
            the request that had the slot before is not read in their place.
        staged: Copied to, ``(max_tokens, probes)``, float32.
        rows: Rows of the step.
    """
    if scores.is_cuda:
        from monitor.engine.ops.triton import row_kernels

        return row_kernels.commit(scores, row_slot, kv_slots, kv_scores, staged, rows)
    written = scores.numpy()[:rows]
    staged.numpy()[:rows] = written
    if kv_slots is not None and kv_scores is not None:
        scored = row_slot.numpy()[:rows] >= 0
        kv_scores.numpy()[kv_slots.numpy()[:rows]] = (
            written if scored.all() else np.where(scored[:, None], written, np.float32(np.nan))
        )
    return None
