"""The monitor beside a benchmark's engine: the real one, in a process of its own, with a mode for each arm.

``python -m monitor.bench.monitor_process BUNDLE ENDPOINT`` reads a :class:`Mode` from each line of stdin (``null``: go
on as before) and answers with :class:`Counters`; it ends with stdin. :class:`MonitorProcess` is the side that asks.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import msgspec

from monitor.bench.bundle import idle_policy, steering_policy, streamed_layer
from monitor.engine.vllm.installed import SAFE_PATH
from monitor.errors import EngineError
from monitor.ingest import Arrival, LocalSource, Source, core_identity
from monitor.service.monitor import Monitor
from monitor.wire.codec import encode_order
from monitor.wire.frames import Frame, Hello, StateBlock
from monitor.wire.orders import Stream
from monitor.wire.ring import StateReader
from probes.bundle import Bundle, load_bundle


class Mode(msgspec.Struct, frozen=True):
    """Mode of the monitor."""

    listen: bool = True
    """Run a monitor; otherwise there is none."""
    steer: bool = False
    """Steer every response, from its first rows on."""
    stream: bool = False
    """Have every row of one layer's activations streamed, and read it."""
    delay: float = 0.0
    """Seconds that it sleeps over each message, as one would that is overwhelmed."""


class Counters(msgspec.Struct, frozen=True):
    """Counts of what a monitor has seen since it was started."""

    sent: int = 0
    """Frames that the engine has numbered since it started, as the latest one that was read says."""
    frames: int = 0
    """Read."""
    lost: int = 0
    """Sequence numbers that never arrived."""
    steered: int = 0
    """Rows downstream of steering."""
    streamed: int = 0
    """Rows of activations that were read."""

    def __add__(self, other: "Counters") -> "Counters":
        """Add the counts of two runs, each :meth:`since` its beginning."""
        return Counters(*map(sum, zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)))

    def then(self, later: "Counters") -> "Counters":
        """Join the counts of two monitors of one engine, one after the other."""
        return msgspec.structs.replace(self + later, sent=max(self.sent, later.sent))

    def since(self, other: "Counters") -> "Counters":
        """Count what was seen after ``other``."""
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
        return Counters(*(mine - theirs for mine, theirs in pairs))


class MonitorProcess:
    """The monitor's process; a context manager.

    Args:
        bundle: Directory of the bundle that the engine scores with.
        endpoint: Where they meet.
        log: Where its output goes.
    """

    def __init__(self, bundle: Path, endpoint: str, log: Path) -> None:
        self._command = [sys.executable, "-m", "monitor.bench.monitor_process", str(bundle), endpoint]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._past, self._seen = Counters(), Counters()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()

    def set(self, mode: Mode) -> None:
        """Switch the monitor to a mode; starts the process where there is none."""
        if self._process is None:
            with self._log.open("ab") as log:
                pipe = subprocess.PIPE
                self._process = subprocess.Popen(
                    self._command, stdin=pipe, stdout=pipe, stderr=log, env={**os.environ, **SAFE_PATH}
                )
        self._ask(mode)

    def counters(self) -> Counters:
        """Count what it has seen, all processes of it together."""
        if self._process is not None:
            self._ask(None)
        return self._past.then(self._seen)

    def kill(self) -> None:
        """End the process as a crash would."""
        if (process := self._process) is not None:
            self._process = None
            process.kill()
            process.communicate()
            self._past, self._seen = self._past.then(self._seen), Counters()

    def _ask(self, mode: Mode | None) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("the monitor was not started")
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(mode) + b"\n")
            process.stdin.flush()
        if not (line := process.stdout.readline()):
            raise EngineError(f"The monitor ended before its time: {self._log.read_text(errors='replace').strip()}")
        self._seen = msgspec.json.decode(line, type=Counters)


