"""Results as figures; needs matplotlib (``pip install 'plumbob[bench]'``)."""

import importlib.util
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from monitor.bench.result import Result, Series
from monitor.errors import PrerequisiteError
from probes.errors import PlumbobError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES: Final = (".png", ".svg", ".pdf")
_WIDTH: Final = 9.0
"""Inches."""


def require_plot(path: Path) -> None:
    """Check that a figure can be drawn, before what it shows is measured.

    Args:
        path: Where it is to go.

    Raises:
        PlumbobError: matplotlib is missing, or the name has no suffix of a picture.
    """
    if path.suffix not in SUFFIXES:
        raise PlumbobError(f"{path} is not the name of a picture.", f"Let it end with {', '.join(SUFFIXES)}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise PrerequisiteError("Figures need matplotlib.", "Run: pip install 'plumbob[bench]', or leave --plot out.")


def plot(result: Result, path: Path) -> None:
    """Draw a result.

    Args:
        result: To show.
        path: Of the picture.
    """
    plot_ratios(result).savefig(path, dpi=150)


def plot_ratios(result: Result) -> "Figure":
    """Draw each arm's ratio to stock, with its interval: one panel a metric."""
    compared = [series for series in result.series if series.ratio is not None]
    panels = [(title, list(group)) for title, group in groupby(compared, key=_title)]
    arms = max(len(group) for _, group in panels)
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    figure = _figure(rows * (0.9 + 0.3 * arms))
    for index, (title, group) in enumerate(panels, start=1):
        _panel(figure.add_subplot(rows, columns, index), title, group)
    figure.suptitle(f"{result.model}: ratio to stock, median of {result.rounds} rounds with its 95% interval")
    return figure


def _panel(axes: Any, title: str, group: list[Series]) -> None:
    for row, series in enumerate(group):
        if (ratio := series.ratio) is not None:
            errors = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
            axes.errorbar(ratio.median, row, xerr=errors, fmt="o", capsize=3, color="C0")
    axes.axvline(1.0, color="0.6", linewidth=1, zorder=0)
    axes.set_yticks(range(len(group)), [series.arm for series in group])
    axes.invert_yaxis()
    axes.set_title(title, fontsize="medium")
    axes.grid(axis="x", alpha=0.3)


def _title(series: Series) -> str:
    batch = "" if series.batch is None else f", batch {series.batch}"
    return f"{series.metric}{batch} ({'more' if series.higher_is_better else 'less'} is better)"


def _figure(height: float) -> "Figure":
    from matplotlib.figure import Figure

    # Not by pyplot, which would look for a display.
    return Figure(figsize=(_WIDTH, height), layout="constrained")
