"""``plumbob audit``, and where ``--audit`` says that the log is."""

import os
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.text import Text

from monitor.cli.console import out
from monitor.errors import AuditError

NONE: Final = "none"
"""What ``--audit`` is given to keep no log; a file of that name is ``./none``."""

audit = typer.Typer(help="Read what was done to requests.", no_args_is_help=True)


@audit.callback()
def _root() -> None:
    # Without it, an app of one command would be that command.
    pass


@audit.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The audit log; a monitor may be writing it.")],
    head: Annotated[
        str | None,
        typer.Option(
            metavar="HASH",
            help="Head that was printed earlier: it has to be there still, so that a truncated end shows.",
        ),
    ] = None,
) -> None:
    """Check that no line of an audit log was altered, inserted, moved or removed: exit code 0, else 2."""
    from monitor.sinks.audit import verify as verify_file

    found = verify_file(file, head)
    torn = f", {found.torn} of them torn by a crash, as is recorded" if found.torn else ""
    out.print(Text(f"valid: {file}, {found.records} records in {found.lines} lines{torn}"))
    out.print(Text(f"from {found.first.isoformat()} to {found.last.isoformat()}"))
    if found.known_at is not None:
        out.print(Text(f"the known head is line {found.known_at}; {found.lines - found.known_at} lines follow it"))
    out.print(Text(f"head {found.head}"))


def audit_path(option: str | None) -> Path | None:
    """The file that ``--audit`` means, absolute; ``None``: no log is kept.

    Args:
        option: As it was given; ``None``: it was not.

    Raises:
        AuditError: It was not, and there is no home directory.
    """
    if option == NONE:
        return None
    if option is not None:
        return Path(option).absolute()
    try:
        base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise AuditError(
            "There is no home directory to keep an audit log in.",
            "Name a file with --audit, or keep none with --audit none.",
        ) from error
    return Path(base).absolute() / "plumbob" / "audit.jsonl"
