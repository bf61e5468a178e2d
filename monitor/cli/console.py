"""The commands' output, and their failures."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from probes.errors import PlumbobError
from probes.models import Progress as Report

_LOG_COLUMNS: Final = 120
"""Width of tables where there is no terminal to ask."""

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _LOG_COLUMNS)
"""Results."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and errors."""

_PIPE_WIDTH: Final = 1000


def fail(error: PlumbobError) -> None:
    """Print what is wrong and what to do, in one line."""
    text = " ".join(f"{error.message} {error.fix}".split())
    # Paths and other people's files are quoted in it: no markup, no emoji codes, no escape codes.
    shown = "".join(char if char.isprintable() else "�" for char in text)
    err.print(Text.assemble(("error: ", "bold red"), shown))


def print_table(table: Table) -> None:
    """Print a table: fitted to a terminal, else as wide as it is, so that no path or command is cut in two."""
    (out if out.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)).print(table)


@contextmanager
def progress() -> Generator[Report]:
    """Progress bars on stderr, one for each kind of work; a line for each tenth where there is no terminal."""
    if not err.is_terminal:
        yield _lines()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err) as bars:
        tasks: dict[str, int] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = int(bars.add_task(what, total=total))
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield report


def _lines() -> Report:
    shown: dict[str, int] = {}

    def report(what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if shown.get(what) != tenth:
            shown[what] = tenth
            print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)  # noqa: T201

    return report
