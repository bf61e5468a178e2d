"""Results as tables and figures."""

import io

import pytest
from rich.console import Console

from monitor.bench import plot as plots
from monitor.bench.plot import plot, require_plot
from monitor.bench.table import tables
from monitor.errors import PrerequisiteError
from probes.errors import PlumbobError
from tests.harness.benchmark_results import result


def shown(something) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=1000)
    for table in tables(something):
        console.print(table)
    return stream.getvalue()


def row(text: str, *cells: str) -> bool:
    """Whether a line of a table has these cells, in order and next to each other."""
    lines = [[cell.strip() for cell in line.replace("┃", "│").split("│")] for line in text.splitlines()]
    return any(list(cells) == line[start : start + len(cells)] for line in lines for start in range(len(line)))


@pytest.mark.parametrize("name", ["a b", "[bold]x[/bold]", "[/x]", ":bomb:"])
def test_names_are_shown_as_they_are(name):
    assert shown(result(name)).splitlines()[0].startswith(f"{name}, dummy weights: 48 probes at layers 1, 2, 3")


def test_the_tables_hold_what_was_measured():
    text = shown(result())
    assert row(text, "decode, tokens/s", "8", "stock", "1.50", "1.25 to 1.75", "")
    assert row(text, "scoring", "1.50", "1.25 to 1.75", "0.9900 (0.9700 to 1.0100)")
    assert row(text, "scoring", "16", "70", "66", "4", "0", "0")
    assert row(text, "tapped", "A fine GPU", "bfloat16", "VLLM_COMPILE", "FULL_AND_PIECEWISE", "V2", "1234", "17000")
    assert row(text, "plumbob::tap", "step", "3.00", "160.0", "4.00%")
    assert row(text, "all of ours", "step", "", "160.0", "4.00%")
    assert row(text, "plumbob_tap", "device", "3.00", "25.0", "5.00%")


@pytest.mark.parametrize("suffix", plots.SUFFIXES)
def test_a_figure_is_drawn(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"figure{suffix}"
    require_plot(path)
    plot(result(), path)
    begins = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert path.read_bytes().startswith(begins[suffix])


def test_the_figure_shows_the_ratio_and_its_interval():
    pytest.importorskip("matplotlib")
    (axes,) = plots.plot_ratios(result()).axes
    (container,) = axes.containers
    assert container.lines[0].get_xdata().tolist() == [0.99]
    (segments,) = [collection.get_segments() for collection in container.lines[2]]
    assert segments[0][:, 0].tolist() == pytest.approx([0.97, 1.01])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["scoring"]


def test_a_figure_that_cannot_be_drawn_is_refused_before(monkeypatch, tmp_path):
    with pytest.raises(PlumbobError, match=r"x\.doc is not the name of a picture.*\.png"):
        require_plot(tmp_path / "x.doc")
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PrerequisiteError, match=r"matplotlib.*plumbob\[bench\]"):
        require_plot(tmp_path / "x.png")
