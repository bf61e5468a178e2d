"""``plumbob audit``: what was done to requests, checked."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from monitor.cli.console import out

audit = typer.Typer(help="Read what was done to requests.", no_args_is_help=True)


@audit.callback()
def _root() -> None:
    # Without it, an app of one command would be that command.
    pass


@audit.command()
def verify(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="The audit log, or its directory; a monitor may be writing it. Older files are found."
        ),
    ],
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
    out.print(Text(f"valid: {found.files[-1]}, {found.records} records in {found.lines} lines{torn}"))
    if len(found.files) > 1:
        out.print(Text(f"in {len(found.files)} files: {', '.join(one.name for one in found.files)}"))
    if found.before:
        out.print(Text(f"records 1 to {found.before} are in no file here: it begins after them"))
    for one in found.aside:
        out.print(Text(f"set aside {one}"))
    out.print(Text(f"from {found.first.isoformat()} to {found.last.isoformat()}"))
    if found.known_at is not None:
        out.print(Text(f"the known head is line {found.known_at}; {found.lines - found.known_at} lines follow it"))
    out.print(Text(f"head {found.head}"))
