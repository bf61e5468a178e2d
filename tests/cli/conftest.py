"""The command line as a user meets it: exit code, stdout and stderr, and what is left running."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from monitor.cli.app import main
from monitor.engine.vllm import versions as compat
from probes.models import identify
from tests.api.conftest import monitor  # noqa: F401  (a fixture)
from tests.harness.bundles import make_bundle
from tests.harness.command_line import Result, World, vllm_is


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path) -> None:
    """A cache of its own, no hub, and plain output of the width of a pipe's."""
    for name in [name for name in os.environ if name.startswith("PLUMBOB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PLUMBOB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "CXX", "VLLM_PLUGINS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def plumbob(monkeypatch, capsys) -> Callable[..., Result]:
    """``plumbob("serve", "demo", …)``: runs it in this process, where nothing that lasts may be started."""

    start = subprocess.Popen

    def refuse(command, *arguments, **options):
        if command[0] == sys.executable and (command[1] == "-c" or command[2] == "monitor.engine.vllm.arguments"):
            # It asks something of this Python, and ends.
            return start(command, *arguments, **options)
        raise AssertionError(f"started {command}")

    monkeypatch.setattr(subprocess, "Popen", refuse)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["plumbob", *map(str, arguments)])
        before, code = signal.getsignal(signal.SIGTERM), 0
        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
        finally:
            signal.signal(signal.SIGTERM, before)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[World]:
    """A world in which ``plumbob serve`` would start, and vLLM is the version that the tap is tested on."""
    # Not below tmp_path: the path of a socket file has room for a hundred characters.
    with tempfile.TemporaryDirectory(prefix="plumbob") as runtime:
        made = World(tmp_path, Path(runtime))
        made.model.mkdir()
        (made.model / "config.json").write_text(json.dumps({"hidden_size": 8, "num_hidden_layers": 4}))
        save_file({"w": np.zeros(3, np.float32)}, made.model / "model.safetensors")
        make_bundle(made.bundle)
        parts = identify(made.model, "model").parts
        made.edit_manifest(lambda manifest: manifest["model"].update(parts=parts))
        vllm_is(monkeypatch, compat.TESTED["cpu"][0])
        monkeypatch.setenv("CXX", sys.executable)
        yield made


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that another server listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]
