"""The parts of a decode step that are ours, from a trace of torch's profiler.

vLLM marks every step of a worker with a span that says how many requests it prefilled and how many it decoded. Ours is
what has ``plumbob`` in its name, and what lies in it: the op, its kernels on a GPU, and spans around the Python parts.
Profiling slows the host, so that microseconds there are an upper bound; kernels are timed by the GPU. The scheduler's
process is not traced where it is another one, as on a CPU.
"""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from monitor.bench.result import Scope, StepProfile
from monitor.errors import EngineError

OURS: Final = "plumbob"
MIN_STEPS: Final = 3
"""Fewer decode steps are no profile."""
_STEP: Final = re.compile(r"execute_context_0\(0\)_generation_(\d+)\(\d+\)$")
_ON_HOST: Final = ("cpu_op", "user_annotation")
_ON_DEVICE: Final = ("kernel", "gpu_memcpy", "gpu_memset")
_DEVICE_SPAN: Final = "gpu_user_annotation"


class Span(msgspec.Struct, frozen=True):
    """A complete event of a Chrome trace. Times in microseconds."""

    cat: str
    name: str
    ts: float
    dur: float
    pid: int | str
    tid: int | str

    @property
    def end(self) -> float:
        """When it ended."""
        return self.ts + self.dur

    @property
    def timeline(self) -> tuple[int | str, int | str]:
        """The thread or GPU stream that it was on."""
        return self.pid, self.tid


def read_trace(path: Path) -> list[Span]:
    """The complete events of a trace, by time.

    Args:
        path: A Chrome trace, gzipped or not.
    """
    encoded = path.read_bytes()
    trace = json.loads(gzip.decompress(encoded) if path.suffix == ".gz" else encoded)
    events: list[dict[str, Any]] = trace["traceEvents"]
    spans = [msgspec.convert(event, Span) for event in events if event.get("ph") == "X" and "cat" in event]
    return sorted(spans, key=lambda span: (span.ts, -span.dur))


def step_profile(spans: Iterable[Span], arm: str, batch: int) -> StepProfile:
    """Average over the steps in which all requests of a batch decoded.

    Args:
        spans: Of one worker, by time.
        arm: Which was profiled.
        batch: Requests of the batch.

    Raises:
        EngineError: There are too few such steps.
    """
    spans = list(spans)
    begins = [span for span in spans if _decodes(span, batch)]
    if len(begins) <= MIN_STEPS:
        raise EngineError(f"A profile has {len(begins)} decode steps of batch {batch}.", "Raise --tokens.")
    steps, begin, end = len(begins) - 1, begins[0].ts, begins[-1].ts
    within = [span for span in spans if begin <= span.ts < end]
    step_timeline = begins[0].timeline
    calls, microseconds = defaultdict[tuple[str, str], int](int), defaultdict[tuple[str, str], float](float)
    for span in outermost(span for span in within if span.cat in _ON_HOST and OURS in span.name):
        key = span.name, "step" if span.timeline == step_timeline else "beside"
        calls[key] += 1
        microseconds[key] += span.dur
    for name, span in ours_on_device(within):
        calls[name, "device"] += 1
        microseconds[name, "device"] += span.dur
    scopes = [
        Scope(name, where, calls[name, where] / steps, spent / steps) for (name, where), spent in microseconds.items()
    ]
    return StepProfile(
        arm=arm,
        batch=batch,
        steps=steps,
        microseconds=(end - begin) / steps,
        device_microseconds=sum(span.dur for span in within if span.cat in _ON_DEVICE) / steps,
        scopes=sorted(scopes, key=lambda scope: -scope.microseconds),
    )


def outermost(spans: Iterable[Span]) -> Iterator[Span]:
    """Spans that lie in no other one of theirs on the same timeline.

    Args:
        spans: By time; of two that begin together, the longer one first.
    """
    ends: dict[tuple[int | str, int | str], float] = {}
    for span in spans:
        if span.ts >= ends.get(span.timeline, float("-inf")):
            ends[span.timeline] = span.end
            yield span


def ours_on_device(spans: Iterable[Span]) -> Iterator[tuple[str, Span]]:
    """Kernels and copies that are ours by their own name, or by that of the span that they were started in.

    Args:
        spans: By time.

    Yields:
        The name that is ours, and the kernel or copy.
    """
    scopes: dict[tuple[int | str, int | str], Span] = {}
    for span in spans:
        if span.cat == _DEVICE_SPAN and OURS in span.name:
            scopes[span.timeline] = span
        elif span.cat in _ON_DEVICE:
            scope = scopes.get(span.timeline)
            if OURS in span.name:
                yield span.name, span
            elif scope is not None and span.ts < scope.end:
                yield scope.name, span


def _decodes(span: Span, batch: int) -> bool:
    match = _STEP.search(span.name) if span.cat == "user_annotation" else None
    return match is not None and int(match.group(1)) == batch
