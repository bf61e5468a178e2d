"""One engine as the monitor knows it, and what is due to it: a confirmation, a request to resync."""

from dataclasses import dataclass, field

from monitor.ingest.sequence import FrameSequence
from monitor.telemetry.stats import EngineState, EngineStatus
from monitor.wire.frames import FrameHeader
from probes.bundle.canaries import TOLERANCE


@dataclass(slots=True)
class Link:
    """One engine. Times are of the monotonic clock, in seconds."""

    engine: str
    last_seen: float
    """When its last message arrived."""
    model: str = ""
    vllm: str = ""
    fits: bool | None = None
    """True where it scores with the monitor's bundle; ``None`` before its first HELLO."""
    drift: float | None = None
    """The largest that its self-test found; ``None``: it was not tested, or not since its weights changed."""
    shadow: bool = False
    """True where nothing may be enforced on its scores."""
    gates: int | None = None
    """Gates that may be armed at once; ``None``: it does not say."""
    lost: bool = False
    """True where it has been silent for too long."""
    exporter: bytes | None = None
    """Routing id of who sends its frames."""
    sequence: FrameSequence = field(default_factory=FrameSequence)
    frames: int = 0
    dropped: int = 0
    unscored: int = 0
    lag_seconds: float | None = None
    unread: bool = False
    """True where its latest frame was skipped."""
    resync_wanted: bool = False
    streams: bool = False
    """True where it was ordered to stream what probe workers read."""
    worker_unscored: int = 0
    """Tokens that probe workers did not score, each counted once a probe."""
    _acked: int = -1
    _next_ack: float = 0.0
    _next_resync: float = 0.0

    @property
    def state(self) -> EngineState:
        """The engine's state, as the monitor sees it."""
        if self.lost:
            return "lost"
        if self.fits is None:
            return "pending"
        if not self.fits:
            return "refused"
        return "shadow" if self.shadow else "connected"

    @property
    def held(self) -> str:
        """Why every rule is held to shadow for this engine, in words; empty where none is."""
        if not self.shadow:
            return ""
        if self.drift is None:
            return "its weights have changed since its self-test"
        return f"its self-test found a drift of {self.drift:.3f} ({TOLERANCE} is tolerated)"

    def count(self, header: FrameHeader) -> tuple[int, int]:
        """Take over an engine's own counters.

        Returns:
            By how much its dropped frames and its unscored rows rose.
        """
        rose = max(0, header.dropped - self.dropped), max(0, header.unscored - self.unscored)
        self.dropped += rose[0]
        self.unscored += rose[1]
        return rose

    def take_ack(self, now: float, every: float) -> int | None:
        """The sequence number to confirm now, or ``None``.

        Args:
            now: In seconds.
            every: Seconds that must lie between two confirmations.
        """
        if self.sequence.last <= self._acked or now < self._next_ack:
            return None
        self._acked, self._next_ack = self.sequence.last, now + every
        return self._acked

    def take_resync(self, now: float, every: float) -> bool:
        """Decide if a resync is due now.

        Args:
            now: In seconds.
            every: Seconds that must lie between two of them.
        """
        if not self.resync_wanted or now < self._next_resync:
            return False
        self.resync_wanted, self._next_resync = False, now + every
        return True

    def status(self, now: float, requests_active: int) -> EngineStatus:
        """A snapshot."""
        return EngineStatus(
            engine=self.engine,
            model=self.model,
            vllm=self.vllm,
            state=self.state,
            frames=self.frames,
            lost=self.sequence.lost,
            dropped=self.dropped,
            requests_active=requests_active,
            last_seen_seconds=max(0.0, now - self.last_seen),
            lag_seconds=self.lag_seconds,
            drift=self.drift,
            worker_unscored=self.worker_unscored,
            unread=self.unread,
        )
