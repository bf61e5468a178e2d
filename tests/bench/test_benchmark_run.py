"""Real benchmarks, as small as they can be: every arm does what its name says. How fast is not asserted."""

import math

import msgspec
import pytest

from monitor.bench.arms import Subject
from monitor.bench.engine import Plan, run
from monitor.bench.result import Result
from monitor.bench.serve import ServePlan, run_serve
from monitor.bench.workload import DECODE_RATE, ITL_P50, ITL_P99, PREFILL_RATE, TTFT
from probes.errors import PlumbobError
from probes.models import DEMO, no_progress, resolve_model

pytestmark = [pytest.mark.vllm, pytest.mark.long]

ARMS = ("loaded-idle", "scoring", "monitor-off", "steering", "streaming", "monitor-killed")
ROUNDS, BATCH, TOKENS, PREFILL = 2, 2, 24, 16


@pytest.fixture(scope="module")
def result() -> Result:
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    plan = Plan(
        Subject(shape="llama-tiny", probes=6),
        arms=ARMS,
        pairs=ROUNDS,
        batches=[BATCH],
        tokens=TOKENS,
        prefill_tokens=PREFILL,
        eager=True,
        profile=True,
    )
    return run(plan, no_progress)


def test_every_metric_of_every_arm_is_measured_once_a_round(result):
    measured = {(series.arm, series.metric): series for series in result.series}
    metrics = [metric.name for metric in (DECODE_RATE, TTFT, ITL_P50, ITL_P99, PREFILL_RATE)]
    assert set(measured) == {(arm, metric) for arm in ("stock", *ARMS) for metric in metrics}
    for series in result.series:
        assert len(series.values) == ROUNDS
        assert all(math.isfinite(value) and value > 0 for value in series.values)
        assert (series.ratio is None) == (series.arm == "stock")
    assert msgspec.json.decode(result.to_json(), type=Result) == result


def test_every_request_is_answered_and_every_frame_accounted_for(result):
    assert set(result.traffic) == set(ARMS) - {"loaded-idle"}
    for arm, seen in result.traffic.items():
        assert seen.requests == ROUNDS * (BATCH + 4)
        accounted = seen.frames + seen.lost
        assert accounted >= seen.sent if arm == "monitor-killed" else accounted == seen.sent
    assert result.traffic["monitor-killed"].lost > 0
    assert result.traffic["monitor-off"].frames == 0
    for arm in ("scoring", "steering", "streaming"):
        assert result.traffic[arm].lost == 0
        assert result.traffic[arm].frames >= ROUNDS * TOKENS


def test_steering_steers_and_nothing_else_does(result):
    steered = {arm for arm, seen in result.traffic.items() if seen.steered}
    assert steered == {"steering"}


def test_every_row_is_streamed_to_the_monitors_process_and_only_when_it_is_wanted(result):
    rows = ROUNDS * (BATCH * (64 + TOKENS - 1) + 4 * PREFILL)
    streamed = {arm: seen.streamed for arm, seen in result.traffic.items() if seen.streamed}
    assert streamed == {"streaming": rows}


def test_the_engines_say_what_they_are(result):
    assert set(result.engines) == {"stock", "idle", "tapped"}
    for facts in result.engines.values():
        assert (facts.dtype, facts.compilation) == ("bfloat16", "NONE")
        assert facts.device and facts.runner in ("V1", "V2") and facts.prefix_caching
        assert facts.rss_peak_mib > 100
    assert result.dummy_weights and result.bundle.synthetic
    assert (result.bundle.probes, result.bundle.layers) == (6, [1, 2, 3])


def test_the_profile_finds_the_op_once_a_tapped_layer(result):
    assert {profile.arm for profile in result.profiles} == {"scoring", "monitor-off", "steering", "streaming"}
    for profile in result.profiles:
        calls = sum(scope.calls for scope in profile.scopes if "plumbob::tap" in scope.name)
        assert calls == pytest.approx(3.0)
        assert 0 < profile.ours("step") < profile.microseconds


def test_two_real_servers_are_put_beside_each_other():
    pytest.importorskip("vllm")
    try:
        resolve_model(DEMO)
    except PlumbobError as error:
        pytest.skip(f"the demo model is not installed: {error}")
    plan = ServePlan(Subject(), pairs=2, requests=2, concurrency=2, prompt_tokens=16, tokens=8, eager=True)
    found = run_serve(plan, no_progress)
    assert found.kind == "serve"
    assert {series.arm for series in found.series} == {"stock", "plumbob serve"}
    assert all(value > 0 for series in found.series for value in series.values)
