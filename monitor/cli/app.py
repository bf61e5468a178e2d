"""The commands, in groups. Each does its work in a module of its own, imported when it is called."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from monitor import __version__
from monitor.cli.audit import audit
from monitor.cli.bench import bench
from monitor.cli.config import config_commands
from monitor.cli.console import fail, out
from monitor.cli.fitting import fit
from monitor.cli.observe import doctor, watch
from monitor.cli.offline import calibrate, evaluate, score
from monitor.cli.order import order, trace
from monitor.cli.policy import policy_commands
from monitor.cli.run import demo, monitor, serve
from monitor.cli.signing import keygen, sign, verify
from monitor.cli.steering import steer
from probes.errors import PlumbobError

GROUPS: Final[dict[str, dict[str, typer.Typer | Callable[..., Any]]]] = {
    "Run": {"serve": serve, "monitor": monitor, "config": config_commands, "demo": demo},
    "Observe": {"watch": watch, "trace": trace},
    "Probes": {"fit": fit, "score": score, "eval": evaluate, "calibrate": calibrate},
    "Steering": {"steer": steer, "order": order},
    "Policy": {"policy": policy_commands},
    "Trust": {"keygen": keygen, "sign": sign, "verify": verify, "audit": audit},
    "Develop": {"doctor": doctor, "bench": bench},
}
"""The commands by what they are for, in the order of ``plumbob --help``."""


class _InGroups(TyperGroup):
    """Lists commands in the order of :data:`GROUPS`; typer would have those with subcommands last."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for group in GROUPS.values() for name in group]


app = typer.Typer(
    name="plumbob",
    cls=_InGroups,
    help="An alignment monitor for language models in production.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _group, _commands in GROUPS.items():
    for _name, _command in _commands.items():
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, name=_name, rich_help_panel=_group)
        else:
            # What serve does not know is vLLM's.
            _unknown = {"allow_extra_args": True, "ignore_unknown_options": True} if _command is serve else {}
            app.command(_name, rich_help_panel=_group, context_settings=_unknown)(_command)


def main() -> None:
    """Run a command; an error that a user can mend is one line, and exit code 2."""
    # As Ctrl-C does, it unwinds what was started: children have sessions of their own and would live on.
    signal.signal(signal.SIGTERM, _terminate)
    # A closed terminal; nohup has it ignored, and means that.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _terminate)
    try:
        app()
    except PlumbobError as error:
        fail(error)
    except OSError as error:
        if error.filename is None:
            raise
        # A file or directory that this machine refuses, wherever it came up.
        fail(PlumbobError(f"{error.filename}: {error.strerror}.", "Check its path, its owner and its disk."))
    else:
        return
    sys.exit(2)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"plumbob {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
