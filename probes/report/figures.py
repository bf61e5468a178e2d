"""The figures as inline SVG, by matplotlib (``pip install 'plumbob[bench]'``).

They hold no text of the report's, only axes and numbers: what each line is stands in a table beside them, with the
line's own colour and dash. Ink is ``currentColor``, so that they follow the page into the dark.
"""

import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from probes.errors import PlumbobError
from probes.evaluation.results import Histogram, Roc, SweepPoint
from probes.evaluation.wording import percent
from probes.report.markup import Markup

COLOURS: Final = ("#2f7ec7", "#d9622b", "#2e9e6b", "#b065c9", "#a8841a", "#d1487f")
"""Legible on white and on black."""
DASHES: Final = ("solid", "dashed", "dotted")
"""Names that CSS and matplotlib share, so that no line is told from another by its colour alone."""
LOWEST_RATE: Final = 1e-3
"""Left end of a ROC's axis."""
_INK: Final = "#010203"
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
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}


def require_figures() -> None:
    """Check that figures can be drawn, before what they show is measured.

    Raises:
        PlumbobError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise PlumbobError("The figures of a report need matplotlib.", "Run: pip install 'plumbob[bench]'")


def style(index: int) -> tuple[str, str]:
    """Colour and dash of the line of that number."""
    return COLOURS[index % len(COLOURS)], DASHES[(index + index // len(COLOURS)) % len(DASHES)]


def roc(curves: Sequence[Roc], nominal: float, name: str) -> Markup:
    """Recall against the false-positive rate on a logarithmic axis; thin where a set's negatives are too few for it.

    Args:
        curves: In the order of :func:`style`.
        nominal: Marked by a vertical line.
        name: Of the figure, distinct within a page.
    """

    def draw(axes: Any) -> None:
        for index, curve in enumerate(curves):
            colour, dash = style(index)
            # The last point holds to the right edge; what lies left of the axis comes in at it.
            rates = [max(rate, LOWEST_RATE / 2) for rate, _ in curve.points] + [1.0]
            recalls = [recall for _, recall in curve.points] + [curve.points[-1][1]]
            lines = {"color": colour, "linestyle": dash, "drawstyle": "steps-post"}
            axes.plot(rates, recalls, linewidth=0.8, alpha=0.6, **lines)
            shown = min(3 / curve.n_negative, 1.0)
            begins = max((index for index, rate in enumerate(rates) if rate <= shown), default=0)
            axes.plot([shown, *rates[begins + 1 :]], recalls[begins:], linewidth=1.8, **lines)
        axes.axvline(nominal, color=_INK, linewidth=0.8, alpha=0.5)
        axes.set_xscale("log")
        axes.set_xlim(LOWEST_RATE, 1)
        axes.set_ylim(0, 1.01)
        axes.set_xticks([1e-3, 1e-2, 1e-1, 1], ["0.1%", "1%", "10%", "100%"])
        axes.set_xlabel("false-positive rate")
        axes.set_ylabel("recall")

    what = f"ROC curves of {len(curves)} sets; the table beside it gives recall at fixed false-positive rates."
    return _svg(draw, name, what, height=3.4)


def histogram(scores: Histogram, threshold: float, name: str) -> Markup:
    """The share of each class in each bin of scores, and the threshold."""

    def draw(axes: Any) -> None:
        for index, (of, counts) in enumerate(scores.counts.items()):
            colour, dash = style(index)
            total = (sum(counts) + scores.silent.get(of, 0)) or 1
            shares = [count / total for count in counts]
            axes.stairs(shares, scores.edges, fill=True, color=colour, alpha=0.18)
            axes.stairs(shares, scores.edges, color=colour, linestyle=dash, linewidth=1.5)
        axes.axvline(threshold, color=_INK, linewidth=1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("verdict's score, logits")
        axes.set_ylabel("share of the class")

    what = f"Distribution of scores of {len(scores.counts)} classes, with the threshold at {threshold:.3f}."
    return _svg(draw, name, what)


def sweep(points: Sequence[SweepPoint], layer: int, nominal: float, name: str) -> Markup:
    """The best recall of each kind at each layer, and the layer that was chosen."""

    def draw(axes: Any) -> None:
        for index, (_, best) in enumerate(best_by_layer(points).items()):
            colour, dash = style(index)
            recalls = [point.recall for point in best]
            axes.plot([point.layer for point in best], recalls, "o", linestyle=dash, color=colour, markersize=4)
        axes.axvline(layer, color=_INK, linewidth=0.8, alpha=0.5)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xticks(sorted({point.layer for point in points}))
        axes.set_xlabel("layer")
        axes.set_ylabel(f"recall at {percent(nominal)}")

    return _svg(draw, name, "Recall of each kind of probe by layer; the table beside it gives the numbers.")


def best_by_layer(points: Sequence[SweepPoint]) -> dict[str, list[SweepPoint]]:
    """Of each kind, the best point of each layer by recall, then AUROC; layers ascending."""
    kinds: dict[str, dict[int, SweepPoint]] = {}
    for point in points:
        layers = kinds.setdefault(point.kind, {})
        known = layers.get(point.layer)
        if known is None or (point.recall, point.auroc) > (known.recall, known.auroc):
            layers[point.layer] = point
    return {kind: [layers[layer] for layer in sorted(layers)] for kind, layers in kinds.items()}


def _svg(draw: Callable[[Any], None], name: str, label: str, height: float = 2.6) -> Markup:
    """Draw, and make of the file what may stand in a page beside others: the same bytes for the same figure."""
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
    return Markup(drawn.replace(_INK, "currentColor").strip())
