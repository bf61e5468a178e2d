"""``plumbob monitor`` itself, killed again and again while an engine decides: each decision is recorded once."""

import json
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import zmq

from monitor.engine.outbox import Outbox
from monitor.sinks.audit import verify
from monitor.wire.codec import decode_order, encode_frame, encode_hello
from monitor.wire.frames import ROW, VERSION, FrameHeader, GateEvent, Hello, Refusal
from monitor.wire.orders import Ack
from tests.harness.bundles import make_bundle
from tests.harness.command_line import MonitorProcess
from tests.harness.ports import free_port

DEADLINE = 60.0
KILLS = 5


class Engine:
    """The two senders of an engine, which decides with every step and repeats what is not confirmed."""

    def __init__(self, endpoint: str, digest: str, probes: int) -> None:
        self.hello, self.probes = Hello(VERSION, "engine", "tiny", digest, "0.32.0", gates=1, armed=[]), probes
        self.gates, self.refusals = Outbox[GateEvent](4096, 64, 256), Outbox[Refusal](4096, 64, 256)
        self.decided = self.waiting = 0
        self.deciding = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(endpoint,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self, endpoint: str) -> None:
        with zmq.Context() as context:
            core, rank = (self._connect(context, endpoint, name) for name in (b"engine/core", b"engine/rank0"))
            sequence, acked, next_hello = 0, -1, 0.0
            while not self._stop.is_set():
                if time.monotonic() >= next_hello:
                    next_hello = time.monotonic() + 0.2
                    self._send(core, encode_hello(self.hello))
                while core.poll(0):
                    core.recv_multipart()
                while rank.poll(0):
                    order = decode_order(rank.recv_multipart())
                    if isinstance(order, Ack):
                        acked = order.sequence
                        self.gates.confirm(acked)
                        self.refusals.confirm(acked)
                if self.deciding.is_set() and sequence % 3 == 0:
                    self._decide()
                gates, refused = self.gates.carry(sequence), self.refusals.carry(sequence)
                self.waiting = len(gates) + len(refused)
                header = FrameHeader(
                    version=VERSION,
                    engine="engine",
                    rank=0,
                    sequence=sequence,
                    acked=acked,
                    dropped=0,
                    unscored=0,
                    monotonic_ns=time.monotonic_ns(),
                    rows=0,
                    probes=self.probes,
                    complete=True,
                    finished=[],
                    started=[],
                    gates=gates,
                    refused=refused,
                )
                self._send(rank, encode_frame(header, np.empty(0, ROW), np.empty((0, self.probes), np.float32)))
                sequence += 1
                time.sleep(0.004)
            core.close(linger=0)
            rank.close(linger=0)

    def _decide(self) -> None:
        number, self.decided = self.decided, self.decided + 1
        request = f"r{number}"
        self.gates.extend([GateEvent(number, "policy:0:rule:0", "opened", request, request, 5, 0.75, 0)])
        self.refusals.extend([Refusal(number, "steer", "rule:v", request, "vector", "There is no such vector.")])

    @staticmethod
    def _connect(context, endpoint, name):
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, name)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.SNDHWM, 64)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        socket.connect(endpoint)
        return socket

    @staticmethod
    def _send(socket, parts) -> None:
        with suppress(zmq.Again):
            socket.send_multipart(parts, zmq.NOBLOCK)


def until(condition) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def refused(event: dict) -> bool:
    return event["type"] == "ordered" and event["who"] == "engine"


@pytest.mark.parametrize("audit_bytes", [None, 64 << 20, 4000], ids=["without audit", "audited", "over many files"])
def test_each_decision_is_recorded_once_however_often_the_monitor_is_killed(tmp_path, audit_bytes, monkeypatch):
    audited = audit_bytes is not None
    monkeypatch.setenv("PLUMBOB_MONITOR__LIMITS__AUDIT_BYTES", str(audit_bytes or 1))
    bundle, audit, state = make_bundle(tmp_path / "bundle"), tmp_path / "audit.jsonl", tmp_path / "state"
    moments, monitors = random.Random(3), []
    # A socket file's path has room for a hundred characters.
    with tempfile.TemporaryDirectory(prefix="plumbob") as runtime:
        endpoint = f"ipc://{Path(runtime) / 'engine.sock'}"
        engine = Engine(endpoint, bundle.digest, len(bundle.probes))

        def start() -> MonitorProcess:
            options = ["--bundle", bundle.path, "--endpoint", endpoint, "--state", state]
            options += ["--audit", audit if audited else "none"]
            ports = ["--metrics-port", free_port(), "--grpc-port", free_port()]
            monitors.append(MonitorProcess(*options, *ports))
            return monitors[-1]

        try:
            for _ in range(KILLS):
                monitor = start()
                engine.deciding.set()
                until(lambda monitor=monitor: any(refused(event) for event in monitor.events))
                time.sleep(moments.uniform(0.0, 0.3))
                assert monitor.end(signal.SIGKILL) == -signal.SIGKILL
            last = start()
            until(lambda: any(refused(event) for event in last.events))
            engine.deciding.clear()
            until(lambda: engine.waiting == 0)
            assert last.end(signal.SIGTERM) == 0
        finally:
            engine.close()
            for monitor in monitors:
                monitor.running.kill()

    decided = set(range(engine.decided))
    if not audited:
        # The log of the process is not durable: what it said in the moment of a kill may be said again.
        said = [monitor.events for monitor in monitors]
        opened = [[event["number"] for event in events if event["type"] == "intervention"] for events in said]
        assert set().union(*opened) == decided and all(len(one) == len(set(one)) for one in opened)
        again = [number for number, times in Counter(chain.from_iterable(opened)).items() if times > 1]
        assert len(again) <= 3 * KILLS
        assert sum(refused(event) for events in said for event in events) >= len(decided)
        assert not audit.exists()
        return
    found = verify(audit)
    assert found.before == 0 and not found.aside and (len(found.files) > 10) == (audit_bytes == 4000)
    whole = b"".join(one.read_bytes() for one in found.files)
    lines = [json.loads(line) for line in whole.splitlines() if line.endswith(b"}")]
    records = [line["record"] for line in lines]
    numbers = [record["number"] for record in records if record["type"] == "intervention"]
    assert len(numbers) == len(set(numbers)) and set(numbers) == decided
    refusals = [record["request"]["engine_request_id"] for record in records if refused(record)]
    assert sorted(refusals) == sorted(f"r{number}" for number in decided)
    assert not any(record["type"] == "interventions_lost" for record in records)
