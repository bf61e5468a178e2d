"""The monitor's end of an engine's sockets, by hand."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np
import zmq

from monitor.offline.engine_process import Answer, Arm
from monitor.wire.codec import decode, encode_ack, encode_order
from monitor.wire.frames import Frame, FrameHeader, Hello, Refusal, Started
from monitor.wire.orders import Order


@dataclass
class Seen:
    """What frames told of one request."""

    started: Started
    positions: list[int] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    roles: list[int] = field(default_factory=list)
    steered: list[int] = field(default_factory=list)
    finished: bool = False


class Wire:
    """The monitor's end: collects what an engine sends, and orders it about."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        # As the monitor does.
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._router.bind(endpoint)
        self.endpoint = endpoint
        self.engine = ""
        self.hello: Hello | None = None
        self.sequences: list[int] = []
        self.slots: dict[int, Seen] = {}
        self.requests: list[Seen] = []
        self.refused: dict[int, Refusal] = {}
        self.relay: Callable[[bytes, list[bytes]], None] = lambda identity, parts: None
        """Called with each message, after it was read, with its sender's routing id."""
        self.heard: Callable[[FrameHeader], None] = lambda header: None
        """Called with the header of each frame."""

    def pump(self, seconds: float = 0.0) -> None:
        """Read what has come, waiting for the first message."""
        while self._router.poll(int(seconds * 1000)):
            identity, *parts = self._router.recv_multipart()
            message = decode(parts)
            if isinstance(message, Hello):
                self.engine, self.hello = message.engine, message
            else:
                self._frame(message)
            self.relay(identity, parts)
            seconds = 0.0

    def send(self, identity: bytes, parts: list[bytes]) -> None:
        self._router.send_multipart([identity, *parts])

    def order(self, order: Order) -> None:
        self.send(f"{self.engine}/core".encode(), encode_order(order))

    def run(self, arm: Arm, prompts, tokens: int, act: Callable[["Wire", list[Seen]], None] | None = None, **options):
        """Generate a batch, calling ``act`` after every read; the answer, and what was seen in the prompts' order."""
        before = len(self.requests)
        arm.ask(prompts, tokens, **options)
        deadline = time.monotonic() + 120
        while not (
            len(self.requests) - before == len(prompts) and all(seen.finished for seen in self.requests[before:])
        ):
            assert time.monotonic() < deadline, "the engine did not finish"
            self.pump(0.02)
            if act is not None:
                act(self, self.requests[before:])
        answer: Answer = arm.answer()
        seen = sorted(self.requests[before:], key=lambda seen: int(seen.started.request_id))
        return answer, seen

    def _frame(self, frame: Frame) -> None:
        self.sequences.append(frame.header.sequence)
        self.heard(frame.header)
        if frame.header.complete:
            # Who has ended with a frame that was lost.
            in_flight = {(started.slot, started.engine_request_id) for started in frame.header.started}
            for slot, seen in list(self.slots.items()):
                if (slot, seen.started.engine_request_id) not in in_flight and slot not in frame.header.finished:
                    self.slots.pop(slot).finished = True
        for slot in frame.header.finished:
            self.slots.pop(slot).finished = True
        for started in frame.header.started:
            if started.slot not in self.slots:
                self.slots[started.slot] = Seen(started)
                self.requests.append(self.slots[started.slot])
        for row, scores in zip(frame.rows, frame.scores, strict=True):
            seen = self.slots[int(row["slot"])]
            seen.positions.append(int(row["position"]))
            seen.roles.append(int(row["role"]))
            seen.steered.append(int(row["steered"]))
            seen.scores.append(scores)
        self.refused |= {refusal.number: refusal for refusal in frame.header.refused}

    def close(self) -> None:
        self._router.close(linger=0)
        self._context.term()


class ConfirmingWire(Wire):
    """Confirms what it has read, and makes do with frames that were lost on their way."""

    act: Callable[[], None] = staticmethod(lambda: None)
    """Called with each frame: an engine this small may make more of them before the last is read."""

    def _frame(self, frame: Frame) -> None:
        if frame.header.complete:
            # What lost frames told of who had ended.
            in_flight = {(started.slot, started.engine_request_id) for started in frame.header.started}
            for slot, seen in list(self.slots.items()):
                if (slot, seen.started.engine_request_id) not in in_flight:
                    self.slots.pop(slot).finished = True
        for refusal in frame.header.refused:
            assert self.refused.get(refusal.number, refusal) == refusal
        known = [slot for slot in frame.header.finished if slot in self.slots]
        super()._frame(msgspec.structs.replace(frame, header=msgspec.structs.replace(frame.header, finished=known)))
        self.send(f"{self.engine}/rank0".encode(), encode_ack(frame.header.sequence))
        self.act()
