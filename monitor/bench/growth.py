"""``plumbob bench engine --growth``: how the cost of a decode step grows with probes, layers, or the batch.

What is ours of a step is timed by torch's profiler, which is far steadier than a difference of two throughputs: what
else a step holds does not enter. Each value of what grows has an engine of its own, except for the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal, get_args

import msgspec
import numpy as np

from monitor.bench.engine import PROMPT_TOKENS, Plan
from monitor.bench.engines import SETUPS, Lab, Subject, count_layers, counted
from monitor.bench.profile import read_trace, step_profile
from monitor.bench.result import FORMAT, Facts, StepProfile, now, versions
from monitor.bench.workload import Workload
from probes.errors import PlumbobError
from probes.models import Progress

By = Literal["probes", "layers", "batch"]
"""What grows."""

PROBES: Final = (1, 16, 64)
"""At one layer."""
PROBES_A_LAYER: Final = 16
"""Where layers grow."""
LAYERS: Final = (1, 3, 10)
"""And all of them."""
WHERE: Final = {"step": "the step's thread", "beside": "other threads", "device": "the GPU"}
"""Timelines of a step."""
_ARM: Final = SETUPS["scoring"]


class Point(msgspec.Struct, frozen=True):
    """The cost at one value of what grows."""

    value: int
    probes: int
    layers: list[int]
    batch: int
    microseconds: dict[str, list[float]]
    """Ours in a decode step, by timeline (:data:`WHERE`), one value a trace."""
    step_microseconds: list[float]
    """The whole step, profiled, of the same traces."""


class Line(msgspec.Struct, frozen=True):
    """Least squares through the medians of a timeline's points."""

    microseconds: float
    """At 0."""
    microseconds_each: float
    """More for one more."""
    r_squared: float
    """1: the points lie on it."""


class Growth(msgspec.Struct, frozen=True):
    """How the cost grows; the content of its JSON file."""

    format: int
    kind: str
    """``growth``."""
    by: By
    created: str
    """UTC, ISO 8601."""
    model: str
    dummy_weights: bool
    versions: dict[str, str]
    engine: Facts
    """Of the first engine."""
    points: list[Point]
    lines: dict[str, Line]
    """By timeline; only those on which there is anything of ours."""

    def to_json(self) -> bytes:
        """Indented, for a file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def read_by(text: str) -> By:
    """What an option says.

    Raises:
        PlumbobError: It says something else.
    """
    for by in get_args(By):
        if by == text:
            return by
    raise PlumbobError(f"Cost does not grow by '{text}'.", f"Write --growth {', '.join(get_args(By))}.")


def run_growth(plan: Plan, by: By, progress: Progress) -> Growth:
    """Measure how the cost grows.

    Args:
        plan: Model, batches, tokens and how many traces (``pairs``). Probes and layers of the subject are used where
            the batch grows, its largest batch where it does not.
        by: What grows.
        progress: Told how far it is.

    Raises:
        PlumbobError: Something is missing, or an engine did not start.
    """
    if plan.subject.bundle is not None:
        raise PlumbobError("Growth is measured with random probes.", "Leave --bundle out.")
    points, facts = list[Point](), list[Facts]()
    batches = list(dict.fromkeys(plan.batches)) if by == "batch" else [max(plan.batches)]
    subjects = [plan.subject] if by == "batch" else grown(plan.subject, by, count_layers(plan.subject, progress))
    done = counted(progress, "traces", len(subjects) * len(batches) * plan.pairs)
    for subject in subjects:
        workloads = [Workload(batch, PROMPT_TOKENS, plan.tokens) for batch in batches]
        with Lab(subject, [_ARM], workloads, eager=plan.eager, profile=True, progress=progress) as lab:
            for workload in workloads:
                points.append(_point(lab, by, workload, plan.pairs, done))
            facts += lab.facts().values()
    return Growth(
        format=FORMAT,
        kind="growth",
        by=by,
        created=now(),
        model=plan.subject.name,
        dummy_weights=plan.subject.is_dummy,
        versions=versions(),
        engine=facts[0],
        points=points,
        lines={where: line for where in WHERE if (line := fit_line(points, where)) is not None},
    )


def fit_line(points: Sequence[Point], where: str) -> Line | None:
    """The least-squares line through the medians of the points; ``None`` where nothing is ours.

    Args:
        points: Two or more, at different values.
        where: Of :data:`WHERE`.
    """
    values = np.array([point.value for point in points], np.float64)
    costs = np.array([np.median(point.microseconds[where]) for point in points])
    if not costs.any():
        return None
    each, base = np.polyfit(values, costs, 1).tolist()
    spread = float(np.square(costs - costs.mean()).sum())
    left = float(np.square(costs - (base + each * values)).sum())
    return Line(base, each, 1.0 - left / spread if spread else 1.0)


def grown(subject: Subject, by: Literal["probes", "layers"], layers: int) -> list[Subject]:
    """One subject for each value of what grows.

    Args:
        subject: What they have in common.
        by: What grows.
        layers: How many the model has.
    """
    if by == "probes":
        return [replace(subject, probes=probes, layers=[layers // 2]) for probes in PROBES]
    counts = [*(count for count in LAYERS if count < layers), layers]
    spread = [[(2 * index + 1) * layers // (2 * count) for index in range(count)] for count in counts]
    return [replace(subject, probes=PROBES_A_LAYER * len(chosen), layers=chosen) for chosen in spread]


def _point(lab: Lab, by: By, workload: Workload, seeds: int, done: Callable[[], None]) -> Point:
    """The cost that one engine shows at one batch."""
    profiles: list[StepProfile] = []
    for seed in range(seeds):
        trace = lab.trace(_ARM, workload, seed)
        profiles.append(step_profile(read_trace(trace), _ARM.name, workload.requests))
        done()
    probes, layers = len(lab.bundle.probes), lab.bundle.layers
    return Point(
        value={"probes": probes, "layers": len(layers), "batch": workload.requests}[by],
        probes=probes,
        layers=layers,
        batch=workload.requests,
        microseconds={where: [profile.ours(where) for profile in profiles] for where in WHERE},
        step_microseconds=[profile.microseconds for profile in profiles],
    )
