"""Scores by KV slot."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from monitor.engine.kv_scores import KvScores, find_group, share_of_kv_memory
from monitor.engine.rows import commit


def test_a_position_is_found_in_the_block_that_holds_it():
    kv = KvScores(0, blocks=8, block_size=4, probes=1, device=torch.device("cpu"))
    assert kv.slots([5, 2, 7], 2, 10).tolist() == [22, 23, 8, 9, 10, 11, 28, 29]


def test_a_row_that_is_not_scored_leaves_nothing_of_who_was_there_before():
    kv = KvScores(0, blocks=2, block_size=4, probes=2, device=torch.device("cpu"))
    scores, staged = torch.arange(8.0).reshape(4, 2), torch.zeros(6, 2)
    slots = torch.tensor([6, 1, 2])
    commit(scores, torch.tensor([3, 3, 3], dtype=torch.int32), slots, kv.scores, staged, 3)
    assert kv.scores[slots].tolist() == scores[:3].tolist()
    assert staged[:3].tolist() == scores[:3].tolist()
    assert int(kv.scores.isnan().all(dim=1).sum()) == 5
    commit(scores, torch.tensor([-1, 3, -1], dtype=torch.int32), slots, kv.scores, staged, 3)
    assert kv.scores[slots].isnan().all(dim=1).tolist() == [True, False, True]


def test_scores_follow_a_block_that_is_copied():
    kv = KvScores(0, blocks=3, block_size=2, probes=1, device=torch.device("cpu"))
    kv.scores.copy_(torch.arange(6.0).unsqueeze(1))
    kv.copy_blocks([(0, 2)])
    assert kv.scores.flatten().tolist() == [0, 1, 2, 3, 0, 1]


def spec(kind: str, **more):
    interface = pytest.importorskip("vllm.v1.kv_cache_interface", reason="vLLM is not installed")
    return getattr(interface, kind)(block_size=16, num_kv_heads=2, head_size=32, dtype=torch.bfloat16, **more)


def test_the_group_that_keeps_whole_prefixes_is_taken():
    full, sliding = spec("FullAttentionSpec"), spec("SlidingWindowSpec", sliding_window=64)
    groups = [SimpleNamespace(kv_cache_spec=sliding), SimpleNamespace(kv_cache_spec=full)]
    assert find_group(SimpleNamespace(kv_cache_groups=groups)) == (1, 16)
    assert find_group(SimpleNamespace(kv_cache_groups=groups[:1])) is None


def test_memory_of_scores_is_a_share_of_the_cache_s():
    full, sliding = spec("FullAttentionSpec"), spec("SlidingWindowSpec", sliding_window=64)
    # 2 heads of 32 keys and values in 2 bytes: 256 bytes a token and layer.
    assert share_of_kv_memory({str(layer): full for layer in range(4)}, probes=8) == 4 * 8 / (4 * 256)
    # Blocks serve one layer of each kind in turn.
    assert share_of_kv_memory({"0": sliding, "1": sliding, "2": full}, probes=8) == 4 * 8 / 256
    assert share_of_kv_memory({}, probes=8) == 0.0
    assert np.isclose(share_of_kv_memory({"0": full}, probes=0), 0.0)
