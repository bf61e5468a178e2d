"""``plumbob policy``: whether a policy fits a bundle, and why it did what it did."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from monitor.cli.console import out, print_table
from monitor.service.config import GRPC_PORT
from monitor.supervisor.engine_command import MOST_GATES

policy_commands = typer.Typer(help="Check a policy, and explain what one decided.", no_args_is_help=True)


@policy_commands.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The policy file.")],
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="Bundle that has its probes and vectors.")],
) -> None:
    """Check that a policy can be used with a bundle, and say what it does: exit code 0, else 2."""
    from monitor.policy import load_policy
    from probes.bundle import load_bundle

    policy = load_policy(file, load_bundle(bundle))
    table = Table("rule", "probe", "models", "mode", "actions")
    for rule in policy.rules:
        models = ", ".join(rule.models) or "all"
        # Names and globs are the operator's; brackets in them are no markup.
        table.add_row(*map(Text, (rule.name, rule.probe, models, rule.mode, "\n".join(map(str, rule.actions)))))
    print_table(table)
    gates = len(policy.gates)
    if gates > MOST_GATES:
        out.print(Text(f"{gates} gates: an engine has {MOST_GATES} at most; the monitor orders the others itself"))
    limit = "" if policy.max_dose is None else f", no dose over {policy.max_dose:g}"
    out.print(Text(f"valid: {file}, {len(policy.rules)} rules, {gates} gates{limit}, digest {policy.digest}"))


@policy_commands.command()
def explain(
    event: Annotated[
        int, typer.Argument(metavar="EVENT", min=1, help="Sequence of an event, or of a record with --audit.")
    ],
    address: Annotated[
        str, typer.Option(help="host:port of the monitor's gRPC server, which keeps the last events.")
    ] = f"127.0.0.1:{GRPC_PORT}",
    audit: Annotated[Path | None, typer.Option(help="Read this audit log instead; EVENT is a record of it.")] = None,
) -> None:
    """Say why something was done: score, threshold, streak, rule, mode, action, dose, tokens steered."""
    from monitor.cli.explain import chain, from_audit, from_monitor
    from monitor.events import type_name

    found = from_monitor(event, address) if audit is None else from_audit(event, audit)
    out.print(Text(f"{found.place}: {type_name(found.event).replace('_', ' ')}"))
    for label, text in chain(found):
        # Ids of requests are chosen by clients.
        out.print(Text(f"  {label:<11}{''.join(char if char.isprintable() else '�' for char in text)}"))
