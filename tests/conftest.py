"""Bundles and frames that every test can make in a line."""

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from monitor.offline import engine_process
from monitor.wire.frames import ROW, VERSION, Frame, FrameHeader, Started
from probes.bundle import Bundle, Calibration, Evaluation, ModelIdentity, Probe, Vector, save_bundle
from probes.scoring.aggregate import Aggregate
from probes.scoring.roles import Markers
from tests import skips
from tests.harness import warm

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that use several threads each wait for each other; read when torch and its like are imported.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

# Whoever runs the tests in the background has SIGINT ignored, and so would have every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

HIDDEN = 8
PROBES = (
    # name, layer, roles, threshold, in the order of the score columns
    ("harmful_intent", 1, ["user"], 2.0),
    ("toxicity", 1, ["user", "assistant"], 1.0),
    ("sycophancy", 2, ["assistant"], 0.5),
)
VECTORS = (("harmful_intent", 1), ("sycophancy", 2))


def make_bundle(path: Path, *, min_tokens: int = 1, half_life: float = 4.0, agree: int = 1, seed: int = 0) -> Bundle:
    """A bundle of hidden width 8 and four layers, with three probes and two vectors."""
    random = np.random.default_rng(seed)
    return save_bundle(
        path,
        version="0",
        created="2026-01-01T00:00:00Z",
        model=ModelIdentity(name="tiny", hidden=HIDDEN, layers=4, parts={"config": "c", "weights": "w"}),
        markers=Markers(headers={"user": [1, 2], "assistant": [1, 3]}, terminator=[4]),
        probes=[
            (
                Probe(
                    name=name,
                    layer=layer,
                    roles=roles,
                    threshold=threshold,
                    aggregate=Aggregate(half_life=half_life, min_tokens=min_tokens, agree=agree, agree_of=agree),
                    calibration=Calibration(0.01, 100, 1, (0.0, 0.05)),
                    evaluation=Evaluation(50, 60, 0.9, 0.6, 0.8),
                ),
                random.normal(size=HIDDEN),
                0.25,
            )
            for name, layer, roles, threshold in PROBES
        ],
        vectors=[(Vector(name, layer, hidden_norm=10.0), random.normal(size=HIDDEN)) for name, layer in VECTORS],
    )


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """A factory of small bundles: ``tiny_bundle(min_tokens=4)``."""

    def make(path: Path | None = None, **options: float) -> Bundle:
        return make_bundle(path or tmp_path / "bundle", **options)

    return make


def make_frame(
    sequence: int = 0,
    rows: Sequence[tuple[int, int, int, int]] = (),
    scores: float | Sequence[Sequence[float]] = 0.0,
    *,
    engine: str = "engine",
    started: Sequence[Started] = (),
    finished: Sequence[int] = (),
    complete: bool = False,
    probes: int = len(PROBES),
    acked: int = -1,
    dropped: int = 0,
    unscored: int = 0,
    monotonic_ns: int = 0,
) -> Frame:
    """A frame of rows ``(slot, position, role, steered)``; one number for ``scores`` stands for all."""
    header = FrameHeader(
        version=VERSION,
        engine=engine,
        rank=0,
        sequence=sequence,
        acked=acked,
        dropped=dropped,
        unscored=unscored,
        monotonic_ns=monotonic_ns,
        rows=len(rows),
        probes=probes,
        complete=complete,
        finished=list(finished),
        started=list(started),
    )
    values = np.full((len(rows), probes), scores) if isinstance(scores, int | float) else np.array(scores)
    return Frame(header, np.array(list(rows), ROW), values.astype("<f4").reshape(len(rows), probes), np.empty(0, "<i4"))


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Monitors that tests start keep their audit log here, not where whoever runs the tests keeps theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def engines_start_warm() -> Iterator[None]:
    """Engines are forks of a process that has imported vLLM, see :mod:`tests.harness.warm`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_process, "launch", warm.launch)
        yield


@pytest.fixture(scope="session")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small bundle that tests read and do not touch, with ``min_tokens`` of 3."""
    return make_bundle(tmp_path_factory.mktemp("shared") / "bundle", min_tokens=3)


@pytest.fixture(scope="session")
def frame() -> Callable[..., Frame]:
    """:func:`make_frame`."""
    return make_frame


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    skips.refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    skips.refuse(report)
    return report
