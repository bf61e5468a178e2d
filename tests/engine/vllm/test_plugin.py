"""Wrapping: once, never half, and unnoticed by those who do not use it."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from monitor.addresses import require_socket
from monitor.engine.vllm import core, plugin
from monitor.engine.vllm.wrap import wrap_once
from monitor.errors import PortError


class Engine:
    def run(self) -> str:
        return "ran"

    @classmethod
    def make(cls) -> str:
        return cls.__name__


class Child(Engine):
    pass


def test_wraps_once_and_leaves_what_is_inherited_alone():
    wrap_once(Engine, "run", lambda method: lambda self: f"{method(self)} twice")
    wrap_once(Engine, "run", lambda method: lambda self: "never")
    wrap_once(Child, "run", lambda method: lambda self: "never")
    assert Child().run() == "ran twice"
    for _ in range(2):
        wrap_once(Engine, "make", lambda method: lambda cls: f"{method(cls)} made")
    assert (Engine.make(), Child.make()) == ("Engine made", "Child made")


def test_a_method_that_is_gone_is_an_error():
    with pytest.raises(AttributeError, match="Engine has no gone"):
        wrap_once(Engine, "gone", lambda method: method)


def test_a_vllm_that_cannot_be_tapped_troubles_nobody_who_did_not_ask(monkeypatch):
    pytest.importorskip("vllm")
    from vllm.engine.arg_utils import EngineArgs

    def moved() -> None:
        raise ImportError("no module vllm.v1.moved")

    monkeypatch.setattr(plugin, "_missing", {})
    monkeypatch.setattr(core, "install", moved)
    plugin.register()
    assert plugin._missing == {None: ["no module vllm.v1.moved"]}
    assert EngineArgs.create_engine_config is not None


# Socket files, at an engine's start.


def test_an_engine_may_start_before_its_monitor_and_behind_it(tmp_path):
    require_socket(f"ipc://{tmp_path}/engine.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "engine.sock"))
        require_socket(f"ipc://{tmp_path}/engine.sock")


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("tcp://127.0.0.1:5555", "is not a socket file"),
        ("ipc:///tmp/" + "x" * 103, "at most 107 bytes, this one 108"),
        ("ipc://{folder}/missing/engine.sock", "missing/engine.sock is missing"),
        ("ipc://{folder}/file/engine.sock", "is missing"),
        ("ipc://{folder}/file", "is not a socket"),
    ],
)
def test_a_socket_file_that_cannot_work_is_refused_with_the_reason(tmp_path, endpoint, reason):
    (tmp_path / "file").touch()
    with pytest.raises(PortError, match=reason):
        require_socket(endpoint.format(folder=tmp_path))
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("mine", [True, False], ids=["its own", "another user's, whose monitor may listen there"])
def test_a_directory_that_may_not_be_written_to_is_refused(mine):
    # Not in pytest's own, which is closed to other users.
    with tempfile.TemporaryDirectory(prefix="plumbob") as made:
        folder, me = Path(made), os.getuid()
        nobody = 65534 if me == 0 else me
        if mine and me == 0:
            os.chown(folder, nobody, nobody)
        folder.chmod(0o555)
        # Whoever runs the tests as root may write everywhere: nobody may not.
        code = "import os, sys; from monitor.addresses import require_socket\n"
        code += f"if os.getuid() == 0: os.setgroups([]), os.setgid({nobody}), os.setuid({nobody})\n"
        code += "require_socket(sys.argv[1])"
        command = [sys.executable, "-c", code, f"ipc://{folder}/engine.sock"]
        ran = subprocess.run(command, capture_output=True, text=True)
        folder.chmod(0o755)
    if mine or me:
        assert ran.returncode and "may not be written to" in ran.stderr, ran.stderr
    else:
        assert not ran.returncode, ran.stderr


def test_an_engine_refuses_to_start_with_such_a_socket_file(tiny_bundle):
    pytest.importorskip("vllm")
    from vllm.engine.arg_utils import EngineArgs

    plugin.register()
    tap = {"bundle": str(tiny_bundle().path), "endpoint": "ipc:///tmp/" + "x" * 103, "allow_untested": True}
    with pytest.raises(PortError, match="at most 107 bytes"):
        EngineArgs(model="none", additional_config={"plumbob": tap}).create_engine_config()
