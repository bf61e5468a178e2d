"""Wrapping: once, never half, and unnoticed by those who do not use it."""

import pytest

from monitor.engine.vllm import core, plugin
from monitor.engine.vllm.wrap import wrap_once


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
