"""A monitor without engines: a log, counters and a bundle, served on free ports."""

from collections.abc import Callable

import pytest

from probes.bundle import Bundle
from tests.harness.fake_monitor import FakeMonitor


@pytest.fixture
def monitor(tiny_bundle: Callable[..., Bundle]) -> FakeMonitor:
    return FakeMonitor(tiny_bundle())
