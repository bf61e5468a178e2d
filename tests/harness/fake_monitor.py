"""A monitor without engines: a log, counters and a bundle, served on free ports."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from monitor.api import ApiServer
from monitor.events import Alert, EventLog, FramesLost, Recorded, Request
from monitor.telemetry.stats import EngineStatus, Stats, Status
from probes.bundle import Bundle


class FakeMonitor:
    """What the API reads, to be changed by a test."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.stats = Stats([probe.name for probe in bundle.manifest.probes])
        self.engines: list[EngineStatus] = []
        self.restart()

    def restart(self, keep: int = 64, limit: int = 64) -> None:
        """Begin another log, as a restarted monitor does."""
        self.events = EventLog(keep, limit, self._count_drop)

    def _count_drop(self) -> None:
        self.stats.events_dropped += 1

    def publish_alert(self, request_id: str = "chat-1", reason: str = "harm reached 1.5") -> Recorded:
        request = Request("engine-1", "tiny", request_id, f"{request_id}-a", 12)
        alert = Alert(request, "no-harm", "alert", "critical", "harmful_intent", 2.1, 1.5, 17, reason)
        return self.events.publish(alert)

    def publish_loss(self, frames: int = 1) -> Recorded:
        return self.events.publish(FramesLost("engine-1", "tiny", frames))

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
            await server.stop(grace_seconds=1.0)
