"""One probe worker's process, as the monitor holds it: nothing here waits."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from monitor.workers.messages import RECEIVE_BYTES
from probes.bundle import Bundle

_ONE_CORE: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""A worker is for one core, unless the environment says otherwise: the others are the engine's."""


class WorkerProcess:
    """A process of its own, not a fork: it has none of the monitor's threads, sockets and state.

    Args:
        readers: ``MODULE:FUNCTION``, see :mod:`monitor.workers.worker`.
        bundle: What it reads with, as the monitor has read it.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, readers: str, bundle: Bundle) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.setblocking(False)
            command = [sys.executable, "-m", "monitor.workers.worker", str(theirs.fileno()), readers]
            self._process = subprocess.Popen(
                [*command, str(bundle.path), bundle.digest],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # A monitor.py in the working directory is not ours.
                env={**_ONE_CORE, **os.environ, "PYTHONSAFEPATH": "1"},
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def fileno(self) -> int:
        """Becomes readable when there is something to receive, or the worker has ended."""
        return self._socket.fileno()

    def send(self, packet: bytes) -> bool:
        """Send a packet; false where the kernel's buffer is full, or the worker has ended."""
        try:
            self._socket.send(packet)
        except OSError:
            return False
        return True

    def receive(self) -> Sequence[bytes] | None:
        """The packets that have arrived; ``None`` where none ever will, since the worker has ended."""
        packets: list[bytes] = []
        while True:
            try:
                packet = self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return packets
            except ConnectionError:
                packet = b""
            if not packet:
                # What arrived before the end counts; the end is found again by the next call.
                return packets or None
            packets.append(packet)

    def kill(self) -> None:
        """End it at once. To be called once; :meth:`reap` says when it is over."""
        self._socket.close()
        self._process.kill()

    def dismiss(self) -> None:
        """Let it end by itself."""
        self._socket.close()

    def reap(self, seconds: float = 0.0) -> int | None:
        """Its exit code, once it has ended, negative for a signal.

        Args:
            seconds: How long to wait for it at most.
        """
        if not seconds:
            return self._process.poll()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
