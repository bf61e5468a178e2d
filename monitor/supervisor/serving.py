"""A tapped server and its monitor, as two child processes that live and die together.

Everything that can be wrong is checked before anything is started. The children have sessions of their own, so that
Ctrl-C reaches this process alone, which then stops vLLM first (requests in flight end) and the monitor last (it sees
them end). A monitor that dies is started again: serving goes on meanwhile, and the engine counts what is lost. One that
says that it cannot start ends it all, unless the configuration has serving go on without it. SIGHUP is passed on to the
monitor, which reads its policy again.

The monitor gets its section of the configuration in its environment, as a user would write it: nothing of it is in the
process list or on a disk, and nothing is left behind by whatever ends this process.
"""

import contextlib
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Final, Self

from monitor.configuration import as_variables, without_variables
from monitor.errors import EngineError
from monitor.service.hangup import Terminal
from monitor.supervisor.checks import Checked, check_serve
from monitor.supervisor.child import Child
from monitor.supervisor.config import ServeConfig
from monitor.supervisor.engine_command import engine_command, engine_environment
from monitor.supervisor.revival import REFUSED, Revival

STOP_SECONDS: Final = 20.0
"""Seconds for vLLM to end its requests."""
START_SECONDS: Final = 900.0
"""Seconds until a server is ready, at most; compiling a large model takes minutes."""
_MONITOR_START_SECONDS: Final = 30.0
_ANSWER_SECONDS: Final = 2.0
_MONITOR_SETTLED_SECONDS: Final = 20.0
"""A monitor that has run for so long had started."""
_MONITOR_STOP_SECONDS: Final = 5.0
HELLO_SECONDS: Final = 15.0
"""Seconds, once vLLM answers, until the monitor has heard its engine, at most; it says HELLO every second."""