class _RelayedSource:
    """A source that counts messages, and slows them down, on their way to the monitor.

    Args:
        source: Of the messages.
        layer: Of the activations that are streamed in that mode.
    """

    def __init__(self, source: Source, layer: int) -> None:
        self._source, self._layer = source, layer
        self._mode = Mode()
        self._engines: set[str] = set()
        self._rings: dict[str, StateReader] = {}
        self.sent = 0
        """Frames that the engine had numbered by the latest one."""
        self.streamed = 0
        """Rows of activations that were read."""

    async def __aiter__(self) -> AsyncIterator[Arrival]:
        async for arrival in self._source:
            if self._mode.delay:
                await asyncio.sleep(self._mode.delay)
            match arrival.message:
                case Hello(engine=engine) if engine not in self._engines:
                    self._engines.add(engine)
                    self._order(engine)
                case Frame(header=header):
                    self.sent = header.sequence + 1
                    self.streamed += sum(map(self._read, header.states))
                case _:
                    pass
            yield arrival

    def switch(self, mode: Mode) -> None:
        """Switch to a mode."""
        stream, self._mode = self._mode.stream, mode
        if mode.stream != stream:
            for engine in self._engines:
                self._order(engine)

    def send(self, identity: bytes, parts: list[bytes]) -> bool:
        return self._source.send(identity, parts)

    def close(self) -> None:
        self._source.close()

    def _order(self, engine: str) -> None:
        order = Stream(self._layer, "all" if self._mode.stream else "none")
        self._source.send(core_identity(engine), encode_order(order))

    def _read(self, block: StateBlock) -> int:
        if block.path not in self._rings:
            self._rings[block.path] = StateReader(Path(block.path))
        rows = self._rings[block.path].read(block.start, block.rows)
        return 0 if rows is None else len(rows)


class _Listener:
    """An endpoint at which a monitor listens, or none does.

    Args:
        bundle: Engines score with it.
        endpoint: Where engines find the monitor.
    """

    def __init__(self, bundle: Bundle, endpoint: str) -> None:
        self._bundle, self._endpoint = bundle, endpoint
        self._monitor: Monitor | None = None
        self._relayed: _RelayedSource | None = None
        self._running: asyncio.Task[None] | None = None
        self._past = Counters()

    @property
    def counters(self) -> Counters:
        """Counts of all monitors that have listened here."""
        return self._past.then(self._present())

    async def switch(self, mode: Mode) -> None:
        """Switch the monitor to a mode, or end it where the mode has none."""
        if mode.listen and self._monitor is None:
            self._start()
        if not mode.listen:
            await self._stop()
        if self._monitor is not None and self._relayed is not None:
            self._monitor.change_policy(steering_policy(self._bundle) if mode.steer else idle_policy())
            self._relayed.switch(mode)

    def _start(self) -> None:
        self._relayed = _RelayedSource(LocalSource(self._endpoint), streamed_layer(self._bundle))
        self._monitor = Monitor(self._bundle, idle_policy(), self._relayed)
        self._running = asyncio.create_task(self._monitor.run())

    async def _stop(self) -> None:
        if self._monitor is None or self._running is None:
            return
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        self._past = self._past.then(self._present())
        self._monitor.close()
        self._monitor = self._running = self._relayed = None

    def _present(self) -> Counters:
        if self._monitor is None or self._relayed is None:
            return Counters()
        stats = self._monitor.stats
        return Counters(
            sent=self._relayed.sent,
            frames=stats.frames_received.total(),
            lost=stats.frames_lost.total(),
            steered=stats.tokens_steered.total(),
            streamed=self._relayed.streamed,
        )


async def _serve(bundle: Path, endpoint: str) -> None:
    station = _Listener(load_bundle(bundle), endpoint)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        if (mode := msgspec.json.decode(line, type=Mode | None)) is not None:
            await station.switch(mode)
        sys.stdout.buffer.write(msgspec.json.encode(station.counters) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2]))
