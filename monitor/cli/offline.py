"""``plumbob score``, ``plumbob eval`` and ``plumbob calibrate``: a bundle on requests that are in a file.

Whatever can be wrong with the files is found before the model is loaded, and what is written is written whole or not at
all. What reads the model in ``plumbob fit`` is chosen here, too.
"""

import os
import secrets
import shlex
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import msgspec
import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from monitor import __version__
from monitor.cli.console import err, out, print_table, progress
from probes.bundle import MANIFEST, SIGNATURE, Bundle, Probe, WorkerProbe, load_bundle, require_destination, save_bundle
from probes.bundle.directory import mount_points
from probes.bundle.shipped import require_trusted
from probes.errors import PlumbobError

if TYPE_CHECKING:
    from probes.data.requests import Skipped
    from probes.models.activations import OpenReader

_BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle of the model, or: demo")]
_Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Where the model is now, if not where it was fitted from.")
]
_BatchTokens = Annotated[int, typer.Option(min=1, help="Padded tokens that the model reads at once.")]
_Trust = Annotated[
    list[Path] | None,
    typer.Option("--trust", help="Public key that may have signed the bundle, else it is refused; may be repeated."),
]
_SkipInvalid = Annotated[
    bool, typer.Option("--skip-invalid", help="Leave out lines that cannot be read, and say how many and why.")
]
_LINE = '{"id", "messages": [{"role", "content"}, …]} or {"id", "prompt"}, or a line of OpenAI\'s batch format'
"""The form of a request, for the help."""


