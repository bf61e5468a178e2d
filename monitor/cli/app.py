"""The commands and their options. Each does its work in a module of its own, imported when it is called."""

import contextlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.markup import escape
from rich.text import Text

from monitor import __version__
from monitor.cli.audit import audit, audit_path
from monitor.cli.console import err, fail, out, print_table, progress
from monitor.cli.offline import ReadBy, calibrate, evaluate, open_reader, score
from monitor.cli.order import order, trace
from monitor.cli.policy import policy_commands
from monitor.cli.signing import keygen, sign, verify
from monitor.cli.steering import steer
from monitor.supervisor.serving import API_PORT, GRPC_PORT, METRICS_PORT, Drift, Plan, Serving, default_endpoint
from probes.errors import PlumbobError

if TYPE_CHECKING:
    from monitor.bench.result import Result

app = typer.Typer(
    name="plumbob",
    help="An alignment monitor for language models in production.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(help="Measure what Plumbob costs.", no_args_is_help=True)
app.add_typer(bench, name="bench")
app.add_typer(audit, name="audit")
app.add_typer(order, name="order")
app.add_typer(policy_commands, name="policy")
app.add_typer(steer, name="steer")
for _command in (score, calibrate, keygen, sign, verify, trace):
    app.command()(_command)
app.command("eval")(evaluate)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face id, a local directory, or: demo")]
BundlePath = Annotated[Path, typer.Option("--bundle", "-b", help="Bundle that was fitted to the model.")]
PolicyPath = Annotated[
    Path | None,
    typer.Option("--policy", "-p", help="Policy file; without one, every probe alerts and nothing is steered."),
]
Host = Annotated[str, typer.Option(help="Interface to listen on; there is no authentication yet.")]
MetricsPort = Annotated[int, typer.Option(min=1, max=65535, help="Prometheus metrics.")]
GrpcPort = Annotated[int, typer.Option(min=1, max=65535, help="gRPC events and status.")]
Endpoint = Annotated[str | None, typer.Option(help="Where engine and monitor meet: ipc://SOCKET")]
Trust = Annotated[
    list[Path] | None,
    typer.Option("--trust", help="Public key that may have signed the bundle, else it is refused; may be repeated."),
]
Audit = Annotated[
    str | None,
    typer.Option(
        "--audit",
        metavar="FILE",
        help="Where what is done to requests is recorded, else plumbob/audit.jsonl of $XDG_STATE_HOME; none: nowhere.",
    ),
]
ProbeWorkers = Annotated[
    int, typer.Option(min=1, max=64, help="Processes for the bundle's probes that the engine does not run, if any.")
]
AllowSteering = Annotated[
    list[str] | None,
    typer.Option(metavar="VECTOR", help="Requests may ask to be steered by it, within its cap; may be given again."),
]
AllowControl = Annotated[
    bool, typer.Option("--allow-control", help="Let whoever reaches the gRPC server order engines to steer.")
]
Untested = Annotated[bool, typer.Option("--allow-untested", help="Start on a vLLM version the tap was not tested on.")]


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


@app.command()
def fit(
    model: Model,
    bundle: Annotated[
        Path, typer.Option("--out", "-o", help="Directory of the bundle; an earlier bundle is replaced.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Directory of public data sets; without it, what ships with Plumbob is all there is."),
    ] = None,
    concept: Annotated[
        list[Path] | None,
        typer.Option("--concept", "-c", help="Fit this concept file instead of what ships; may be repeated."),
    ] = None,
    false_positive_rate: Annotated[
        float,
        typer.Option("--fpr", min=0.0001, max=0.5, help="Share of benign requests on which a probe may fire."),
    ] = 0.01,
    tokens: Annotated[
        int | None, typer.Option(min=10_000, help="Tokens to read at most; fewer are faster, and worth less.")
    ] = None,
    reader: Annotated[
        ReadBy, typer.Option(help="What reads the model and lets it answer: vllm is the tapped engine itself.")
    ] = ReadBy.TRANSFORMERS,
    allow_untested: Untested = False,
) -> None:
    """Fit probes and steering vectors to a model, set their thresholds, evaluate them, and write a bundle.

    What was read is kept beside the bundle until it is written: interrupted, the same command goes on where it was.
    """
    from monitor.cli.report import bundle_table
    from probes.data.concepts import CONCEPTS, load_concept
    from probes.fit.bundle_fit import TOKENS, fit_bundle

    # Its warnings would stand between the progress and the error that says the same in one line.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    opens = open_reader(reader, allow_untested=allow_untested)
    concepts = [load_concept(path) for path in concept] if concept else CONCEPTS
    with progress() as report:
        fitted = fit_bundle(
            model,
            bundle,
            version=__version__,
            data=data,
            concepts=concepts,
            false_positive_rate=false_positive_rate,
            tokens=tokens or TOKENS,
            command=" ".join(["plumbob", *sys.argv[1:]]),
            reader=opens,
            progress=report,
        )
    print_table(bundle_table(fitted))
    out.print(Text(f"bundle {fitted.path} ({fitted.digest[:12]}); its report: {fitted.path / 'report.html'}"))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Model,
    bundle: BundlePath,
    policy: PolicyPath = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="OpenAI-compatible API.")] = API_PORT,
    metrics_port: MetricsPort = METRICS_PORT,
    grpc_port: GrpcPort = GRPC_PORT,
    endpoint: Endpoint = None,
    eager: Annotated[
        bool, typer.Option("--eager", help="Do not compile: starts sooner, decodes slower on a GPU.")
    ] = False,
    allow_untested: Untested = False,
    on_drift: Annotated[
        Drift, typer.Option(help="When the self-test at start finds scores that are not the bundle's.")
    ] = Drift.REFUSE,
    audit: Audit = None,
    trust: Trust = None,
    probe_workers: ProbeWorkers = 1,
    allow_steering: AllowSteering = None,
    allow_control: AllowControl = False,
    guard: Annotated[
        bool, typer.Option("--guard/--no-guard", help="Steer an answer no more where it repeats itself.")
    ] = True,
) -> None:
    """Serve a model with vLLM, tapped, with its monitor beside it. Unknown options go to vllm serve."""
    plan = Plan(
        model=model,
        bundle=bundle,
        policy=policy,
        host=host,
        port=port,
        metrics_port=metrics_port,
        grpc_port=grpc_port,
        endpoint=endpoint or default_endpoint(),
        eager=eager,
        allow_untested=allow_untested,
        on_drift=on_drift,
        workers=probe_workers,
        allow_control=allow_control,
        audit=audit_path(audit),
        trust=trust or (),
        allow_steering=allow_steering or (),
        guard=guard,
        vllm_arguments=context.args,
    )
    try:
        serving = Serving(plan, report=lambda text: err.print(f"[bold]plumbob[/] {escape(text)}"))
        with serving, serving.passing_hangups():
            err.print(f"[bold]plumbob[/] API {plan.url}/v1  gRPC {plan.grpc_address}", emoji=False)
            err.print(f"[bold]plumbob[/] metrics {plan.metrics_url}", emoji=False)
            code = serving.watch()
    except KeyboardInterrupt:
        err.print("[bold]plumbob[/] stopped")
        raise typer.Exit(130) from None
    raise typer.Exit(code)


