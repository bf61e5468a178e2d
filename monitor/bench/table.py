"""Results as tables for a terminal."""

from collections.abc import Iterator
from itertools import groupby

from rich.table import Table
from rich.text import Text

from monitor.bench.result import Ratio, Result, Series, StepProfile


def tables(result: Result) -> Iterator[Table]:
    """Lay out everything that a result holds, one table after another."""
    yield comparison(result)
    if result.traffic:
        yield traffic(result)
    if result.engines:
        yield engines(result)
    if result.profiles:
        yield profile(result.profiles)


def comparison(result: Result) -> Table:
    """List each metric of each arm, beside stock."""
    weights = ", dummy weights" if result.dummy_weights else ""
    table = _table(
        f"{result.model}{weights}: {result.bundle.probes} probes at layers "
        f"{', '.join(map(str, result.bundle.layers))}; {result.description}",
        ("metric", "batch", "arm", "median", "quartiles", "ratio to stock (95% interval)"),
    )
    for _, group in groupby(result.series, key=lambda series: (series.metric, series.batch)):
        for index, series in enumerate(group):
            what = (
                ("", "") if index else (f"{series.metric}, {series.unit}", "" if series.batch is None else series.batch)
            )
            table.add_row(str(what[0]), str(what[1]), Text(series.arm), *_numbers(series))
        table.add_section()
    table.caption = f"{result.rounds} rounds; ratios within rounds, median with its bootstrap interval."
    return table


def traffic(result: Result) -> Table:
    """List the traffic that the monitor saw."""
    columns = ("arm", "requests", "frames sent", "read", "lost", "rows steered", "rows streamed")
    table = _table("the monitor", columns)
    for arm, seen in result.traffic.items():
        counts = (seen.requests, seen.sent, seen.frames, seen.lost, seen.steered, seen.streamed)
        table.add_row(Text(arm), *map(str, counts))
    return table


def engines(result: Result) -> Table:
    """List the engines, with the memory that each took."""
    columns = ("engine", "device", "dtype", "compiled", "CUDA graphs", "runner", "peak RSS, MiB", "peak CUDA, MiB")
    table = _table("engines", columns)
    for name, facts in result.engines.items():
        cuda = "" if facts.cuda_peak_mib is None else f"{facts.cuda_peak_mib:.0f}"
        about = (facts.device, facts.dtype, facts.compilation, facts.cudagraphs, facts.runner)
        table.add_row(Text(name), *map(Text, about), f"{facts.rss_peak_mib:.0f}", cuda)
    return table


def profile(profiles: list[StepProfile]) -> Table:
    """List the parts of a decode step that are ours."""
    table = _table("one decode step, profiled", ("arm", "batch", "what", "where", "calls", "µs", "of the step"))
    for step in profiles:
        table.add_row(Text(step.arm), str(step.batch), "the whole step", "", "", f"{step.microseconds:.1f}", "")
        for where in dict.fromkeys(scope.where for scope in step.scopes):
            whole = step.device_microseconds if where == "device" else step.microseconds
            ours = step.ours(where)
            table.add_row("", "", "all of ours", where, "", f"{ours:.1f}", f"{ours / whole:.2%}")
            for scope in (scope for scope in step.scopes if scope.where == where):
                spent = (f"{scope.calls:.2f}", f"{scope.microseconds:.1f}", f"{scope.microseconds / whole:.2%}")
                table.add_row("", "", Text(scope.name), where, *spent)
        table.add_section()
    table.caption = "Spans in none of ours; those on the device as a share of all that ran there."
    return table


def show_ratio(ratio: Ratio | None) -> str:
    """Word a ratio with its interval."""
    return "" if ratio is None else f"{ratio.median:.4f} ({ratio.low:.4f} to {ratio.high:.4f})"


def _numbers(series: Series) -> tuple[str, str, str]:
    low, high = series.quartiles
    return f"{series.median:.2f}", f"{low:.2f} to {high:.2f}", show_ratio(series.ratio)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column)
    return table
