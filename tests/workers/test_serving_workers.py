"""An engine streams what its bundle's worker probes read, and ``plumbob serve`` gives it room for that."""

from pathlib import Path

import msgspec
import pytest

from monitor.engine.settings import ENVIRONMENT, Wanted, inherited, take_over
from monitor.service.config import MonitorConfig
from monitor.supervisor.config import ServeConfig
from monitor.supervisor.engine_command import STREAM_BYTES, additional_config
from tests.harness.bundles import HIDDEN, make_bundle
from tests.workers.conftest import LAYERS


@pytest.mark.parametrize(("written", "streamed"), [([], list(LAYERS)), ([1, LAYERS[0]], [1, *LAYERS])])
def test_what_worker_probes_read_is_streamed_whoever_starts_the_engine(bundle, monkeypatch, written, streamed):
    monkeypatch.setenv(ENVIRONMENT, "")
    key = take_over(Wanted(str(bundle.path), stream=written), bundle)
    assert key["stream"] == inherited().stream == streamed


def served(bundle: Path) -> dict:
    monitor = MonitorConfig(bundle=bundle, endpoint="ipc:///run/engine.sock")
    return additional_config(ServeConfig(model="demo", monitor=monitor))


def test_a_served_engine_is_given_room_for_workers_that_fall_behind(bundle):
    settings = served(bundle.path)
    # As the engine reads it: nothing is misspelt, nothing of a wrong type.
    wanted = msgspec.convert(msgspec.json.decode(msgspec.json.encode({**settings})), Wanted)
    assert wanted.stream_rows == STREAM_BYTES // (4 * HIDDEN)
    assert wanted.bundle == str(bundle.path) and wanted.endpoint == "ipc:///run/engine.sock"


def test_without_worker_probes_nothing_is_streamed(tmp_path: Path, monkeypatch):
    plain = make_bundle(tmp_path / "plain")
    assert not {"stream", "stream_rows"} & served(plain.path).keys()
    monkeypatch.setenv(ENVIRONMENT, "")
    take_over(Wanted(str(plain.path)), plain)
    assert inherited().stream == []
