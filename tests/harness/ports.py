"""Free ports, drawn without a race between tests that run at the same time."""

import fcntl
import itertools
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

FIRST, LAST = 18_000, 28_000
"""Below the ports that Linux gives to clients, so that no connection takes one between its drawing and its use."""

_locks: list[Any] = []
_candidates = itertools.cycle(range(FIRST, LAST))
# Where this process begins: others of the machine begin elsewhere.
_candidates = itertools.islice(_candidates, os.getpid() * 37 % (LAST - FIRST), None)


def free_port() -> int:
    """Draw a port on which nothing listens; no other test of this machine draws it while this process lives."""
    folder = Path(tempfile.gettempdir()) / "plumbob-test-ports"
    folder.mkdir(exist_ok=True)
    for port in itertools.islice(_candidates, LAST - FIRST):
        lock = (folder / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        # Held until the process ends.
        _locks.append(lock)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError(f"no port from {FIRST} to {LAST} is free")
