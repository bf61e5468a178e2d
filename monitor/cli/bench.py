"""``plumbob bench``: its options, and where its results go."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monitor.cli.console import print_table, progress
from monitor.cli.parameters import Model, Untested
from probes.errors import PlumbobError

if TYPE_CHECKING:
    from monitor.bench.result import Result

bench = typer.Typer(help="Measure what Plumbob costs.", no_args_is_help=True)


@bench.command("engine")
def bench_engine(
    model: Model = "demo",
    bundle: Annotated[Path | None, typer.Option("--bundle", "-b", help="Read this instead of random probes.")] = None,
    probes: Annotated[int, typer.Option(help="How many random probes.")] = 48,
    layers: Annotated[
        str | None, typer.Option(help="Where they read, as 7,15,22; else a quarter, half and three quarters.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Instead of MODEL, a configuration with dummy weights: llama-8b, llama-tiny")
    ] = None,
    dummy_weights: Annotated[
        bool, typer.Option("--dummy-weights", help="Take only the configuration of MODEL.")
    ] = False,
    arms: Annotated[str | None, typer.Option(help="What to compare with stock, as scoring,steering.")] = None,
    pairs: Annotated[int, typer.Option(help="Rounds; each runs every arm.")] = 10,
    batch: Annotated[str, typer.Option(help="Requests at once, of each decode run.")] = "1,8",
    tokens: Annotated[int, typer.Option(help="Tokens that each request of a decode run generates.")] = 32,
    prefill_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt of the prefill run.")] = 256,
    eager: Annotated[bool, typer.Option("--eager", help="Do not compile.")] = False,
    allow_untested: Untested = False,
    profile: Annotated[bool, typer.Option("--profile", help="Then say what of a decode step is ours.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    plot_path: Annotated[Path | None, typer.Option("--plot", help="Draw it here (.png, .svg, .pdf).")] = None,
) -> None:
    """Measure what each way to run Plumbob costs, against stock vLLM in the same run."""
    from monitor.bench.arms import Subject
    from monitor.bench.engine import DEFAULT_ARMS, Plan, run

    plan = Plan(
        subject=Subject(
            model=model,
            shape=shape,
            dummy_weights=dummy_weights,
            bundle=bundle,
            probes=probes,
            layers=None if layers is None else _numbers("--layers", layers),
            allow_untested=allow_untested,
        ),
        arms=DEFAULT_ARMS if arms is None else _list(arms),
        pairs=pairs,
        batches=_numbers("--batch", batch),
        tokens=tokens,
        prefill_tokens=prefill_tokens,
        eager=eager,
        profile=profile,
    )
    plan.check()
    _check_output(json_path, plot_path)
    with progress() as report:
        result = run(plan, report)
    _output(result, json_path, plot_path)


@bench.command("serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench_serve(
    context: typer.Context,
    model: Model = "demo",
    bundle: Annotated[Path | None, typer.Option("--bundle", "-b", help="Read this instead of random probes.")] = None,
    pairs: Annotated[int, typer.Option(help="Rounds; each runs both servers.")] = 5,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a round, to each server.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 64,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens that each request generates.")] = 32,
    eager: Annotated[bool, typer.Option("--eager", help="Do not compile.")] = False,
    allow_untested: Untested = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    plot_path: Annotated[Path | None, typer.Option("--plot", help="Draw it here (.png, .svg, .pdf).")] = None,
) -> None:
    """A real server, plumbob serve against vLLM's own, under vllm bench serve. Unknown options go to both servers."""
    from monitor.bench.arms import Subject
    from monitor.bench.serve import ServePlan, run_serve

    plan = ServePlan(
        subject=Subject(model=model, bundle=bundle, allow_untested=allow_untested),
        pairs=pairs,
        requests=requests,
        concurrency=batch,
        prompt_tokens=prompt_tokens,
        tokens=tokens,
        eager=eager,
        vllm_arguments=context.args,
    )
    plan.check()
    _check_output(json_path, plot_path)
    with progress() as report:
        result = run_serve(plan, report)
    _output(result, json_path, plot_path)


def _check_output(json_path: Path | None, plot_path: Path | None) -> None:
    """Raise PlumbobError where a result could not be written, before it is measured."""
    from monitor.bench.plot import require_plot

    for option, path in (("--json", json_path), ("--plot", plot_path)):
        if path is not None and not path.absolute().parent.is_dir():
            raise PlumbobError(f"There is no directory {path.absolute().parent}.", f"Make it, or change {option}.")
    if plot_path is not None:
        require_plot(plot_path)


def _output(result: "Result", json_path: Path | None, plot_path: Path | None) -> None:
    from monitor.bench.plot import plot
    from monitor.bench.table import tables

    for table in tables(result):
        print_table(table)
    if json_path is not None:
        json_path.write_bytes(result.to_json())
    if plot_path is not None:
        plot(result, plot_path)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in _list(text)]
    except ValueError:
        raise PlumbobError(f"{option} is a list of numbers, not '{text}'.", "Write it as 1,8.") from None
