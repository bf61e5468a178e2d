"""``plumbob serve`` has the engine stream what its bundle's worker probes read."""

from pathlib import Path

import msgspec

from monitor.cli.serving import STREAM_BYTES, Plan
from monitor.engine.settings import Wanted
from tests.conftest import HIDDEN, make_bundle
from tests.workers.conftest import LAYERS


def test_the_engine_is_told_which_layers_to_stream(bundle):
    settings = Plan("demo", bundle.path, endpoint="ipc:///run/engine.sock").settings()
    # As the engine reads it: nothing is misspelt, nothing of a wrong type.
    wanted = msgspec.convert(msgspec.json.decode(msgspec.json.encode({**settings})), Wanted)
    assert wanted.stream == list(LAYERS)
    assert wanted.stream_rows == STREAM_BYTES // (4 * HIDDEN)
    assert wanted.bundle == str(bundle.path) and wanted.endpoint == "ipc:///run/engine.sock"


def test_without_worker_probes_nothing_is_streamed(tmp_path: Path):
    plain = make_bundle(tmp_path / "plain")
    assert not {"stream", "stream_rows"} & Plan("demo", plain.path).settings().keys()
