"""Values that templates lay out: tables of cells, and sections of a page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from probes.report.figures import LineStyle
from probes.report.heatmap import ColouredTokens


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table."""

    text: str
    mark: Literal["", "good", "bad"] = ""
    """Colour of the text; what it says is in the text as well."""
    link: str = ""
    """Address within the page."""
    line: LineStyle | None = None
    """The line of a figure that the row is about."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column names its rows."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @classmethod
    def of(cls, caption: str, heads: Sequence[str], rows: Iterable[Sequence[str | Cell]]) -> "Table":
        """Make a table of cells, and of texts as plain cells."""
        cells = [[Cell(item) if isinstance(item, str) else item for item in row] for row in rows]
        return cls(caption, heads, cells)


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what is under it, in this order."""

    title: str
    figure: str = ""
    """SVG."""
    legend: Sequence[tuple[LineStyle, str]] = ()
    """Each line of the figure and what it is, where no table says so."""
    table: Table | None = None
    text: str = ""
    heatmaps: Sequence[ColouredTokens] = field(default=())
