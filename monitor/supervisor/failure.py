"""The reason why a process ended, out of what it wrote: its last error, without the traceback around it."""

import re
from typing import Final

_ESCAPE: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PREFIX: Final = re.compile(
    # (EngineCore pid=17) ERROR 11-28 03:49:16 [core.py:1110] …
    r"^(?:\([^()]*pid=\d+\)\s?)?(?:(?:ERROR|CRITICAL) [\d-]+ [\d:.,]+ \[[^\]]+\]\s?)?"
)
_EXCEPTION: Final = re.compile(r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Exit|Interrupt))(?:: (.+))?$")
_SAID: Final = re.compile(r"^(?:[\w./-]+: )?error: (.+)$")
"""The last line of a command: argparse's, and Plumbob's own."""
_ECHOES: Final = ("Engine core initialization failed", "Engine core proc", "Worker proc", "WorkerProc init")
"""Errors of one process about another, whose own reason is further up."""
_NOISE: Final = ("For further information visit",)
_NAMELESS: Final = frozenset({"EngineError", "PrerequisiteError", "BundleError", "RuntimeError", "Exception"})
"""Classes whose names add nothing to the message."""
_CHARACTERS: Final = 600
"""Longest reason that is given."""


def reason_in(output: str) -> str:
    """The reason that a process gave for its end.

    Args:
        output: The end of what it wrote, of stdout and stderr.

    Returns:
        One line without a full stop at its end: the last error that is not about another process; without an error,
        the last line; empty where nothing was written.
    """
    return error_in(output) or _bounded(next((line for line in reversed(_lines(output)) if line), ""))


def error_in(output: str) -> str:
    """The last error that is not about another process, as :func:`reason_in` gives it; empty without one."""
    lines = _lines(output)
    found = [error for at in range(len(lines)) if (error := _error_at(lines, at))]
    return _bounded(found[-1]) if found else ""


def _lines(output: str) -> list[str]:
    return [_PREFIX.sub("", _ESCAPE.sub("", line)).rstrip() for line in output.splitlines()]


def _bounded(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}…"


def _error_at(lines: list[str], at: int) -> str | None:
    """The error whose first line this is."""
    if said := _SAID.match(lines[at]):
        return said[1].rstrip(".")
    raised = _EXCEPTION.match(lines[at])
    if raised is None or (message := raised[2] or "").startswith(_ECHOES):
        return None
    for line in lines[at + 1 :]:
        # pydantic's messages go on in indented lines.
        if not line.startswith("  ") or line.lstrip().startswith("File "):
            break
        if not line.lstrip().startswith(_NOISE):
            message += f" {line.strip()}"
    name = raised[1]
    text = message if message and name in _NAMELESS else ": ".join(filter(None, (name, message)))
    return " ".join(text.split()).rstrip(".")
