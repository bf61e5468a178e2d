"""Start engines from a process that has imported vLLM already.

Importing vLLM takes nine seconds of a core, and an engine on a CPU does it three times: for its front, its core and its
worker. Here a fork server imports it once; what it starts, and what that starts, are forks, ready in three seconds.
Servers (``plumbob serve``, vLLM's own) are started cold, as operators start them.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import IO, Any

from monitor.offline.engine_process import launch as cold

READ_AT_IMPORT = ("LD_PRELOAD", "OMP_NUM_THREADS", "PYTHONPATH", "TRITON_INTERPRET")
"""Environment variables that are read while vLLM is imported: a process that has others cannot be a fork."""


def context() -> Any:
    """The fork server, as a context of ``multiprocessing``."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.harness.preloaded"])
    return made


class Process:
    """A Python command in a fork, with what callers use of :class:`subprocess.Popen`.

    Args:
        command: ``sys.executable``, then ``-m`` and a module, or a script; and its arguments.
        log: Where its stderr goes.
        environment: All variables that it has.
    """

    def __init__(self, command: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> None:
        executable, *arguments = command
        assert executable == sys.executable
        self.args = command
        read_in, write_in = os.pipe()
        read_out, write_out = os.pipe()
        # The fork server passes connections on as the descriptors that they are.
        theirs = [
            Connection(read_in, writable=False),
            Connection(write_out, readable=False),
            Connection(os.dup(log.fileno()), readable=False),
        ]
        self._process = context().Process(target=_run, args=(*theirs, arguments, dict(environment)))
        self._process.start()
        for connection in theirs:
            connection.close()
        self.stdin, self.stdout = os.fdopen(write_in, "wb"), os.fdopen(read_out, "rb")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def launch(command: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> Any:
    """Stand in for :func:`monitor.offline.engine_process.launch`, which starts the same process cold."""
    if any(environment.get(name) != os.environ.get(name) for name in READ_AT_IMPORT):
        return cold(command, log, environment)
    return Process(command, log, environment)


def _run(stdin: Connection, stdout: Connection, log: Connection, arguments: list[str], environment: dict) -> None:
    assert "vllm" in sys.modules, "the fork server has not imported vLLM"
    os.setsid()
    # The fork server ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, connection in enumerate((stdin, stdout, log)):
        os.dup2(connection.fileno(), number)
        connection.close()
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    os.environ.clear()
    os.environ.update(environment)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
