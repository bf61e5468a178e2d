"""What is printed says what it was given, wherever it is printed."""

import io
import sys

import msgspec
import pytest
from rich.console import Console

from monitor.cli import app, console
from monitor.cli.console import fail, print_table, progress
from monitor.cli.report import bundle_table
from monitor.errors import PolicyError
from probes.errors import PlumbobError

NAMES = ["a b", "[bold]x[/bold]", "[/x]", ":bomb:", "x" * 300]


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", NAMES)
def test_an_error_is_one_line_with_the_name_as_it_is(capsys, name):
    fail(PolicyError(f"Something is wrong\nwith {name}.", "Do\tthis."))
    assert capsys.readouterr() == ("", f"error: Something is wrong with {name}. Do this.\n")


def test_an_error_without_a_fix_ends_with_its_sentence(capsys):
    fail(PlumbobError("It broke."))
    assert capsys.readouterr().err == "error: It broke.\n"


def test_an_error_cannot_send_escape_codes(capsys):
    fail(PlumbobError("a\x1b[2Jb\x07c\u202ed"))
    assert capsys.readouterr().err == "error: a�[2Jb�c�d\n"


def test_colour_on_a_terminal_and_in_nothing_but_the_label(monkeypatch):
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, color_system="standard", width=20, soft_wrap=True)
    monkeypatch.setattr(console, "err", terminal)
    fail(PlumbobError("It broke in a way that takes more than a line to tell."))
    text = stream.getvalue()
    assert text.startswith("\x1b[1;31merror: \x1b[0m") and text.count("\x1b") == 2
    assert text.count("\n") == 1, "a terminal breaks lines itself, and copies them whole"


@pytest.mark.parametrize("name", NAMES[:-1])
def test_tables_show_names_as_they_are(tiny_bundle, capsys, name):
    bundle = tiny_bundle()
    manifest = bundle.manifest
    model = msgspec.structs.replace(manifest.model, name=name)
    probes = [msgspec.structs.replace(manifest.probes[0], name=name), *manifest.probes[1:]]
    vars(bundle)["manifest"] = msgspec.structs.replace(manifest, model=model, probes=probes)
    print_table(bundle_table(bundle))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == f"probes of {name}"
    assert sum(name in line for line in lines) == 2


def test_a_bundle_without_probes_has_a_table(tiny_bundle, capsys):
    bundle = tiny_bundle()
    vars(bundle)["manifest"] = msgspec.structs.replace(bundle.manifest, probes=[])
    print_table(bundle_table(bundle))
    assert "probes of tiny" in capsys.readouterr().out


def test_what_was_fitted_is_named_as_it_is(tiny_bundle, monkeypatch, capsys, tmp_path):
    bundle = tiny_bundle(tmp_path / "[bold]x [/y] :bomb:")
    monkeypatch.setattr("probes.fit.bundle_fit.fit_bundle", lambda *arguments, **options: bundle)
    monkeypatch.setattr(sys, "argv", ["plumbob", "fit", "demo", "--out", "x"])
    monkeypatch.setattr(app.signal, "signal", lambda *arguments: None)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert not ended.value.code
    last = f"bundle {bundle.path} ({bundle.digest[:12]}); its report: {bundle.path / 'report.html'}\n"
    assert last in capsys.readouterr().out


def test_progress_without_a_terminal_is_a_line_for_each_tenth(capsys):
    with progress() as report:
        for done in range(101):
            report("reading", done, 100)
        report("nothing", 0, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [*(f"reading: {done}/100" for done in range(0, 101, 10)), "nothing: 0/0"]


def test_an_error_of_the_system_that_names_a_file_is_one_line(monkeypatch, capsys):
    def broken():
        raise OSError(28, "No space left on device", "/full/disk")

    monkeypatch.setattr(app, "app", broken)
    monkeypatch.setattr(app.signal, "signal", lambda *arguments: None)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: /full/disk: No space left on device. ")


@pytest.mark.parametrize("error", [OSError("of the network"), ValueError("a bug")])
def test_a_bug_keeps_its_traceback(monkeypatch, error):
    def broken():
        raise error

    monkeypatch.setattr(app, "app", broken)
    monkeypatch.setattr(app.signal, "signal", lambda *arguments: None)
    with pytest.raises(type(error)):
        app.main()
