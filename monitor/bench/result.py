"""The result of a benchmark: measurements, versions and engines, and how each arm compares with stock.

The ratio of an arm to stock is taken within each round, in which all arms ran one after another on the same prompts,
so that a machine that drifts between rounds drops out. Its interval is a percentile bootstrap of the median over
rounds (Efron 1979): it assumes nothing about the shape of the noise, and with few rounds it is wide.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final, Self

import msgspec
import numpy as np

from monitor import __version__
from monitor.engine.offline import Facts
from monitor.engine.vllm.versions import vllm_version
from probes.bundle import Bundle

FORMAT: Final = 1
STOCK: Final = "stock"
_DRAWS: Final = 10_000


class Ratio(msgspec.Struct, frozen=True):
    """An arm over stock, within rounds."""

    median: float
    low: float
    """Lower end of the median's 95% bootstrap interval."""
    high: float


class Series(msgspec.Struct, frozen=True):
    """One metric of one arm, measured once a round."""

    arm: str
    metric: str
    unit: str
    higher_is_better: bool
    batch: int | None
    """Requests at once; ``None`` where it is not about that."""
    values: list[float]
    """One a round, in order."""
    median: float
    quartiles: tuple[float, float]
    ratio: Ratio | None
    """To stock; ``None`` for stock itself."""


class Traffic(msgspec.Struct, frozen=True):
    """Counts of what the monitor saw of one arm's runs."""

    requests: int
    """Run by the engine; one that fails ends the benchmark."""
    sent: int
    """Frames that the engine has numbered, up to the last one that the monitor read: ``frames + lost``, and less where
    a monitor was killed: what it read and had not confirmed yet, its successor counts as lost."""
    frames: int
    """Read by the monitor."""
    lost: int
    """Frames that the engine sent or dropped, and the monitor did not read."""
    steered: int
    """Rows downstream of steering."""
    streamed: int
    """Rows of activations that arrived in another process."""


class BundleShape(msgspec.Struct, frozen=True):
    """Size of the bundle that the tapped engine reads."""

    probes: int
    layers: list[int]
    vectors: int
    synthetic: bool
    """Random probes, made for the benchmark."""

    @classmethod
    def of(cls, bundle: Bundle, *, synthetic: bool) -> Self:
        """Take the shape of a bundle."""
        return cls(len(bundle.probes), bundle.layers, len(bundle.manifest.vectors), synthetic)


class Scope(msgspec.Struct, frozen=True):
    """A part of ours in a profile; one row of its table."""

    name: str
    where: str
    """``step``: the thread that runs the step; ``beside``: another thread; ``device``: the GPU."""
    calls: float
    """A step."""
    microseconds: float
    """A step."""


class StepProfile(msgspec.Struct, frozen=True):
    """One decode step, averaged over a trace of torch's profiler."""

    arm: str
    batch: int
    steps: int
    microseconds: float
    """From one step's begin to the next one's."""
    device_microseconds: float
    """Kernels and copies on the GPU; 0 without one."""
    scopes: list[Scope]
    """Parts of it that are ours; longest first."""

    def ours(self, where: str) -> float:
        """Sum the microseconds a step that are ours on one of the timelines of :attr:`Scope.where`."""
        return sum(scope.microseconds for scope in self.scopes if scope.where == where)


class Result(msgspec.Struct, frozen=True):
    """The result of a benchmark; the content of its JSON file."""

    format: int
    kind: str
    """``engine`` or ``serve``."""
    created: str
    """UTC, ISO 8601."""
    model: str
    dummy_weights: bool
    description: str
    """The workload, in words."""
    versions: dict[str, str]
    bundle: BundleShape
    rounds: int
    series: list[Series]
    engines: dict[str, Facts] = {}
    """By the arm that each was started for first."""
    traffic: dict[str, Traffic] = {}
    """By arm, where there is a monitor."""
    profiles: list[StepProfile] = []

    def to_json(self) -> bytes:
        """Indented, for a file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def now() -> str:
    """Tell the time: UTC, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Collect the versions of the packages that are measured."""
    return {"plumbob": __version__, "vllm": vllm_version(), "torch": version("torch")}


def summarise(
    arm: str,
    metric: str,
    unit: str,
    values: Sequence[float],
    stock: Sequence[float],
    *,
    higher_is_better: bool,
    batch: int | None = None,
) -> Series:
    """Summarise one metric of one arm, beside stock's.

    Args:
        arm: Its name; for :data:`STOCK` there is no ratio.
        metric: Its name.
        unit: Of the values.
        values: One a round.
        stock: Of the same rounds, in the same order.
        higher_is_better: Whether more is better.
        batch: Requests at once.
    """
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return Series(
        arm=arm,
        metric=metric,
        unit=unit,
        higher_is_better=higher_is_better,
        batch=batch,
        values=list(values),
        median=median,
        quartiles=(low, high),
        ratio=None if arm == STOCK else median_ratio(stock, values),
    )


def median_ratio(stock: Sequence[float], tapped: Sequence[float]) -> Ratio:
    """Take the median of the rounds' ratios, with its 95% bootstrap interval.

    Args:
        stock: One value a round.
        tapped: Of the same rounds, in the same order.
    """
    ratios = np.asarray(tapped) / np.asarray(stock)
    draws = np.random.default_rng(0).choice(ratios, (_DRAWS, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5]).tolist()
    return Ratio(float(np.median(ratios)), low, high)
