"""``plumbob serve`` on the demo model, as an operator runs it, and what clients see of it."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.ports import free_port

openai = pytest.importorskip("openai", reason="the openai client is not installed")
KEY = "s3cret"


@dataclass
class Server:
    process: subprocess.Popen
    port: int
    metrics_port: int
    grpc_port: int
    log: Path

    @property
    def client(self):
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=KEY, max_retries=0, timeout=120)

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def monitor_pid(self) -> int:
        """The child that runs the monitor."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            if b"\0monitor\0" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        raise AssertionError("no monitor is running")

    def scrape(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            return answer.read().decode()

    def sample(self, name: str) -> float:
        """The sum of a family's samples of that name."""
        families = text_string_to_metric_families(self.scrape())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    def chat(self, text: str, tokens: int) -> tuple[str, int]:
        """Hold a conversation, streaming; its id and how many pieces came."""
        stream = self.client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": text}],
            stream=True,
            max_tokens=tokens,
            temperature=0.0,
            extra_body={"ignore_eos": True},
        )
        chunks = list(stream)
        return chunks[0].id, sum(1 for chunk in chunks if chunk.choices and chunk.choices[0].delta.content)


def unlimited() -> dict[str, str]:
    """The environment of a server that nothing tells how much memory to take."""
    return {name: value for name, value in os.environ.items() if name != "VLLM_CPU_KVCACHE_SPACE"}


@contextmanager
def running_server(
    folder: Path,
    bundle_path: Path,
    *options: str,
    model: str | Path = "demo",
    environment: Mapping[str, str] = os.environ,
) -> Iterator[Server]:
    """``plumbob serve``, ready, until it has been stopped; its working directory has namesakes of our packages."""
    ports = [free_port() for _ in range(3)]
    # Whoever starts it may be anywhere.
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for name in ("monitor", "probes"):
        (elsewhere / f"{name}.py").write_text("raise SystemExit('not ours')")
    command = [
        sys.executable,
        "-P",
        "-m",
        "monitor.cli",
        "serve",
        str(model),
        "--bundle",
        str(bundle_path),
        "--eager",
        *options,
    ]
    command += ["--endpoint", f"ipc://{folder}/engine.sock"]
    command += ["--port", str(ports[0]), "--metrics-port", str(ports[1]), "--grpc-port", str(ports[2])]
    command += ["--max-model-len", "1024"]
    log = folder / "serve.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**environment}, cwd=elsewhere)
    running = Server(process, *ports, log)
    try:
        wait_until(lambda: process.poll() is not None or healthy(ports[0]), 400)
        assert process.poll() is None, log.read_text()[-2000:]
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found |= {int(child), *descendants(int(child))}
    return found
