"""Arguments that are passed on to vLLM: which may be, and which are there."""

from collections.abc import Sequence
from typing import Final

from monitor.errors import EngineError

OWN_OPTIONS: Final = ("--model", "--additional-config", "--served-model-name", "--revision", "--uds", "--ssl-")
"""Options of vLLM that ``serve`` sets itself or cannot serve with; vLLM would take the last one given."""
_NAMED_BY_SETTINGS: Final = frozenset({"--host", "--port"})
"""Options of vLLM that are settings of ours; other programs are given the same value."""
_SECRETS: Final = {
    "--api-key": "Set VLLM_API_KEY or PLUMBOB_API_KEY, or name a file with --api-key-file.",
    "--hf-token": "Set HF_TOKEN.",
}
"""Options of vLLM whose values everybody who may list processes could read, and what to do instead."""
_SHORTEST: Final = 5
"""Characters of the beginning of an option that stands for it, at least; shorter ones are of several."""


def gives(arguments: Sequence[str], option: str) -> bool:
    """Tell whether an option is among the arguments: written out, begun, or with underscores, as vLLM takes it."""
    return any(option.startswith(name) for name in map(option_of, arguments) if len(name) >= _SHORTEST)


def option_of(argument: str) -> str:
    """The option that an argument gives, as vLLM documents it; empty where it gives none."""
    return argument.partition("=")[0].replace("_", "-") if argument.startswith("--") else ""


def secret_in(arguments: Sequence[str]) -> tuple[str, str] | None:
    """The first secret among the arguments, which the process list would show.

    Returns:
        What is wrong, and what to do; ``None`` where there is none.
    """
    for argument in arguments:
        for secret, fix in _SECRETS.items():
            if gives([argument], secret):
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


def require_passable(arguments: Sequence[str]) -> None:
    """Check that the arguments leave what is monitored as it is.

    Raises:
        EngineError: One would change what is served beside that, or where.
    """
    for name in map(option_of, arguments):
        if name in _NAMED_BY_SETTINGS:
            setting = name.removeprefix("--")
            raise EngineError(
                f"{name} among vLLM's arguments and {setting} are two names for one thing.", f"Set {setting}."
            )
        # A configuration file of vLLM may have any of them.
        if name == "--config" or name.startswith(OWN_OPTIONS) or any(gives([name], own) for own in OWN_OPTIONS):
            raise EngineError(
                f"plumbob serve does not pass {name} on to vLLM.",
                "Run vllm serve with it yourself, and plumbob monitor beside it.",
            )
