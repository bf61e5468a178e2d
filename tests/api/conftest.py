"""A monitor without engines: a log, counters and a bundle, served on free ports."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.api import ApiServer
from monitor.events import Alert, EventLog, FramesLost, Request
from monitor.stats import EngineStatus, Stats, Status
from probes.aggregate import Aggregate
from probes.bundle import Bundle, Calibration, Evaluation, ModelIdentity, Probe, Vector, save_bundle
from probes.roles import Markers

REQUEST = Request("engine-1", "tiny", "chatcmpl-1", "chatcmpl-1-a", 12)


def probe(name: str, layer: int) -> Probe:
    return Probe(
        name,
        layer,
        ["user", "assistant"],
        1.5,
        Aggregate(half_life=8.0, min_tokens=3),
        Calibration(0.01, 400, 4, (0.003, 0.025)),
        Evaluation(pairs=50, auroc=0.97, auroc_text=0.81, recall=0.6, paired=0.98),
    )


def alert(request_id: str = "chatcmpl-1", reason: str = "deception 2.1 reached 1.5") -> Alert:
    request = Request("engine-1", "tiny", request_id, f"{request_id}-a", 12)
    return Alert(request, "lies", "alert", "critical", "deception", 2.1, 1.5, 17, reason)


def frames_lost(frames: int = 1) -> FramesLost:
    return FramesLost("engine-1", "tiny", frames)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    ones = np.ones(8, np.float32)
    return save_bundle(
        tmp_path_factory.mktemp("bundle") / "tiny",
        version="0.0.0",
        created="2026-01-01T00:00:00Z",
        model=ModelIdentity("tiny", 8, 4, {"config": "c"}),
        markers=Markers(),
        probes=[(probe("deception", 1), ones, 0.0), (probe("harm", 2), ones, 0.0)],
        vectors=[(Vector("honesty", 2, 30.5), ones)],
    )


@dataclass
class Monitor:
    """What the API reads, to be changed by a test."""

    bundle: Bundle
    stats: Stats = field(init=False)
    events: EventLog = field(init=False)
    engines: list[EngineStatus] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stats = Stats([probe.name for probe in self.bundle.manifest.probes])
        self.restart()

    def restart(self, keep: int = 64, limit: int = 16) -> None:
        self.events = EventLog(keep, limit, self._count_drop)

    def _count_drop(self) -> None:
        self.stats.events_dropped += 1

    def status(self) -> Status:
        return Status(
            started=datetime(2026, 1, 2, tzinfo=UTC),
            bundle_path=str(self.bundle.path),
            bundle_digest=self.bundle.digest,
            policy_name="policy.yaml",
            policy_digest="p" * 64,
            engines=tuple(self.engines),
        )

    @asynccontextmanager
    async def serve(self, port: int = 0, **limits: Any) -> AsyncIterator[ApiServer]:
        server = await ApiServer.start(self.events, self.status, self.bundle, port=port, **limits)
        try:
            yield server
        finally:
            await server.stop(1.0)


@pytest.fixture
def monitor(bundle: Bundle) -> Monitor:
    return Monitor(bundle)


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    """Wait until a condition holds."""
