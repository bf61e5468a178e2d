"""Figures as inline SVG, by matplotlib (``pip install 'plumbob[bench]'``).

A table or a legend beside each says what its lines are, by their colour and dash. Ink is ``currentColor``, so that
figures follow the page into the dark.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from probes.evaluation.results import Histogram, Roc, SweepPoint
from probes.evaluation.wording import percent

COLOURS: Final = ("#2f7ec7", "#d9622b", "#2e9e6b", "#b065c9", "#a8841a", "#d1487f")
"""Legible on white and on black."""
DASHES: Final = ("solid", "dashed", "dotted")
"""Names that CSS and matplotlib share, so that no two lines differ in colour alone."""
LOWEST_RATE: Final = 1e-3
"""Left end of a ROC's axis."""
INK: Final = "#010203"
"""Replaced by ``currentColor``."""
_SETTINGS: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True, slots=True)
class LineStyle:
    """Style of a line, in a figure and in its legend."""

    colour: str
    dash: str


def line_style(index: int) -> LineStyle:
    """Style of the line of that number."""
    return LineStyle(COLOURS[index % len(COLOURS)], DASHES[(index + index // len(COLOURS)) % len(DASHES)])


def roc(curves: Sequence[Roc], nominal: float, name: str) -> str:
    """Draw recall against the false-positive rate, logarithmic; thin where a set's negatives are too few for the rate.

    Args:
        curves: In the order of :func:`line_style`.
        nominal: Marked by a vertical line.
        name: Of the figure, distinct within a page.
    """

    def draw(axes: Any) -> None:
        for index, curve in enumerate(curves):
            style = line_style(index)
            # The last point holds to the right edge; what lies left of the axis comes in at it.
            rates = [max(rate, LOWEST_RATE / 2) for rate, _ in curve.points] + [1.0]
            recalls = [recall for _, recall in curve.points] + [curve.points[-1][1]]
            lines = {"color": style.colour, "linestyle": style.dash, "drawstyle": "steps-post"}
            axes.plot(rates, recalls, linewidth=0.8, alpha=0.6, **lines)
            shown = min(3 / curve.n_negative, 1.0)
            begins = max((index for index, rate in enumerate(rates) if rate <= shown), default=0)
            axes.plot([shown, *rates[begins + 1 :]], recalls[begins:], linewidth=1.8, **lines)
        axes.axvline(nominal, color=INK, linewidth=0.8, alpha=0.5)
        axes.set_xscale("log")
        axes.set_xlim(LOWEST_RATE, 1)
        axes.set_ylim(0, 1.01)
        axes.set_xticks([1e-3, 1e-2, 1e-1, 1], ["0.1%", "1%", "10%", "100%"])
        axes.set_xlabel("false-positive rate")
        axes.set_ylabel("recall")

    what = f"ROC curves of {len(curves)} sets; the table beside it gives recall at fixed false-positive rates."
    return svg(draw, name, what, height=3.4)


def histogram(scores: Histogram, threshold: float, name: str) -> str:
    """Draw the share of each class in each bin of scores, and the threshold."""

    def draw(axes: Any) -> None:
        for index, (of, counts) in enumerate(scores.counts.items()):
            style = line_style(index)
            total = (sum(counts) + scores.silent.get(of, 0)) or 1
            shares = [count / total for count in counts]
            axes.stairs(shares, scores.edges, fill=True, color=style.colour, alpha=0.18)
            axes.stairs(shares, scores.edges, color=style.colour, linestyle=style.dash, linewidth=1.5)
        axes.axvline(threshold, color=INK, linewidth=1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("verdict's score, logits")
        axes.set_ylabel("share of the class")

    what = f"Distribution of scores of {len(scores.counts)} classes, with the threshold at {threshold:.3f}."
    return svg(draw, name, what)


def sweep(points: Sequence[SweepPoint], layer: int, nominal: float, name: str) -> str:
    """Draw the best recall of each kind at each layer, and mark the layer that was chosen."""

    def draw(axes: Any) -> None:
        for index, (_, best) in enumerate(best_by_layer(points).items()):
            style = line_style(index)
            recalls = [point.recall for point in best]
            axes.plot(
                [point.layer for point in best], recalls, "o", linestyle=style.dash, color=style.colour, markersize=4
            )
        axes.axvline(layer, color=INK, linewidth=0.8, alpha=0.5)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xticks(sorted({point.layer for point in points}))
        axes.set_xlabel("layer")
        axes.set_ylabel(f"recall at {percent(nominal)}")

    return svg(draw, name, "Recall of each kind of probe by layer; the table beside it gives the numbers.")


def best_by_layer(points: Sequence[SweepPoint]) -> dict[str, list[SweepPoint]]:
    """Take the best point of each kind at each layer, by recall, then AUROC; layers ascending."""
    kinds: dict[str, dict[int, SweepPoint]] = {}
    for point in points:
        layers = kinds.setdefault(point.kind, {})
        known = layers.get(point.layer)
        if known is None or (point.recall, point.auroc) > (known.recall, known.auroc):
            layers[point.layer] = point
    return {kind: [layers[layer] for layer in sorted(layers)] for kind, layers in kinds.items()}


def svg(draw: Callable[[Any], None], name: str, label: str, height: float = 2.6) -> str:
    """Draw a figure that may stand in a page beside others: the same bytes for the same figure.

    Args:
        draw: Given matplotlib's axes; what it draws in :data:`INK` becomes ``currentColor``.
        name: Of the figure, distinct within a page.
        label: For a reader who does not see it; constant but for numbers.
        height: Inches, of a width of 5.6.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with rc_context({**_SETTINGS, "svg.hashsalt": name}):
        # Not by pyplot, which would look for a display.
        figure = Figure(figsize=(5.6, height), layout="constrained")
        draw(figure.add_subplot())
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    drawn = stream.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg role="img" aria-label="{label}" \1>', drawn, count=1
    )
    # It would apply to the whole page; the page's own style sheet has it.
    drawn = re.sub(r"\s*<style.*?</style>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"font-family: [^;\"]*;? ?", "", drawn)
    drawn = re.sub(r"(\d\.\d\d)\d+", r"\1", drawn)
    # Names are unique within a file only.
    drawn = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", drawn)
    return drawn.replace(INK, "currentColor").strip()
