"""Sequences put together."""

import pytest

from probes.models.batches import Batch, batches


def test_batches_hold_what_they_may_and_nothing_is_lost():
    lengths = [5, 9, 1, 9, 3, 30]
    shared = list(batches(lengths, 20))
    assert sorted(index for batch in shared for index in batch) == list(range(6))
    for batch in shared:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= 20
    assert len(shared) == 3
    assert list(batches([], 20)) == []


def test_a_batch_behind_cached_tokens():
    torch = pytest.importorskip("torch")
    ids, mask = torch.tensor([[7, 8], [9, 0]]), torch.tensor([[1, 1], [1, 0]])
    later = torch.tensor([[1, 2], [3, 4]])
    behind = Batch(ids, mask).following(torch.tensor([[0, 0, 1], [1, 1, 1]]), later)
    assert behind.token_ids is ids and behind.positions is later
    assert behind.mask.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]