class Serving:
    """A server and its monitor, running; a context manager.

    Args:
        config: What to serve, and how it is monitored.
        log: Where the output of both goes; ``None``: to this process's stderr.
        report: Called with words for what is happening.
    """

    def __init__(
        self, config: ServeConfig, log: Path | None = None, report: Callable[[str], None] = lambda _: None
    ) -> None:
        self.config = config
        self._report = report
        self._log: IO[bytes] | None = None
        self._log_path = log
        self._engine = uuid.uuid4().hex[:12]
        self.monitor: Child | None = None
        self.server: Child | None = None
        self._revival, self._monitor_began = Revival(), 0.0
        self._mourned: Child | None = None
        """The monitor whose end was told."""

    def __enter__(self) -> Self:
        checked = check_serve(self.config)
        self._report(f"roles: {checked.roles}")
        if self._log_path is not None:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log = self._log_path.open("wb")
        try:
            self.start_monitor()
            self._start_server(checked)
            self._wait_ready()
            self._await_engine()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_monitor(self) -> None:
        """Start the monitor, and wait until it serves.

        Raises:
            EngineError: It ended instead, or was not ready in time.
        """
        config = self.config.monitor
        environment = without_variables(os.environ) | as_variables(config, ("monitor",))
        self.monitor = self._spawn([sys.executable, "-m", "monitor.cli", "monitor"], environment)
        self._monitor_began = time.monotonic()
        deadline = self._monitor_began + _MONITOR_START_SECONDS
        while not _listening(config.grpc_host, config.grpc_port):
            if self.monitor.code is not None:
                raise EngineError(f"The monitor did not start: {self.monitor.reason}.", self._where())
            if time.monotonic() > deadline:
                raise EngineError(f"The monitor was not ready after {_MONITOR_START_SECONDS:.0f} s.", self._where())
            time.sleep(0.05)
        self._report("monitor ready")

    def restart_monitor(self, policy: Path | None) -> None:
        """Replace the monitor by one with another policy; serving goes on."""
        if self.monitor is not None:
            self.monitor.stop(_MONITOR_STOP_SECONDS)
        monitor = self.config.monitor.model_copy(update={"policy": policy})
        self.config = self.config.model_copy(update={"monitor": monitor})
        self.start_monitor()

    @contextlib.contextmanager
    def passing_hangups(self) -> Generator[None]:
        """Pass SIGHUP on to the monitor, but where the terminal is gone; entered before readiness is announced."""
        terminal, before = Terminal(), signal.getsignal(signal.SIGHUP)

        def hang_up(number: int, frame: FrameType | None) -> None:
            if terminal.gone and callable(before):
                before(number, frame)
            # One that is being started again reads the file anyway.
            elif self.monitor is not None:
                self.monitor.signal(number)

        signal.signal(signal.SIGHUP, hang_up)
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, before)

    def watch(self) -> int:
        """Wait until the server ends, starting the monitor again when it dies.

        Returns:
            The server's exit code.
        """
        if self.server is None:
            raise RuntimeError("the server was not started")
        while (code := self.server.code) is None:
            self.revive_monitor()
            time.sleep(0.5)
        return code

    def revive_monitor(self) -> bool:
        """Start the monitor again if it has died, and it is time to; whether it did.

        Raises:
            EngineError: It says that it cannot start, whenever it is tried, and nothing is to be served without it.
        """
        if (monitor := self.monitor) is None:
            return False
        soon = time.monotonic() - self._monitor_began < _MONITOR_SETTLED_SECONDS
        if monitor.code is None:
            if not soon:
                self._revival = Revival()
            return False
        if monitor is not self._mourned:
            self._mourned = monitor
            self._report(f"the monitor ended with code {monitor.code}: {monitor.reason}; starting it again")
            if soon and (self._revival.attempts or monitor.code == REFUSED):
                # Its port may have answered all the same: another process has it now.
                self._not_revived(f"The monitor ended: {monitor.reason}", monitor.code)
        if time.monotonic() < self._revival.due:
            return False
        self._revival.attempts += 1
        try:
            self.start_monitor()
        except (EngineError, OSError) as error:
            self._mourned = self.monitor
            self._not_revived(error.message if isinstance(error, EngineError) else str(error), self.monitor.code)
            return False
        return True

    def _not_revived(self, why: str, code: int | None) -> None:
        """Take an attempt that failed: end, or tell it and wait."""
        enough, why = self._revival.failed(code), why.rstrip(".")
        if enough and self.config.monitor_required:
            raise EngineError(
                f"{why}. Nothing would be monitored, so serving ends.",
                "Mend that and start again; with --no-monitor-required, serving goes on without a monitor.",
            )
        if self._revival.tells(why):
            self._report(f"{why}; serving goes on, and NOTHING IS MONITORED until it starts; trying again")

    def stop(self) -> None:
        """Stop the server, then the monitor; safe to call twice."""
        # A stack, so that a second Ctrl-C while vLLM ends leaves nothing behind.
        with contextlib.ExitStack() as stack:
            if self._log is not None:
                stack.callback(self._log.close)
            for child, seconds in ((self.monitor, _MONITOR_STOP_SECONDS), (self.server, STOP_SECONDS)):
                if child is not None:
                    stack.callback(child.stop, seconds)

    def _start_server(self, checked: Checked) -> None:
        command = engine_command(self.config, checked.model, checked.said, self._engine)
        self.server = self._spawn(command, engine_environment(self.config))

    def _wait_ready(self) -> None:
        if self.server is None:
            raise RuntimeError("the server was not started")
        self._report("starting vLLM" + (" (eager)" if self.config.eager else " and compiling the model"))
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(self.config.url):
            if self.server.code is not None:
                raise EngineError(f"vLLM did not start: {self.server.reason}.", self._where())
            if time.monotonic() > deadline:
                raise EngineError(f"vLLM was not ready after {START_SECONDS:.0f} s.", self._where())
            time.sleep(0.25)
        self._report("vLLM ready")

    def _await_engine(self) -> None:
        """Wait until the monitor hears the engine.

        Raises:
            EngineError: It does not: whatever the reason is, the server would serve unread.
        """
        deadline = time.monotonic() + HELLO_SECONDS
        while not self._heard():
            if self.server is not None and self.server.code is not None:
                raise EngineError(f"vLLM ended: {self.server.reason}.", self._where())
            if time.monotonic() > deadline:
                if self.monitor is not None and self.monitor.code is not None and not self.config.monitor_required:
                    # It is serving without a monitor that was asked for.
                    return
                said = self.server.last_error if self.server is not None else ""
                raise EngineError(
                    f"vLLM serves unread, and is stopped: {HELLO_SECONDS:.0f} s after it was ready, its engine has not "
                    f"said to the monitor that it is there{f'; its last error: {said}' if said else ''}.",
                    self._where() or "plumbob doctor says whether vLLM sees the plugin.",
                )
            self.revive_monitor()
            time.sleep(0.25)
        self._report("engine heard")

    def _heard(self) -> bool:
        """Tell whether the engine that was started here is connected; others may use the endpoint, too."""
        import grpc

        from monitor.api.client import engines_of

        try:
            return self._engine in engines_of(self.config.monitor.grpc_address, _ANSWER_SECONDS)
        except grpc.RpcError:
            return False

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        return Child(command, environment, self._log)

    def _where(self) -> str:
        return f"Its output is in {self._log_path}." if self._log_path else ""


def _listening(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=0.2).close()
    except OSError:
        return False
    return True


def _healthy(url: str) -> bool:
    try:
        # Not through a proxy of the environment: the server is our own child.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=1) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
