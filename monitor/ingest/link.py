"""One engine as the monitor knows it, and what is due to it: a confirmation, a request to resync."""

from collections import Counter
from dataclasses import dataclass, field

from monitor.ingest.sequence import FrameSequence
from monitor.telemetry.stats import EngineState, EngineStatus
from monitor.wire.frames import FrameHeader, Hello
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
    silent: str = ""
    """Why nobody reads it although it serves, in words; empty: it is read, or is lost."""
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
    fault: str = ""
    """The last fault of its taps."""
    untapped: bool = False
    """Its taps are switched off."""
    _faults: list[int] = field(default_factory=lambda: [0, 0])
    """Faults that its exporter has told, and its core."""
    _faulted: float | None = None
    """When its taps failed last."""
    _steps: int | None = None
    """Steps that it had computed with its last HELLO."""
    _framed: bool = False
    """A frame has come since that."""
    _unframed_since: float | None = None
    """When it was first heard to compute without a frame."""
    invalid: Counter[str] = field(default_factory=Counter[str])
    """Probe to scores that were no finite numbers, and that were not told yet."""
    _acked: int = -1
    _next_ack: float = 0.0
    _next_resync: float = 0.0
    _next_invalid: float = 0.0

    @property
    def state(self) -> EngineState:
        """The engine's state, as the monitor sees it."""
        if self.lost:
            return "lost"
        if self.fits is None:
            return "pending"
        if not self.fits:
            return "refused"
        if self.silent:
            return "silent"
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

    def hear_hello(self, hello: Hello, now: float) -> int:
        """Take over how far an engine has come: one that computes sends a frame with each step.

        Returns:
            By how much its core's faults rose.
        """
        if hello.steps is not None:
            if self._steps is not None and hello.steps > self._steps and not self._framed:
                self._unframed_since = now if self._unframed_since is None else self._unframed_since
            self._steps, self._framed = hello.steps, False
        return self._count_faults(1, hello.faults)

    def hear_frame(self, header: FrameHeader, now: float) -> int:
        """Take over what an engine says of its taps.

        Returns:
            By how much its faults rose.
        """
        self._framed, self._unframed_since = True, None
        rose = self._count_faults(0, header.faults)
        # Of a monitor's first frame, nobody knows when they were.
        if rose and self.frames:
            self._faulted = now
        self.fault, self.untapped = header.fault, header.untapped
        return rose

    def lose(self) -> None:
        """The engine has been silent for too long: what it said of its progress is of no use any more."""
        self.lost, self.streams, self.silent = True, False, ""
        self._steps = self._unframed_since = self._faulted = None

    def why_silent(self, now: float, patience: float) -> str:
        """Why nobody reads the engine, in words; empty: it is read, as far as is known.

        Args:
            now: In seconds.
            patience: Seconds without frames that are no reason, and for which a fault that is over still is one.
        """
        if self.untapped:
            return f"its taps failed in every step and are switched off ({self.fault}); start it again"
        if self._unframed_since is not None and now - self._unframed_since > patience:
            return f"it computes, and no frame came for {patience:g} s"
        if self._faulted is not None and now - self._faulted < patience:
            return f"its taps failed, and go on ({self.fault}): what it computed meanwhile is unscored"
        return ""

    def _count_faults(self, part: int, count: int) -> int:
        rose = max(0, count - self._faults[part])
        self._faults[part] += rose
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

    def take_invalid(self, now: float, every: float) -> dict[str, int]:
        """The scores that were no finite numbers, by probe, if they are to be told now; empty if not.

        Args:
            now: In seconds.
            every: Seconds that must lie between two tellings.
        """
        if not self.invalid or now < self._next_invalid:
            return {}
        told, self._next_invalid = dict(self.invalid), now + every
        self.invalid.clear()
        return told

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
