"""Arguments that are passed on to vLLM: what they mean, which may be, and which are secrets."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from monitor.engine.vllm.installed import SAFE_PATH
from monitor.errors import EngineError
from monitor.supervisor.failure import reason_in

_SECRETS: Final = {
    "--api-key": "Set VLLM_API_KEY or PLUMBOB_API_KEY, or name a file with --api-key-file.",
    "--hf-token": "Set HF_TOKEN.",
}
"""Options of vLLM whose values everybody who may list processes could read, and what to do instead."""
_SHORTEST: Final = 5
"""Characters of the beginning of an option that stands for it, at least; shorter ones are of several."""
_READ_SECONDS: Final = 300.0
"""Seconds for vLLM's parser to answer; importing it takes five to ten."""


@dataclass(frozen=True, slots=True)
class Said:
    """What further arguments say that is otherwise chosen here."""

    eager: bool = False
    """Nothing is compiled."""
    memory: bool = False
    """How much memory the engine takes."""


def secret_in(arguments: Sequence[str]) -> tuple[str, str] | None:
    """The first secret among the arguments, which the process list would show.

    Returns:
        What is wrong, and what to do; ``None`` where there is none.
    """
    for argument in arguments:
        for secret, fix in _SECRETS.items():
            if _may_be(argument, secret):
                return f"the value of {secret} would show in the process list", fix
    return None


def refuse_secrets(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments, where none of them is a secret.

    Raises:
        ValueError: One is.
    """
    if found := secret_in(arguments):
        raise ValueError(f"{found[0]}. {found[1]}".removesuffix("."))
    return arguments


def _may_be(argument: str, option: str) -> bool:
    """Tell whether an argument gives an option: written out, begun, or with underscores, as vLLM takes it."""
    name = argument.partition("=")[0].replace("_", "-")
    return name.startswith("--") and len(name) >= _SHORTEST and option.startswith(name)


def read_arguments(own: Sequence[str], further: Sequence[str], bundle: Path, environment: Mapping[str, str]) -> Said:
    """Have vLLM's own parser read its command line, in a process of its own, and judge what it says.

    Args:
        own: The arguments that ``plumbob serve`` gives.
        further: Those that come after them; without any, nothing is started.
        bundle: Directory of what is to read the model.
        environment: Of the server, which may change what its parser takes.

    Raises:
        EngineError: vLLM does not take them, or one would change what is read, where it is served, or nothing.
    """
    if not further:
        return Said()
    from monitor.engine.vllm.arguments import Asked, Found

    try:
        asked = subprocess.run(
            [sys.executable, "-m", "monitor.engine.vllm.arguments"],
            # Not among its own arguments: everybody could read them.
            input=msgspec.json.encode(Asked(list(own), list(further), str(bundle))),
            env={"VLLM_LOGGING_LEVEL": "ERROR", **environment, **SAFE_PATH},
            capture_output=True,
            timeout=_READ_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"vLLM's parser has not read its arguments in {_READ_SECONDS:.0f} s.", "Look what vllm serve --help does."
        ) from error
    try:
        found = msgspec.json.decode((asked.stdout.strip().splitlines() or [b""])[-1], type=Found)
    except msgspec.DecodeError:
        reason = reason_in(asked.stderr.decode(errors="replace")) or f"it ended with code {asked.returncode}"
        raise EngineError(
            f"vLLM's arguments cannot be read: {reason}.", "plumbob doctor says what is missing."
        ) from None
    if found.refused is not None:
        raise EngineError(*found.refused)
    return Said(eager=found.eager, memory=found.memory)
