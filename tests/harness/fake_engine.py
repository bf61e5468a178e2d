"""An engine that only pretends, towards a real monitor: ``python -m tests.harness.fake_engine BUNDLE ENDPOINT``.

It announces itself and sends a short request, one whose ids have ID_LENGTH characters, ends both, and sends a third::

    python -m tests.harness.fake_engine BUNDLE ENDPOINT [ID_LENGTH] [SCORE]
"""

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import zmq

from monitor.wire.codec import encode_frame, encode_hello
from monitor.wire.frames import ROW, VERSION, FrameHeader, Hello, Started
from probes.bundle import Bundle, load_bundle
from probes.scoring.roles import Role


class FakeEngine:
    """The two senders of an engine, which bounds nothing; a context manager."""

    def __init__(self, bundle: Bundle, endpoint: str, engine: str = "engine") -> None:
        self._bundle, self._engine, self._sequence = bundle, engine, 0
        self._context = zmq.Context()
        self._core, self._rank = (self._connect(endpoint, f"{engine}/{name}") for name in ("core", "rank0"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for socket in (self._core, self._rank):
            socket.close(linger=5000)
        self._context.term()

    def hello(self, model: str = "tiny") -> None:
        hello = Hello(VERSION, self._engine, model, self._bundle.digest, "0.32.0", drift=0.0, gates=0, armed=[])
        self._core.send_multipart(encode_hello(hello))

    def frame(
        self,
        started: Sequence[Started] = (),
        finished: Sequence[int] = (),
        rows: Iterable[tuple[int, int, int, int]] = (),
        score: float | Sequence[Sequence[float]] = 5.0,
    ) -> None:
        """Send a frame of rows ``(slot, position, role, steered)``; one number for ``score`` stands for all."""
        made = np.array(list(rows), ROW)
        probes = len(self._bundle.probes)
        header = FrameHeader(
            version=VERSION,
            engine=self._engine,
            rank=0,
            sequence=self._sequence,
            acked=-1,
            dropped=0,
            unscored=0,
            monotonic_ns=time.monotonic_ns(),
            rows=len(made),
            probes=probes,
            complete=False,
            finished=list(finished),
            started=list(started),
        )
        self._sequence += 1
        scores = np.ascontiguousarray(np.broadcast_to(np.asarray(score, np.float32), (len(made), probes)))
        self._rank.send_multipart(encode_frame(header, made, scores))

    def request(
        self, slot: int, request_id: str, engine_request_id: str, *, score: float = 5.0, part: str = ""
    ) -> None:
        """A request that begins, with four tokens of its user."""
        rows = [(slot, position, Role.USER, 0) for position in range(4)]
        self.frame([Started(slot, engine_request_id, request_id, 4, None, part)], rows=rows, score=score)

    def _connect(self, endpoint: str, name: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, name.encode())
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.SNDTIMEO, 10_000)
        socket.connect(endpoint)
        return socket


def main(bundle: str, endpoint: str, length: str = "8", score: str = "5") -> None:
    with FakeEngine(load_bundle(Path(bundle)), endpoint) as engine:
        engine.hello()
        time.sleep(0.3)
        engine.request(0, "chatcmpl-small", "small-1", score=float(score))
        engine.request(1, "chatcmpl-" + "a" * int(length), "a" * int(length), score=float(score))
        engine.frame(finished=[0, 1])
        engine.request(2, "chatcmpl-after", "after-1", score=float(score))
        time.sleep(1.0)
        engine.hello()


if __name__ == "__main__":
    main(*sys.argv[1:])
