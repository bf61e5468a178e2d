"""A monitor and an engine of made-up frames."""

from monitor.events import Intervention
from monitor.ingest import Arrival, MemorySource
from monitor.service.monitor import Monitor
from monitor.sinks import MemorySink
from monitor.wire.codec import decode_order
from monitor.wire.frames import VERSION, Hello, Started
from monitor.wire.orders import Ack
from probes.scoring.roles import Role


class Desk:
    """A monitor with an engine that serves one request, in which the probe fires."""

    def __init__(self, bundle, policy, frame, audit=None):
        self.bundle, self.make_frame, self.frames, self.now = bundle, frame, 0, 1000.0
        self.source, self.sink = MemorySource(), MemorySink()
        self.monitor = Monitor(bundle, policy, self.source, sinks=[self.sink], audit=audit, clock=lambda: self.now)
        self.stats = self.monitor.stats

    def hello(self, **said):
        message = Hello(VERSION, "engine", "tiny", self.bundle.digest, "0.32.0", **said)
        self.monitor.receive(Arrival(b"engine/core", message))

    def frame(self, *args, refused=(), gates=(), **options):
        made = self.make_frame(self.frames, *args, **options)
        self.frames += 1
        made.header.refused.extend(refused)
        made.header.gates.extend(gates)
        self.monitor.receive(Arrival(b"engine/rank0", made))

    def fire(self):
        self.frame([(0, 0, Role.USER, 0)], [[0.0, 9.0, 0.0]], started=[Started(0, "a", "user-a", 1)])

    def orders(self):
        sent, self.source.sent = self.source.sent, []
        decoded = [decode_order(parts) for _, parts in sent]
        return [order for order in decoded if order is not None and not isinstance(order, Ack)]

    def stops(self):
        events = [event for event in self.sink.events if isinstance(event, Intervention)]
        return [event for event in events if event.operation == "stop"]
