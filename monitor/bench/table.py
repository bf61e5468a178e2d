"""Results as tables for a terminal."""

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from rich.table import Table
from rich.text import Text

from monitor.bench.growth import WHERE, Growth
from monitor.bench.result import Ratio, Result, Series, StepProfile


def tables(result: Result | Growth) -> Iterator[Table]:
    """Everything that a result holds, one table after another."""
    if isinstance(result, Growth):
        yield growth(result)
        return
    yield comparison(result)
    if result.traffic:
        yield traffic(result)
    if result.engines:
        yield engines(result)
    if result.profiles:
        yield profile(result.profiles)


def comparison(result: Result) -> Table:
    """Each metric of each arm, beside stock."""
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
    """What the monitor saw."""
    columns = ("arm", "requests", "frames sent", "read", "lost", "rows steered", "rows streamed")
    table = _table("the monitor", columns)
    for arm, seen in result.traffic.items():
        counts = (seen.requests, seen.sent, seen.frames, seen.lost, seen.steered, seen.streamed)
        table.add_row(Text(arm), *map(str, counts))
    return table


def growth(result: Growth) -> Table:
    """How the cost grows."""
    weights = ", dummy weights" if result.dummy_weights else ""
    used = [where for where in WHERE if where in result.lines]
    columns = (result.by, "probes", "layers", "batch", *(f"µs a step, {WHERE[where]}" for where in used), "of the step")
    table = _table(f"{result.model}{weights}: what of a decode step is ours, by {result.by}", columns)
    for point in result.points:
        costs = [float(np.median(point.microseconds[where])) for where in used]
        on_thread = np.divide(point.microseconds["step"], point.step_microseconds)
        about = (point.value, point.probes, len(point.layers), point.batch)
        table.add_row(*map(str, about), *(f"{cost:.1f}" for cost in costs), f"{float(np.median(on_thread)):.2%}")
    lines = (
        f"{WHERE[where]}: {line.microseconds:.1f} + {line.microseconds_each:.3f} x {result.by}, R² {line.r_squared:.3f}"
        for where, line in result.lines.items()
    )
    table.caption = Text("; ".join(lines))
    return table


def engines(result: Result) -> Table:
    """What each engine was, and the memory that it took."""
    columns = ("engine", "device", "dtype", "compiled", "CUDA graphs", "runner", "peak RSS, MiB", "peak CUDA, MiB")
    table = _table("engines", columns)
    for name, facts in result.engines.items():
        cuda = "" if facts.cuda_peak_mib is None else f"{facts.cuda_peak_mib:.0f}"
        about = (facts.device, facts.dtype, facts.compilation, facts.cudagraphs, facts.runner)
        table.add_row(Text(name), *map(Text, about), f"{facts.rss_peak_mib:.0f}", cuda)
    return table


def profile(profiles: list[StepProfile]) -> Table:
    """What of a decode step is ours."""
    table = _table("one decode step, profiled", ("arm", "batch", "what", "where", "calls", "µs", "of the step"))
    for step in profiles:
        table.add_row(Text(step.arm), str(step.batch), "the whole step", "", "", f"{step.microseconds:.1f}", "")
        for scope in step.scopes:
            whole = step.device_microseconds if scope.where == "device" else step.microseconds
            spent = (f"{scope.calls:.2f}", f"{scope.microseconds:.1f}", f"{scope.microseconds / whole:.2%}")
            table.add_row("", "", Text(scope.name), scope.where, *spent)
        table.add_section()
    table.caption = "Spans in none of ours; those on the device as a share of all that ran there."
    return table


def show_ratio(ratio: Ratio | None) -> str:
    """A ratio with its interval."""
    return "" if ratio is None else f"{ratio.median:.4f} ({ratio.low:.4f} to {ratio.high:.4f})"


def _numbers(series: Series) -> tuple[str, str, str]:
    low, high = series.quartiles
    return f"{series.median:.2f}", f"{low:.2f} to {high:.2f}", show_ratio(series.ratio)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column)
    return table
