"""An engine in a process of its own (:mod:`monitor.engine.offline`), from the side that asks."""

import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Self, TypeVar

import msgspec

from monitor.engine.offline import Answer, Command, Done, Facts, Generate, Profile, Ready, Report
from monitor.engine.vllm.installed import SAFE_PATH, require_plugin
from monitor.errors import EngineError

KV_CACHE_BYTES: Final = 1 << 30
"""Of an engine that is not told otherwise."""

_FORWARDED: Final = "root cause above"
"""vLLM's front process says no more of an error in another one."""

_Reply = TypeVar("_Reply", bound=msgspec.Struct)


class Arm:
    """An engine; a context manager. Constructing it starts it, entering waits until it is ready.

    Args:
        name: For errors.
        log: Where its output goes.
        settings: Arguments of ``vllm.LLM``.
        environment: Variables of its process, beside those of this one.

    Raises:
        PrerequisiteError: It is to be tapped, and vLLM would not load the plugin.
    """

    def __init__(
        self, name: str, log: Path, settings: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> None:
        self._name, self._log = name, log
        wanted = {"kv_cache_memory_bytes": KV_CACHE_BYTES, **settings}
        variables = {**os.environ, **(environment or {}), **SAFE_PATH}
        if "plumbob" in settings.get("additional_config", {}):
            require_plugin(variables)
        with log.open("wb") as stream:
            self._process = launch(
                [sys.executable, "-m", "monitor.engine.offline", msgspec.json.encode(wanted).decode()],
                stream,
                {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", **variables},
            )
        self.vocabulary = 0
        """Tokens of the model, once it is ready."""

    def __enter__(self) -> Self:
        try:
            self.vocabulary = self._read(Ready).vocabulary
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

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        *,
        stops: Sequence[int] = (),
        logprobs: bool = False,
        fresh: bool = False,
    ) -> Answer:
        """Generate greedily for a batch of prompts.

        Args:
            prompts: Token ids of each.
            tokens: To generate for each, at most.
            stops: Tokens that end an answer; end of sequence is none, unless it is named here.
            logprobs: Also tell the log-probability of each prompt's tokens.
            fresh: Empty the prefix cache first.

        Raises:
            EngineError: The engine ended.
        """
        self.ask(prompts, tokens, stops=stops, logprobs=logprobs, fresh=fresh)
        return self.answer()

    def ask(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        *,
        stops: Sequence[int] = (),
        logprobs: bool = False,
        fresh: bool = False,
    ) -> None:
        """Begin what :meth:`generate` does; :meth:`answer` ends it."""
        self._write(Generate([list(prompt) for prompt in prompts], tokens, list(stops), logprobs, fresh))

    def answered(self) -> bool:
        """True where :meth:`answer` would not wait: the answer is there, or the engine has ended."""
        if self._process.stdout is None:
            return True
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        return bool(poll.poll(0))

    def answer(self) -> Answer:
        """Wait for the answer."""
        return self._read(Answer)

    def profile(self, *, on: bool) -> None:
        """Start or stop torch's profiler; its trace is written by the time this returns from stopping it."""
        self._write(Profile(on))
        self._read(Done)

    def report(self) -> Facts:
        """The engine's description, and the memory it has taken so far."""
        self._write(Report())
        return self._read(Facts)

    def _write(self, command: Command) -> None:
        if self._process.stdin is None:
            raise RuntimeError("the engine has no input")
        try:
            self._process.stdin.write(msgspec.json.encode(command) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # Whoever reads the answer finds out why.
            return

    def _read(self, kind: type[_Reply]) -> _Reply:
        line = self._process.stdout.readline() if self._process.stdout is not None else b""
        if not line:
            raise EngineError(f"The {self._name} engine ended before its time: {last_error(self._log)}")
        return msgspec.json.decode(line, type=kind)


def launch(command: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, with pipes for its stdin and stdout.

    Args:
        command: The executable, and its arguments.
        log: Where its stderr goes.
        environment: All variables that it has.
    """
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, start_new_session=True
    )


def last_error(log: Path) -> str:
    """The line of a log that says why vLLM ended.

    Args:
        log: What all its processes wrote.
    """
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line and _FORWARDED not in line]
    return (errors or lines or ["no output"])[-1]
