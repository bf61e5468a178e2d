"""What a run measures, from the times at which tokens arrived."""

import numpy as np
import pytest

from monitor.bench.workload import (
    DECODE_RATE,
    FIRST_TOKEN_ID,
    ITL_P50,
    ITL_P99,
    PREFILL_RATE,
    TTFT,
    Workload,
    decode_rate,
)
from monitor.engine.offline import Answer
from monitor.errors import EngineError


def answer(*times: list[float]) -> Answer:
    return Answer(seconds=9.0, tokens=[[0] * len(request) for request in times], times=list(times))


def test_decode_is_measured_while_all_requests_generate():
    """The first begins alone, at a tenth of the pace; the last goes on alone."""
    first = [0.0, 1.0, *np.arange(2.0, 3.01, 0.1).tolist()]
    last = [*np.arange(2.0, 3.01, 0.1).tolist(), 4.0, 5.0]
    assert decode_rate([first, last]) == pytest.approx(20.0)


def test_a_batch_that_is_never_whole_has_no_decode_rate():
    with pytest.raises(EngineError, match="--tokens"):
        decode_rate([[0.0, 1.0], [1.0, 2.0]])


def test_a_decode_run_measures_rate_first_token_and_gaps():
    times = [0.25 + step / 100 for step in range(100)] + [2.24]
    found = Workload(2, 64, 101).measure(answer(times, [time + 0.002 for time in times]))
    assert found[TTFT] == pytest.approx(251.0)
    assert found[ITL_P50] == pytest.approx(10.0)
    # One gap of a hundred is a second long, in each request.
    assert 10.0 < found[ITL_P99] < 1000.0
    assert found[DECODE_RATE] == pytest.approx(199 / 1.988)


def test_a_prefill_run_measures_prompt_tokens_until_the_last_request_has_its_token():
    assert Workload(2, 300, 1).measure(answer([0.5], [2.0])) == {PREFILL_RATE: 300.0}


def test_prompts_are_the_same_for_a_seed_and_others_for_another():
    work = Workload(4, 64, 32)
    assert work.prompts(2048, 3) == work.prompts(2048, 3)
    assert not set(map(tuple, work.prompts(2048, 3))) & set(map(tuple, work.prompts(2048, 4)))
    # Nor do two workloads of a round begin alike, which the prefix cache would notice.
    assert work.prompts(2048, 3)[0] != Workload(8, 64, 32).prompts(2048, 3)[0]


def test_prompts_are_of_the_models_tokens():
    ids = np.array(Workload(8, 64, 32).prompts(256, 0))
    assert ids.shape == (8, 64)
    assert ids.min() >= FIRST_TOKEN_ID and ids.max() == 255
