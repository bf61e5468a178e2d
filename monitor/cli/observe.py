"""``plumbob watch`` and ``plumbob doctor``: their options."""

from pathlib import Path
from typing import Annotated

import typer

from monitor.cli.console import print_table
from monitor.service.config import GRPC_PORT


def watch(
    address: Annotated[str, typer.Argument(help="host:port of a monitor's gRPC server.")] = f"127.0.0.1:{GRPC_PORT}",
    kind: Annotated[list[str] | None, typer.Option(help="Only events of this kind; may be repeated.")] = None,
    request_id: Annotated[str | None, typer.Option(help="Only events of this request.")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    after: Annotated[
        int | None, typer.Option(min=0, help="Begin with the kept events after this sequence number.")
    ] = None,
) -> None:
    """Print verdicts, alerts and interventions as they come."""
    from monitor.cli.watch import watch as follow

    follow(address, kinds=kind or (), request_id=request_id, json_lines=json_lines, after=after)


def doctor(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Also check this model.")] = None,
    bundle: Annotated[Path | None, typer.Option("--bundle", "-b", help="Also check this bundle.")] = None,
    policy: Annotated[Path | None, typer.Option("--policy", "-p", help="Also check this policy.")] = None,
) -> None:
    """Say what is missing on this machine, and the exact fix."""
    from monitor.cli.doctor import examine, table

    findings = examine(model, bundle, policy)
    print_table(table(findings))
    raise typer.Exit(2 if any(finding.state == "missing" for finding in findings) else 0)
