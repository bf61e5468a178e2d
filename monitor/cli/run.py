"""``plumbob serve``, ``plumbob monitor`` and ``plumbob demo``: the configuration read, and what it says run."""

import contextlib
from typing import Annotated

import typer
from rich.markup import escape

from monitor.cli.console import err
from monitor.cli.flags import ConfigFile, takes_settings
from monitor.configuration import Layer
from monitor.errors import ConfigError
from monitor.service.config import GRPC_PORT, METRICS_PORT, MonitorConfig
from monitor.supervisor.config import API_PORT, ServeConfig, load
from monitor.supervisor.vllm_arguments import secret_in


@takes_settings()
def serve(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A Hugging Face id, a local directory, or: demo; before what is for vLLM."
        ),
    ] = None,
    config: ConfigFile = None,
    *,
    flags: list[Layer],
) -> None:
    """Serve a model with vLLM, tapped, with its monitor beside it. Unknown options go to vllm serve."""
    from monitor.supervisor.serving import Serving

    further = context.args
    if model is not None and model.startswith("-"):
        # What is not known takes its turn among the arguments: without a model, vLLM's options begin here.
        model, further = None, [model, *further]
    if found := secret_in(further):
        raise ConfigError(f"{found[0]}.", found[1])
    if model is not None:
        flags = [*flags, Layer("flag", "MODEL", {"model": model})]
    chosen = load(config, flags).read(ServeConfig)
    chosen = chosen.model_copy(update={"vllm_arguments": (*chosen.vllm_arguments, *further)})
    try:
        serving = Serving(chosen, report=lambda text: err.print(f"[bold]plumbob[/] {escape(text)}"))
        with serving, serving.passing_hangups():
            err.print(f"[bold]plumbob[/] API {chosen.url}/v1  gRPC {chosen.monitor.grpc_address}", emoji=False)
            err.print(f"[bold]plumbob[/] metrics {chosen.monitor.metrics_url}", emoji=False)
            code = serving.watch()
    except KeyboardInterrupt:
        err.print("[bold]plumbob[/] stopped")
        raise typer.Exit(130) from None
    raise typer.Exit(code)


@takes_settings("monitor")
def monitor(config: ConfigFile = None, *, flags: list[Layer]) -> None:
    """Run the monitor alone, beside an engine that is already running."""
    from monitor.service.process import run_monitor

    run_monitor(load(config, flags).read(MonitorConfig, "monitor"))


def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit after the conversations instead of serving on.")] = False,
    fit: Annotated[
        bool,
        typer.Option("--fit", help="Fit a bundle of the pairs that ship, in minutes, and use that."),
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="OpenAI-compatible API.")] = API_PORT,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535, help="Prometheus metrics.")] = METRICS_PORT,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="gRPC events and status.")] = GRPC_PORT,
) -> None:
    """Serve and monitor the demo model, and talk to it."""
    from monitor.cli.demo import run_demo

    with contextlib.suppress(KeyboardInterrupt):
        raise typer.Exit(run_demo(once=once, fit=fit, port=port, metrics_port=metrics_port, grpc_port=grpc_port))
    raise typer.Exit(130)
