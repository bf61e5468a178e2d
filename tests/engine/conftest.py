"""Real engines on the demo model, and the monitor's end of their sockets."""

from collections.abc import Iterator

import pytest

from probes.bundle import Bundle
from probes.data.concepts import load_benign
from tests.harness.engines import random_bundle
from tests.harness.wire import Wire


@pytest.fixture(scope="session")
def bundle(model_path, source, tmp_path_factory) -> Bundle:
    """Random probes that never fire, and two random steering vectors."""
    return random_bundle(tmp_path_factory.mktemp("bundle") / "random", model_path, source.markers, threshold=1e9)


@pytest.fixture(scope="session")
def prompts(source) -> list[list[int]]:
    """Twenty benign requests of many lengths and topics, as tokens."""
    encoded = [source.encode(request.messages, respond=True) for request in load_benign()[:60]]
    return sorted(encoded, key=len)[5:45:2]


@pytest.fixture(scope="module")
def wire(tmp_path_factory) -> Iterator[Wire]:
    wire = Wire(f"ipc://{tmp_path_factory.mktemp('wire')}/engine.sock")
    yield wire
    wire.close()
