"""One process that lives and dies with this one; its output is passed on, and its end remembered."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Final

from monitor.engine.vllm.installed import SAFE_PATH
from monitor.supervisor.failure import error_in, reason_in

_TAIL_BYTES: Final = 64 << 10
"""The end of its output that is kept to say why it ended: several tracebacks."""
_PIPE_BYTES: Final = 64 << 10
_DRAIN_SECONDS: Final = 2.0
"""Seconds for the rest of its output when it has ended: descendants may hold the pipe."""
_PR_SET_PDEATHSIG: Final = 1


class Child:
    """A process in a session of its own, so that Ctrl-C reaches only the one who started it.

    Args:
        command: What to run.
        environment: All of its environment.
        log: Where its output goes; ``None``: this process's stderr.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes] | None = None) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
            # A pipe is no terminal, and would have Python keep what it prints for later.
            env={"PYTHONUNBUFFERED": "1", **environment, **SAFE_PATH},
        )
        self._tail = b""
        self._forwarding = threading.Thread(target=self._forward, args=(log,), name="plumbob-output", daemon=True)
        self._forwarding.start()

    @property
    def code(self) -> int | None:
        """Its exit code; ``None`` while it runs."""
        return self.process.poll()

    @property
    def reason(self) -> str:
        """Why it ended, in its own words, or by which signal; to be asked when it has."""
        self._forwarding.join(_DRAIN_SECONDS)
        code = self.process.returncode
        if code is not None and code < 0:
            killed = "; it may have run out of memory" if code == -signal.SIGKILL else ""
            return f"ended by {signal.Signals(-code).name}{killed}"
        return reason_in(self._tail.decode(errors="replace")) or f"ended with code {code} and said nothing"

    @property
    def last_error(self) -> str:
        """The last error in what it has written so far; empty where there is none."""
        return error_in(self._tail.decode(errors="replace"))

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.code is None:
            self.process.send_signal(number)

    def stop(self, seconds: float) -> None:
        """Terminate it, and kill its session when it does not end."""
        try:
            if self.code is None:
                # Not SIGINT, which children of a job in the background ignore.
                self.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(seconds)
        finally:
            # Its own children (the engine core, workers) may outlive it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self._forwarding.join(_DRAIN_SECONDS)

    def _forward(self, log: IO[bytes] | None) -> None:
        """Pass on what it writes, to its last byte; a place that takes no more never holds it up."""
        pipe = self.process.stdout
        target = log if log is not None else sys.stderr.buffer
        if pipe is None:
            return
        with pipe:
            while chunk := os.read(pipe.fileno(), _PIPE_BYTES):
                self._tail = (self._tail + chunk)[-_TAIL_BYTES:]
                with contextlib.suppress(OSError, ValueError):
                    target.write(chunk)
                    target.flush()


def _end_with_parent() -> None:
    """Ask the kernel to terminate this process when its parent is killed: nobody else would be left to do it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
