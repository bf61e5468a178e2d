"""Scores of cached prefixes: kept by KV slot, they live exactly as long as the keys and values of their token.

A token whose keys and values come from the prefix cache is never computed again, so the taps do not see it: without its
scores, a monitor would be blind to the earlier turns of a conversation. The scores of every row are scattered to where
its keys and values went, and a request that skips positions finds them there. The same block is only ever found by the
same tokens in the same context, so they are the scores that computing them again would give.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from monitor.engine.batch import Gap
from monitor.engine.steering.table import to_device


class Blocks(Protocol):
    """Finds the KV blocks of a request."""

    def __call__(self, engine_request_id: str, group: int, /) -> Sequence[int] | Tensor:
        """Block ids of a request in one KV cache group, in the order of its positions."""
        ...


class KvScores:
    """Scores by KV slot of one KV cache group.

    Args:
        group: The group's number.
        blocks: Blocks of the KV cache.
        block_size: Tokens of a block.
        probes: Columns of scores.
        device: Where the KV cache is.
    """

    def __init__(self, group: int, blocks: int, block_size: int, probes: int, device: torch.device) -> None:
        self.group = group
        self._block_size = block_size
        # NaN is "not scored".
        self.scores = torch.full((blocks * block_size, probes), torch.nan, device=device)
        """``(KV slots, probes)``, float32."""

    def slots(self, blocks: Sequence[int] | Tensor, start: int, end: int) -> Tensor:
        """KV slots of a request's positions.

        Args:
            blocks: The request's blocks, in order; where only the device knows them, as integers there.
            start: First position.
            end: One past the last.

        Returns:
            Int64, ``(end - start,)``, on the device.
        """
        first = start // self._block_size
        some = blocks[first : -(-end // self._block_size)]
        here = some if isinstance(some, Tensor) else to_device(np.asarray(some, np.int64), self.scores.device)
        position = torch.arange(start, end, device=self.scores.device)
        return here.long()[position // self._block_size - first] * self._block_size + position % self._block_size

    def find(self, blocks: Blocks, gaps: Sequence[Gap]) -> Tensor:
        """KV slots of positions of requests, one request after the other: int64, on the device."""
        return torch.cat(
            [self.slots(blocks(gap.request.engine_request_id, self.group), gap.start, gap.end) for gap in gaps]
        )

    def forget_blocks(self, blocks: Sequence[int]) -> None:
        """Keep no scores of whole blocks."""
        self.scores.view(-1, self._block_size, self.scores.shape[1])[list(blocks)] = torch.nan

    def forget(self, kv_slots: Tensor) -> None:
        """Keep no scores of tokens that were computed unread."""
        self.scores.index_fill_(0, kv_slots, torch.nan)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Follow blocks whose keys and values the engine has copied; pairs of source and target."""
        source, target = torch.tensor(copies, device=self.scores.device).unbind(dim=1)
        by_block = self.scores.view(-1, self._block_size, self.scores.shape[1])
        by_block[target] = by_block[source]


def find_group(kv_cache_config: Any) -> tuple[int, int] | None:
    """The KV cache group that keeps every position of a request for as long as it is cached.

    Groups with a sliding window let go of positions, and state-space layers have none.

    Args:
        kv_cache_config: vLLM's ``KVCacheConfig``.

    Returns:
        The group's number and its block size; ``None`` where there is no such group: cached positions are unscored.
    """
    from vllm.v1.kv_cache_interface import FullAttentionSpec, UniformTypeKVCacheSpecs

    for number, group in enumerate(kv_cache_config.kv_cache_groups):
        spec = group.kv_cache_spec
        if isinstance(spec, UniformTypeKVCacheSpecs):
            spec = next(iter(spec.kv_cache_specs.values()))
        if isinstance(spec, FullAttentionSpec):
            return number, spec.block_size
    return None


def share_of_kv_memory(specs: dict[str, Any], probes: int) -> float:
    """Bytes of scores that go with a byte of the KV cache, at most.

    Layers of different kinds share one pool of blocks, each block serving as many layers as the rarest kind has: a
    hybrid model has more KV slots for the same memory than one whose layers are all alike.

    Args:
        specs: vLLM's ``KVCacheSpec`` of each layer.
        probes: Columns of scores.
    """
    per_slot: dict[Any, float] = {}
    for spec in specs.values():
        per_slot[spec] = per_slot.get(spec, 0.0) + spec.page_size_bytes / spec.block_size
    smallest = min(per_slot.values(), default=0.0)
    return 4 * probes / smallest if smallest else 0.0