class ReadBy(StrEnum):
    """The reader of activations, which also lets the model answer."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"
    """The tapped engine that will serve the model."""


def open_reader(by: ReadBy, *, allow_untested: bool) -> "OpenReader | None":
    """The opener of fitting's reader; ``None``: it uses transformers, which it has open anyway.

    Args:
        by: What is to read.
        allow_untested: Take a vLLM that the tap was not tested on.

    Raises:
        PrerequisiteError: vLLM is to read, and is missing or was not tested.
    """
    if by is ReadBy.TRANSFORMERS:
        return None
    from monitor.offline.source import VllmSource
    from monitor.supervisor.checks import require_vllm

    require_vllm(allow_untested=allow_untested)
    return partial(VllmSource, allow_untested=allow_untested)


def score(
    bundle: _BundleArgument,
    requests: Annotated[Path, typer.Option("--in", "-i", help=f"Requests, one JSON object a line: {_LINE}.")],
    scored: Annotated[Path, typer.Option("--out", "-o", help="Verdicts, one line for each; replaced if there.")],
    model: _Model = None,
    batch_tokens: _BatchTokens = 2048,
    probability: Annotated[
        bool, typer.Option("--probability", help="Give the probability beside the score, where the bundle has it.")
    ] = False,
    skip_invalid: _SkipInvalid = False,
    trust: _Trust = None,
) -> None:
    """Score requests of a file as the monitor would: one line in, one line out, in the same order.

    A conversation is read as vLLM's server reads it, tools and all, up to where the answer begins; one whose last
    message is the assistant's is scored with that answer.
    """
    from probes.data.requests import Skipped, read_requests
    from probes.evaluation.offline_scores import open_scorer

    _quiet()
    loaded = _load(bundle, trust)
    skipped = Skipped() if skip_invalid else None
    rows = read_requests(requests, [probe.name for probe in loaded.all_probes], skipped)
    target = _destination(scored, requests)
    with progress() as report:
        scorer = open_scorer(loaded, model, batch_tokens, report)
        rows = rows if skipped is None else scorer.readable(rows, skipped)
        encoded = scorer.encode(rows)
        tally = np.zeros((2, len(loaded.all_probes)), np.int64)
        with _whole(target) as stream:
            done = 0
            for chunk in scorer.score(encoded, report):
                for row in range(len(chunk)):
                    at = done + row
                    line = scorer.describe(rows[at], encoded[at], chunk, row, probability=probability)
                    _write(stream, target, msgspec.json.encode(line) + b"\n")
                done += len(chunk)
                tally += [(chunk.fired_at >= 0).sum(axis=0), (chunk.peak > -np.inf).sum(axis=0)]
    table = Table("probe", "fired", "scored", "without verdict")
    for probe, fired, read in zip(loaded.all_probes, *tally.tolist(), strict=True):
        table.add_row(Text(probe.name), str(fired), str(read), str(len(rows) - read))
    print_table(table)
    unread = sum((Counter(scorer.unread(request)) for request in encoded), Counter[str]())
    if unread:
        said = ", ".join(f"{count} ({role})" for role, count in sorted(unread.items()))
        err.print(Text(f"tokens that no probe of the bundle reads, and that are not called clean: {said}"))
    if truncated := sum(request.truncated for request in encoded):
        err.print(
            Text(f"{truncated} of {len(rows)} requests exceed the model's context: only their beginning was read")
        )
    _tell(skipped)
    out.print(Text(f"{len(rows)} requests scored in {target}"))


def evaluate(
    bundle: _BundleArgument,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            "-d",
            help=f'Labelled requests, one a line: {_LINE}, with "labels": {{probe: 0 or 1}}; also "group", "source", '
            '"slices".',
        ),
    ],
    made: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory for report.html and report.json; replaced if there.")
    ] = None,
    examples: Annotated[
        bool, typer.Option("--heatmaps", help="Show example conversations: puts their text into the report.")
    ] = False,
    model: _Model = None,
    batch_tokens: _BatchTokens = 2048,
    skip_invalid: _SkipInvalid = False,
    trust: _Trust = None,
) -> None:
    """Judge a bundle, its thresholds as they are, on labelled requests: recall, false positives, and text baselines."""
    from monitor.cli.judgement import judgement_table
    from probes.data.requests import Skipped, read_requests
    from probes.evaluation.judge import judge, require_labels
    from probes.evaluation.offline_scores import open_scorer
    from probes.report import HTML, Report, concluded, require_renderer, write

    _quiet()
    loaded = _load(bundle, trust)
    skipped = Skipped() if skip_invalid else None
    rows = read_requests(data, [probe.name for probe in loaded.all_probes], skipped)
    require_labels(rows, data)
    if examples and made is None:
        raise PlumbobError("--heatmaps are part of the report, and no report is asked for.", "Add --out DIR.")
    if made is not None:
        require_renderer()
        made = _report_directory(made)
    with progress() as report:
        scorer = open_scorer(loaded, model, batch_tokens, report)
        if skipped is not None:
            rows = scorer.readable(rows, skipped)
            require_labels(rows, data)
        judged = judge(scorer, rows, examples=examples, progress=report)
    _tell(skipped)
    found = concluded(
        Report(
            plumbob=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            model=loaded.manifest.model.name,
            command=shlex.join(["plumbob", *sys.argv[1:]]),
            probes=judged.probes,
            fingerprint=loaded.manifest.model.parts,
            notes=judged.notes,
        )
    )
    # Before it is written: a full disk must not take what was measured.
    print_table(judgement_table(found.probes))
    for note in found.notes:
        out.print(Text(note))
    for probe in found.probes:
        out.print(Text(f"{probe.name}: {probe.verdict_says[0]}"))
        for remark in probe.remarks:
            out.print(Text(f"{probe.name}: {remark}"))
    if made is not None:
        write(found, made)
        out.print(Text(f"report {made / HTML}"))


def calibrate(
    bundle: _BundleArgument,
    benign: Annotated[
        Path,
        typer.Option("--benign", help=f'Requests on which nothing should fire, one a line: {_LINE}; also "source".'),
    ],
    rate: Annotated[
        float, typer.Option("--fpr", min=0.0001, max=0.5, help="Share of benign requests on which a probe may fire.")
    ] = 0.01,
    made: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the bundle here instead of replacing it.")
    ] = None,
    model: _Model = None,
    batch_tokens: _BatchTokens = 2048,
    skip_invalid: _SkipInvalid = False,
    trust: _Trust = None,
) -> None:
    """Set a bundle's thresholds on your own benign traffic, without fitting its probes again.

    The markers that tell roles are found in the chat template anew, and go into the bundle.
    """
    from probes.calibration.thresholds import may_fire, recalibrate, traffic_slices
    from probes.data.requests import Skipped, read_requests
    from probes.evaluation.offline_scores import open_scorer, score_requests

    _quiet()
    loaded = _load(bundle, trust)
    skipped = Skipped() if skip_invalid else None
    rows = read_requests(benign, [probe.name for probe in loaded.all_probes], skipped)
    for row in rows:
        if shown := sorted(probe for probe, label in row.labels.items() if label):
            raise PlumbobError(
                f"{benign}: request {row.id!r} is labelled as {shown[0]}, which is not benign.", "Leave the line out."
            )
    may_fire(len(rows), rate)
    traffic_slices(np.ones(len(rows), np.int64), [row.source for row in rows], [row.slices for row in rows])
    target = require_destination(made or bundle)
    with progress() as report:
        scorer = open_scorer(loaded, model, batch_tokens, report, find_markers=True)
        if skipped is not None:
            rows = scorer.readable(rows, skipped)
            may_fire(len(rows), rate)
        scores = score_requests(scorer, rows, report)
    _tell(skipped)
    probes, kept = recalibrate(loaded.all_probes, rows, scores, rate)
    if len(kept) == len(probes):
        raise PlumbobError(f"No threshold can be set on {benign}: {next(iter(kept.values()))}")
    stale = [*loaded.manifest.files, *([SIGNATURE] if (loaded.path / SIGNATURE).exists() else [])]
    written = save_bundle(
        target,
        version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=loaded.manifest.model,
        markers=scorer.markers,
        probes=list(zip(probes[: len(loaded.probes)], loaded.weight, loaded.bias.tolist(), strict=True)),
        vectors=list(zip(loaded.manifest.vectors, loaded.vectors, strict=True)),
        canaries=loaded.canaries,
        provenance=loaded.manifest.provenance,
        worker_probes=[
            WorkerProbe(probe, reader)
            for probe, reader in zip(probes[len(loaded.probes) :], loaded.readers, strict=True)
        ],
    )
    print_table(calibration_table(loaded, probes, kept))
    for name, why in kept.items():
        err.print(Text(f"{name} keeps its threshold. {why}"))
    if stale:
        err.print(Text(f"left out, since of the earlier thresholds: {', '.join(stale)}. Evaluate and sign it again."))
    out.print(Text(f"bundle {written.path} ({written.digest[:12]})"))


def calibration_table(before: Bundle, probes: list[Probe], kept: dict[str, str]) -> Table:
    """The evidence for each threshold, slice by slice."""
    table = Table("probe", "traffic", "requests", "fired (95% interval)", "its own threshold", "certified")
    for old, probe in zip(before.all_probes, probes, strict=True):
        if probe.name in kept:
            table.add_row(Text(probe.name), "", "", "", f"{old.threshold:.2f} (kept)", "")
            continue
        found = probe.calibration
        now = f"{probe.threshold:.2f} (was {old.threshold:.2f})"
        table.add_row(
            Text(probe.name), "all", str(found.benign), _share(found.fired, found.benign, found.interval), now
        )
        for part in found.slices:
            own = "none" if part.threshold is None else f"{part.threshold:.2f}"
            share = _share(part.fired, part.benign, part.interval)
            table.add_row("", Text(part.name), str(part.benign), share, own, "yes" if part.certified else "no")
    table.caption = (
        "A probe's threshold is the largest of all requests' and of the certified sources'. "
        "The recall in the bundle is that at the threshold it was fitted with."
    )
    return table


def _tell(skipped: "Skipped | None") -> None:
    """Say what was left out."""
    if skipped is not None and skipped.count:
        err.print(Text(f"{skipped.count} requests skipped, which cannot be read; the first for these reasons:"))
        for why in skipped.reasons:
            err.print(Text(f"  {why}"))


def _share(fired: int, count: int, interval: tuple[float, float]) -> str:
    return f"{fired} ({interval[0]:.1%} to {interval[1]:.1%})" if count else "0"


def _quiet() -> None:
    # transformers' warnings would stand between the progress and the error that says the same in one line.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _load(path: Path, trust: Sequence[Path] | None) -> Bundle:
    """A bundle, signed by one of the keys where any is named.

    Raises:
        BundleError: It is damaged, or not signed by one of them.
    """
    bundle = load_bundle(path)
    require_trusted(bundle, trust or ())
    return bundle


def _report_directory(path: Path) -> Path:
    """Resolve the directory of a report, and check that it can be written.

    Raises:
        PlumbobError: It is a bundle, no directory, or cannot be written.
    """
    resolved, another = path.expanduser().resolve(), "Name another directory with --out."
    if (resolved / MANIFEST).exists():
        raise PlumbobError(f"{path} is a bundle, which vouches for each of its files.", another)
    there = next(parent for parent in (resolved, *resolved.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise PlumbobError(f"{path} cannot be written: {there} is not a directory that you may write to.", another)
    files = [entry for entry in resolved.iterdir() if entry.is_file()] if resolved.exists() else []
    _require_no_mount(path, files, "Mount the directory, not its files.")
    return resolved


def _destination(path: Path, source: Path) -> Path:
    """Resolve the path of a file, and check that it can be written.

    Raises:
        PlumbobError: It is the file that is read, no file, or in no directory that may be written to.
    """
    resolved, another = path.expanduser().resolve(), "Name another file with --out."
    if resolved == source.expanduser().resolve():
        raise PlumbobError(f"{path} is the file that is read.", another)
    if resolved.exists() and not resolved.is_file():
        raise PlumbobError(f"{path} exists and is not a file.", another)
    if not resolved.parent.is_dir() or not os.access(resolved.parent, os.W_OK | os.X_OK):
        raise PlumbobError(
            f"{path} cannot be written: {resolved.parent} is not a directory that you may write to.", another
        )
    _require_no_mount(path, [resolved], "Mount its directory instead, or name another file with --out.")
    return resolved


def _require_no_mount(path: Path, files: Sequence[Path], fix: str) -> None:
    """Raise PlumbobError where one of the files is mounted by itself, and cannot be replaced by another."""
    if fixed := mount_points(files):
        raise PlumbobError(f"{path} cannot be written: {fixed[0]} is a mount point, which no file can replace.", fix)


@contextmanager
def _whole(path: Path) -> Generator[IO[bytes]]:
    """A file that takes the place of ``path`` when all of it is on the disk, and is gone if that fails."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with _writing(path):
            stream = temporary.open("xb")
        try:
            yield stream
            with _writing(path):
                stream.flush()
                os.fsync(stream.fileno())
        finally:
            # What a full disk left in the buffer fails once more.
            with _writing(path):
                stream.close()
        with _writing(path):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(stream: IO[bytes], path: Path, content: bytes) -> None:
    with _writing(path):
        stream.write(content)


@contextmanager
def _writing(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise PlumbobError(
            f"{path} cannot be written: {error.strerror}. Nothing was kept.", "Free space, or change --out."
        ) from error
