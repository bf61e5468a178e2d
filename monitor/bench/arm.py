"""An engine in a process of its own (:mod:`monitor.engine.arm`), from the side that asks."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from monitor.errors import EngineError


class Answer(msgspec.Struct, frozen=True):
    """What an engine made of one batch."""

    seconds: float
    tokens: list[list[int]]
    """Generated for each prompt."""
    logprobs: list[list[float]] = []
    """Of every token of each prompt but the first, where they were asked for."""


@dataclass(frozen=True, slots=True)
class _Ready:
    vocabulary: int


class Arm:
    """An engine; a context manager. Constructing it starts it, entering waits until it is ready.

    Args:
        name: For errors.
        log: Where its output goes.
        settings: Arguments of ``vllm.LLM``.
    """

    def __init__(self, name: str, log: Path, settings: dict[str, Any]) -> None:
        self._name, self._log = name, log
        environment = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "monitor.engine.arm", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=environment,
                start_new_session=True,
            )
        self.vocabulary = 0
        """Tokens of the model, once it is ready."""

    def __enter__(self) -> Self:
        try:
            self.vocabulary = msgspec.json.decode(self._read(), type=_Ready).vocabulary
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int, *, logprobs: bool = False) -> Answer:
        """Generate greedily for a batch of prompts.

        Args:
            prompts: Token ids of each.
            tokens: To generate for each; end of sequence is ignored.
            logprobs: Also tell the log-probability of each prompt's tokens.

        Raises:
            EngineError: The engine ended.
        """
        self.ask(prompts, tokens, logprobs=logprobs)
        return self.answer()

    def ask(self, prompts: Sequence[Sequence[int]], tokens: int, *, logprobs: bool = False) -> None:
        """Begin what :meth:`generate` does; :meth:`answer` ends it."""
        if self._process.stdin is None:
            raise RuntimeError("the engine has no input")
        request = {"prompts": [list(prompt) for prompt in prompts], "tokens": tokens, "logprobs": logprobs}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> Answer:
        """What was asked for."""
        return msgspec.json.decode(self._read(), type=Answer)

    def _read(self) -> bytes:
        line = self._process.stdout.readline() if self._process.stdout is not None else b""
        if not line:
            lines = self._log.read_text(errors="replace").splitlines()
            reason = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no output")
            raise EngineError(f"The {self._name} engine ended before its time: {reason.strip()}")
        return line