@app.command()
def monitor(
    bundle: BundlePath,
    policy: PolicyPath = None,
    host: Host = "127.0.0.1",
    metrics_port: MetricsPort = METRICS_PORT,
    grpc_port: GrpcPort = GRPC_PORT,
    endpoint: Endpoint = None,
    audit: Audit = None,
    trust: Trust = None,
    probe_workers: ProbeWorkers = 1,
    allow_control: AllowControl = False,
) -> None:
    """Run the monitor alone, beside an engine that is already running."""
    from monitor.service.config import MonitorConfig
    from monitor.service.process import run_monitor

    run_monitor(
        MonitorConfig(
            bundle=bundle,
            policy=policy,
            endpoint=endpoint or default_endpoint(),
            host=host,
            metrics_port=metrics_port,
            grpc_port=grpc_port,
            audit=audit_path(audit),
            trust=tuple(trust or ()),
            probe_workers=probe_workers,
            allow_control=allow_control,
        )
    )


@app.command()
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


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Also check this model.")] = None,
    bundle: Annotated[Path | None, typer.Option("--bundle", "-b", help="Also check this bundle.")] = None,
    policy: PolicyPath = None,
) -> None:
    """Say what is missing on this machine, and the exact fix."""
    from monitor.cli.doctor import examine, table

    findings = examine(model, bundle, policy)
    print_table(table(findings))
    raise typer.Exit(2 if any(finding.state == "missing" for finding in findings) else 0)


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit after the conversations instead of serving on.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="OpenAI-compatible API.")] = API_PORT,
    metrics_port: MetricsPort = METRICS_PORT,
    grpc_port: GrpcPort = GRPC_PORT,
) -> None:
    """Fit, serve and monitor the demo model, and talk to it."""
    from monitor.cli.demo import run_demo

    with contextlib.suppress(KeyboardInterrupt):
        raise typer.Exit(run_demo(once=once, port=port, metrics_port=metrics_port, grpc_port=grpc_port))
    raise typer.Exit(130)


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
    """What each way to run Plumbob costs, against stock vLLM in the same run."""
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
