"""What of a step is ours, in traces made by hand."""

import gzip
import json

import pytest

from monitor.bench.profile import Span, outermost, read_trace, step_profile
from monitor.errors import EngineError

THREAD, OTHER, STREAM = (1, 10), (1, 11), (0, 7)


def span(name: str, ts: float, dur: float, timeline=THREAD, cat: str = "cpu_op") -> Span:
    return Span(cat, name, ts, dur, *timeline)


def steps(count: int, *, every: float = 100.0, batch: int = 8) -> list[Span]:
    name = f"execute_context_0(0)_generation_{batch}({batch})"
    return [span(name, index * every, every / 2, cat="user_annotation") for index in range(count)]


def profile(*spans: Span, count: int = 5, batch: int = 8):
    return step_profile(sorted([*steps(count), *spans], key=lambda span: (span.ts, -span.dur)), "scoring", batch)


def test_a_step_lasts_from_its_begin_to_the_next_ones():
    found = profile()
    assert (found.steps, found.microseconds, found.scopes) == (4, 100.0, [])


def test_what_is_ours_is_counted_a_step():
    ops = [span("plumbob::tap", 100.0 * step + offset, 6.0) for step in range(4) for offset in (10, 20)]
    found = profile(*ops, span("aten::mm", 30.0, 40.0))
    (scope,) = found.scopes
    assert (scope.name, scope.where, scope.calls, scope.microseconds) == ("plumbob::tap", "step", 2.0, 12.0)
    assert found.ours("step") == 12.0


def test_what_lies_in_something_of_ours_is_not_counted_twice():
    found = profile(span("plumbob: send", 10.0, 20.0, cat="user_annotation"), span("plumbob::tap", 15.0, 5.0))
    assert [(scope.name, scope.microseconds) for scope in found.scopes] == [("plumbob: send", 5.0)]


def test_other_threads_and_the_device_are_told_apart():
    found = profile(
        span("plumbob: encode", 10.0, 8.0, OTHER, "user_annotation"),
        span("plumbob_tap_kernel", 10.0, 4.0, STREAM, "kernel"),
        span("gemm", 20.0, 36.0, STREAM, "kernel"),
        span("Memcpy DtoH", 60.0, 12.0, STREAM, "gpu_memcpy"),
    )
    assert {scope.where: scope.microseconds for scope in found.scopes} == {"beside": 2.0, "device": 1.0}
    assert found.device_microseconds == 13.0


def test_a_copy_within_our_span_on_the_device_is_ours():
    copy = span("Memcpy DtoH", 62.0, 6.0, STREAM, "gpu_memcpy")
    later = span("Memcpy DtoH", 70.0, 6.0, STREAM, "gpu_memcpy")
    elsewhere = span("gemm", 63.0, 6.0, (0, 8), "kernel")
    scope = span("plumbob: copy", 60.0, 8.0, STREAM, "gpu_user_annotation")
    found = profile(scope, copy, later, elsewhere)
    (scope,) = found.scopes
    assert (scope.name, scope.calls, scope.microseconds) == ("plumbob: copy", 0.25, 1.5)
    assert found.device_microseconds == 4.5


def test_prefill_steps_and_other_batches_are_left_out():
    prefill = span("execute_context_8(512)_generation_0(0)", -200.0, 150.0, cat="user_annotation")
    mixed = span("execute_context_1(64)_generation_7(7)", -50.0, 40.0, cat="user_annotation")
    thinned = span("execute_context_0(0)_generation_7(7)", 500.0, 40.0, cat="user_annotation")
    early, late = span("plumbob::tap", -150.0, 50.0), span("plumbob::tap", 510.0, 20.0)
    found = profile(prefill, mixed, thinned, early, late, span("plumbob::tap", 10.0, 4.0))
    assert (found.steps, found.microseconds, found.ours("step")) == (4, 100.0, 1.0)


def test_too_few_steps_are_no_profile():
    with pytest.raises(EngineError, match=r"batch 8.*--tokens"):
        profile(count=3)
    with pytest.raises(EngineError, match="0 decode steps of batch 2"):
        profile(batch=2)


def test_spans_of_other_timelines_do_not_hide_each_other():
    both = [span("a", 0.0, 10.0), span("b", 5.0, 1.0, OTHER), span("c", 6.0, 1.0), span("d", 10.0, 1.0)]
    assert [each.name for each in outermost(both)] == ["a", "b", "d"]


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_a_trace_is_read_in_the_order_of_time(tmp_path, suffix):
    events = [
        {"ph": "X", "cat": "cpu_op", "name": "inner", "ts": 5.0, "dur": 1, "pid": 1, "tid": 2, "args": {}},
        {"ph": "X", "cat": "cpu_op", "name": "outer", "ts": 5.0, "dur": 9.0, "pid": 1, "tid": 2},
        {"ph": "M", "name": "process_name", "ts": 0, "pid": 1, "tid": 2},
        {"ph": "X", "name": "no category", "ts": 0, "dur": 1, "pid": 1, "tid": 2},
        {"ph": "X", "cat": "kernel", "name": "first", "ts": 1.0, "dur": 1, "pid": "Spans", "tid": "stream 7"},
    ]
    path, encoded = tmp_path / f"trace{suffix}", json.dumps({"traceEvents": events}).encode()
    path.write_bytes(gzip.compress(encoded) if suffix.endswith("gz") else encoded)
    assert [each.name for each in read_trace(path)] == ["first", "outer", "inner"]
