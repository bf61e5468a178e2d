"""A monitor's process, as those look at it who run it."""

import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import zmq
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from monitor.wire.codec import encode_hello
from monitor.wire.frames import VERSION, Hello
from tests.harness.bundles import make_bundle
from tests.harness.command_line import MonitorProcess
from tests.harness.ports import free_port

SERVING = health_pb2.HealthCheckResponse.SERVING


class Watched:
    """A monitor's process, as those look at it who run it."""

    def __init__(self, folder: Path, runtime: Path, limits: str, *options: object) -> None:
        self.bundle = make_bundle(folder / "bundle")
        self.endpoint = f"ipc://{runtime / 'engine.sock'}"
        self.http, self.grpc = free_port(), free_port()
        config = folder / "plumbob.yaml"
        config.write_text(f"monitor: {{limits: {{{limits}}}}}\n")
        given = ["--config", config, "--bundle", self.bundle.path, "--endpoint", self.endpoint]
        given += ["--metrics-port", self.http, "--grpc-port", self.grpc]
        self.process = MonitorProcess(*given, *options)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc}")

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def health(self, service: str) -> int:
        return health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(service=service)).status

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(self.get("/metrics")[1])
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
            if sample.name == name
        }

    def said(self, text: str) -> bool:
        return any(text in line for line in list(self.process._lines))

    def hello(self, context: zmq.Context, digest: str | None = None) -> zmq.Socket:
        """An engine of this bundle introduces itself."""
        core = context.socket(zmq.DEALER)
        core.setsockopt(zmq.IDENTITY, b"engine/core")
        core.connect(self.endpoint)
        core.send_multipart(encode_hello(Hello(VERSION, "engine", "tiny", digest or self.bundle.digest, "0.32.0")))
        return core


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError, grpc.RpcError):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def watched(folder: Path, limits: str, *options: object) -> Iterator[Watched]:
    """A monitor that serves.

    Args:
        folder: For its files.
        limits: Of its configuration, as YAML.
        options: Of its command line.
    """
    # A socket file's path has room for a hundred characters.
    with tempfile.TemporaryDirectory(prefix="plumbob") as runtime:
        monitor = Watched(folder, Path(runtime), limits, *options)
        try:
            until(lambda: monitor.health("") == SERVING)
            yield monitor
        finally:
            monitor.channel.close()
            monitor.process.running.kill()
