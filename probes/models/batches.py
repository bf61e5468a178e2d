"""Sequences of tokens put together: which ones share a forward pass, and how they are padded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Padded sequences. Tensors are ``(texts, tokens)``, on the model's device."""

    token_ids: Any
    mask: Any
    """1 where there is a token, 0 where there is padding; with cached keys, their columns come first."""
    positions: Any = None
    """Of each token in its sequence; ``None`` where they are the columns, counted on from what is cached."""

    def following(self, before: Any, positions: Any = None) -> "Batch":
        """The same tokens behind cached ones.

        Args:
            before: Mask of the cached tokens, shape ``(texts, cached)``.
            positions: Of each token in its sequence; ``None`` where nothing that is cached is padding.
        """
        import torch

        return Batch(self.token_ids, torch.cat([before, self.mask], dim=1), positions)


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Share out sequences, the longest first, so that progress does not slow down towards the end.

    Args:
        lengths: Of the sequences.
        tokens: Padded tokens of a batch at most; a longer sequence is a batch of its own.

    Yields:
        Indices of the sequences of one batch.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
