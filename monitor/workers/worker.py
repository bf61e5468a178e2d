"""A probe worker: ``python -m monitor.workers.worker DESCRIPTOR READERS BUNDLE DIGEST``, started by the monitor.

It ends when the monitor does: its socket tells so. READERS is ``MODULE:FUNCTION``; the function takes the bundle and
returns its worker probes, each with what reads for it.
"""

import importlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from monitor.workers.messages import RECEIVE_BYTES, Ready, decode_job, encode
from monitor.workers.scoring import Scoring, Taken
from probes.bundle import Bundle, Probe, load_bundle
from probes.errors import BundleError, PlumbobError
from probes.scoring.token_reader import TokenReader

MERGE_ROWS: Final = 4096
"""Rows of waiting jobs that are scored together, about: as float32 states of width 4096 they are 64 MiB a layer."""
SWEEP_SECONDS: Final = 10.0

Readers = Sequence[tuple[Probe, TokenReader[Any]]]

logger = logging.getLogger(__name__)


def of_bundle(bundle: Bundle) -> Readers:
    """The worker probes of a bundle, as they are in it."""
    return [(worker.probe, worker.reader) for worker in bundle.worker_probes]


def main(arguments: Sequence[str]) -> None:
    """Answer jobs until the monitor is gone."""
    # Ctrl-C in the monitor's terminal is for the monitor, which lets this process end in its own time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    descriptor, readers, path, digest = arguments
    with socket.socket(fileno=int(descriptor)) as connection:
        # Not for what the probes may start.
        connection.set_inheritable(False)
        try:
            bundle = load_bundle(Path(path))
            if bundle.digest != digest:
                # Whoever vouched for the one that the monitor reads has not vouched for this one.
                raise BundleError(f"Bundle {path} has changed since the monitor read it.", "Restart the monitor.")
            module, _, name = readers.partition(":")
            load: Callable[[Bundle], Readers] = getattr(importlib.import_module(module), name)
            serve(connection, load(bundle))
        except PlumbobError as error:
            logger.error("%s", error)
            sys.exit(2)


def serve(connection: socket.socket, readers: Readers) -> None:
    """Answer jobs until the other end is closed.

    Args:
        connection: To the monitor, ``SOCK_SEQPACKET``.
        readers: Each probe and what reads for it.
    """
    scoring = Scoring(readers)
    swept = time.monotonic()
    try:
        connection.sendall(encode(Ready([probe.name for probe, _ in readers])))
        while True:
            if time.monotonic() - swept > SWEEP_SECONDS:
                scoring.sweep()
                swept = time.monotonic()
            connection.settimeout(SWEEP_SECONDS)
            try:
                packet = connection.recv(RECEIVE_BYTES)
            except TimeoutError:
                continue
            if not packet:
                return
            taken = _take_waiting(connection, scoring, packet)
            # However long the monitor takes to read it: what waits for it is bounded on its side.
            connection.settimeout(None)
            for answer in scoring.score(taken):
                connection.sendall(encode(answer))
    except ConnectionError:
        return


def _take_waiting(connection: socket.socket, scoring: Scoring, packet: bytes) -> list[Taken]:
    """The first job and those that wait behind it, with their states."""
    taken = [scoring.take(decode_job(packet))]
    rows = len(taken[0].rows.requests)
    connection.setblocking(False)
    while rows < MERGE_ROWS:
        try:
            packet = connection.recv(RECEIVE_BYTES)
        except BlockingIOError:
            break
        if not packet:
            # Closed: the next recv says so again.
            break
        taken.append(scoring.take(decode_job(packet)))
        rows += len(taken[-1].rows.requests)
    return taken


if __name__ == "__main__":
    main(sys.argv[1:])
