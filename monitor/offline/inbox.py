"""Streamed states, put together again: rows as they come, to conversations as they were asked for.

An engine streams the rows of a step as it computes them, of many requests in one block, and of a long request in
several steps. A frame says whose each row is and at which position; that is where it goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import zmq
from numpy.typing import NDArray

from monitor.ingest import core_identity
from monitor.wire.codec import decode, encode_order
from monitor.wire.frames import Frame, Hello
from monitor.wire.orders import Stream
from monitor.wire.ring import StateReader


@dataclass(slots=True)
class Expected:
    """The rows that are wanted of one request."""

    states: NDArray[np.float32]
    """Shape ``(layers, tokens, hidden)``; undefined where no row has come."""
    come: NDArray[np.bool_] = field(init=False)
    """Rows that have arrived, shape ``(layers, tokens)``."""

    def __post_init__(self) -> None:
        self.come = np.zeros(self.states.shape[:2], bool)

    @property
    def complete(self) -> bool:
        """True once every row has arrived."""
        return bool(self.come.all())


class StateInbox:
    """The monitor's end of one engine's socket, for readers that want states and nothing else; a context manager.

    Args:
        endpoint: To listen on, ``ipc://`` and a path.
        layers: That are streamed.
        hidden: Width of a state.
    """

    def __init__(self, endpoint: str, layers: Sequence[int], hidden: int) -> None:
        self.endpoint = endpoint
        self.engine = ""
        """The engine's id; empty until it has introduced itself."""
        self._layers = {layer: at for at, layer in enumerate(layers)}
        self._hidden = hidden
        self._expected: dict[str, Expected] = {}
        self._requests: dict[int, str] = {}
        """The request that holds a slot."""
        self._rings: dict[str, StateReader] = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(endpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close(linger=0)
        self._context.term()

    def expect(self, requests: Sequence[str], lengths: Sequence[int]) -> list[Expected]:
        """Collect the rows of these requests from now on, and of no others.

        Args:
            requests: Their ids.
            lengths: Tokens of each.
        """
        shapes = [(len(self._layers), length, self._hidden) for length in lengths]
        expected = [Expected(np.empty(shape, np.float32)) for shape in shapes]
        self._expected = dict(zip(requests, expected, strict=True))
        return expected

    def order_streams(self) -> None:
        """Have the engine stream every row, from its next step on; nothing happens before it has introduced itself."""
        for layer in self._layers:
            self._socket.send_multipart([core_identity(self.engine), *encode_order(Stream(layer, "all"))])

    def take(self, seconds: float) -> None:
        """Read what has come, waiting for the first message.

        Args:
            seconds: To wait at most.

        Raises:
            FrameError: It is of another protocol: not the engine that was started.
        """
        milliseconds = int(seconds * 1000)
        while self._socket.poll(milliseconds):
            _, *parts = self._socket.recv_multipart()
            message = decode(parts)
            if isinstance(message, Hello):
                self.engine = message.engine
            else:
                self._place(message)
            milliseconds = 0

    def _place(self, frame: Frame) -> None:
        for slot in frame.header.finished:
            self._requests.pop(slot, None)
        for started in frame.header.started:
            self._requests[started.slot] = started.request_id
        begin = 0
        for block in frame.header.states:
            indices = frame.streamed[begin : begin + block.rows]
            begin += block.rows
            if block.path not in self._rings:
                self._rings[block.path] = StateReader(Path(block.path))
            states = self._rings[block.path].read(block.start, block.rows)
            if states is None:
                # Overtaken: as good as lost on the way, and missed by the reader that waits for it.
                continue
            # −1 is a row of nobody.
            slots = np.where(indices >= 0, frame.rows["slot"][indices], -1)
            for slot in np.unique(slots).tolist():
                expected = self._expected.get(self._requests.get(slot, ""))
                if expected is None:
                    continue
                mine = slots == slot
                positions = frame.rows["position"][indices[mine]]
                # The token that was sampled is read, too, if the request goes on.
                asked = positions < expected.come.shape[1]
                place = self._layers[block.layer], positions[asked]
                expected.states[place] = states[mine][asked]
                expected.come[place] = True
