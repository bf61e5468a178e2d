"""vLLM's arguments, read by vLLM's own parser: ``python -m monitor.engine.vllm.arguments`` in a process of its own.

What may be passed on is judged by what the parser makes of it, not by how it is written: options may be begun, have
underscores, dots or an equals sign, stand in a file of ``--config``, and be given more than once.

Reads :class:`Asked` from stdin and writes :class:`Found` as the last line of stdout; vLLM's log is in the lines before.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from monitor.engine.vllm.reading import misfits
from probes.bundle import load_bundle
from probes.errors import PlumbobError

_SETTINGS: Final = ("host", "port")
"""Arguments that are settings of ``plumbob serve``, which other programs are given as well."""
_OWN: Final = ("model", "additional_config", "served_model_name", "uds", "enable_ssl_refresh")
"""Arguments that ``plumbob serve`` gives itself, or cannot serve with; and those of TLS."""
_LEFT_OUT: Final = ("headless", "grpc", "grpc_port", "api_server_count")
"""Arguments of ``vllm serve`` that its server of one process leaves out of account."""
_REVISIONS: Final = ("revision", "tokenizer_revision", "code_revision")
_ELSEWHERE: Final = "Run vllm serve with it yourself, and plumbob monitor beside it."
_MEMORY: Final = ("gpu_memory_utilization", "kv_cache_memory_bytes")


class Asked(msgspec.Struct, frozen=True):
    """A command line of vLLM's server."""

    own: list[str]
    """What ``plumbob serve`` gives."""
    further: list[str]
    """What comes after it."""
    bundle: str
    """Directory of the bundle that is to read the model."""


class Found(msgspec.Struct, frozen=True):
    """The meaning of the further arguments."""

    refused: tuple[str, str] | None = None
    """Why they cannot be, and what to do; ``None``: they can."""
    eager: bool = False
    """Nothing is compiled."""
    memory: bool = False
    """They say how much memory the engine takes."""


class _Refused(Exception):
    """What the parser says of a command line that it does not take."""


def find(asked: Asked) -> Found:
    """Read a command line as vLLM will, and judge it.

    Args:
        asked: The command line, and what reads the model.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: Any = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    parser.error = parser.exit = _refuse
    unsaid = object()
    memory = argparse.Namespace(**dict.fromkeys(_MEMORY, unsaid))
    try:
        own = parser.parse_args(list(asked.own))
        given = parser.parse_args([*asked.own, *asked.further], memory)
        for message, fix in _faults(own, given, parser, asked):
            return Found((message, fix))
        validate_parsed_serve_args(given)
    except PlumbobError as error:
        return Found((error.message, error.fix))
    # Whatever its parser and its checks raise: the server would end with that.
    except Exception as error:
        said = " ".join(str(error).split()).removesuffix(".")
        return Found((f"vLLM does not take its arguments: {said}.", "vllm serve --help=all has those that it takes."))
    return Found(
        eager=bool(given.enforce_eager), memory=any(getattr(given, name, unsaid) is not unsaid for name in _MEMORY)
    )


def _faults(own: Any, given: Any, parser: Any, asked: Asked) -> Iterator[tuple[str, str]]:
    """What is wrong, and what to do about it."""
    if given.model_tag is not None:
        yield (
            f"plumbob serve takes one MODEL, before what is for vLLM, which would ignore '{given.model_tag}'.",
            "Leave it out, or write the value of an option right behind it.",
        )
    changed = [name for name, value in vars(given).items() if value != getattr(own, name, None)]
    for name in changed:
        option = spelled(parser, asked.further, name)
        if name in _SETTINGS:
            yield f"{option} among vLLM's arguments and {name} are two names for one thing.", f"Set {name}."
        elif name in _OWN or name.startswith("ssl_"):
            yield f"plumbob serve does not pass {option} on to vLLM.", _ELSEWHERE
        elif name in _REVISIONS:
            yield (
                f"plumbob serve does not pass {option} on to vLLM, which is given the model's directory.",
                "Download that revision, and name its directory as MODEL.",
            )
        elif name in _LEFT_OUT and (name, getattr(given, name)) != ("api_server_count", 1):
            yield f"plumbob serve starts one server that speaks HTTP, which would ignore {option}.", _ELSEWHERE
    for misfit in misfits(vars(given), Path(given.model), load_bundle(Path(asked.bundle))):
        yield f"{spelled(parser, asked.further, misfit.argument)} {misfit.why}.", misfit.fix


def spelled(parser: Any, arguments: Sequence[str], name: str) -> str:
    """The option that gives an argument, as its user has written it; the last one, which counts.

    Args:
        parser: Of vLLM's command line.
        arguments: What its user has written.
        name: Of the argument.
    """
    options = [argument.partition("=")[0] for argument in arguments]
    for option in reversed(options):
        if name in _meant(parser, option):
            return option
    if "--config" in options:
        file = arguments[options.index("--config") + 1]
        for option in reversed(parser.load_config_file(file)):
            if name in _meant(parser, option):
                return f"{option.removeprefix('--')} of {file}"
    return f"--{name.replace('_', '-')}"


def _meant(parser: Any, option: str) -> set[str]:
    """The arguments that an option may stand for: written out, or begun."""
    if not option.startswith("-"):
        return set()
    known: dict[str, Any] = parser._option_string_actions
    plain = option.partition(".")[0]
    plain = plain.replace("_", "-") if plain.startswith("--") else plain
    if plain in known:
        return {known[plain].dest}
    return {action.dest for begun, action in known.items() if plain.startswith("--") and begun.startswith(plain)}


def _refuse(*said: Any) -> NoReturn:
    raise _Refused(str(said[-1]) if said else "they ask for help")


def main() -> None:
    """Answer on stdout what is asked on stdin."""
    found = find(msgspec.json.decode(sys.stdin.buffer.read(), type=Asked))
    sys.stdout.write(f"\n{msgspec.json.encode(found).decode()}\n")


if __name__ == "__main__":
    main()
