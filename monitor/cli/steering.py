"""``plumbob steer``: what vectors do, at many doses, and when a policy applies them; how they are made.

Whatever can be wrong with names and files is found before the model is loaded.
"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from monitor import __version__
from monitor.cli.console import out, print_table, progress
from monitor.cli.offline import _load, _quiet, _report_directory, _Trust, _whole, _write
from monitor.cli.vectors import (
    BundleArgument,
    Model,
    VectorName,
    combine_vectors,
    export_vector,
    extract,
    find_concept,
    import_vector,
    list_vectors,
    namesake,
    tell,
)
from probes.bundle import Bundle, Vector, require_destination
from probes.errors import SteeringError

if TYPE_CHECKING:
    from probes.data.requests import Request
    from probes.steering.evaluation import Subject
    from probes.steering.results import SteeringReport

steer = typer.Typer(help="Make steering vectors, and measure what they do.", no_args_is_help=True)

_ConceptName = Annotated[
    str | None,
    typer.Option(
        "--concept", "-c", help="What judges the answers: a shipped concept or a file; else the vector's name."
    ),
]
_Prompts = Annotated[
    Path | None, typer.Option("--prompts", help="Requests to answer, one JSON object a line; else the concept's own.")
]
_Benign = Annotated[
    Path | None,
    typer.Option("--benign", help="Ordinary conversations that end with an answer, one a line; else what ships."),
]
_Data = Annotated[
    Path | None,
    typer.Option("--data", help="Public data sets: the classifier of words learns these as well, and judges better."),
]
_Tokens = Annotated[int, typer.Option("--tokens", min=4, max=2048, help="Of each answer at most.")]


for _name, _function in (
    ("list", list_vectors),
    ("extract", extract),
    ("combine", combine_vectors),
    ("import", import_vector),
    ("export", export_vector),
):
    steer.command(_name)(_function)


@steer.command("calibrate")
def calibrate_vector(
    bundle: BundleArgument,
    vector: VectorName,
    made: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the bundle here instead of replacing it.")
    ] = None,
    report_in: Annotated[
        Path | None, typer.Option("--report", "-r", help="Directory for steering.html and steering.json.")
    ] = None,
    doses: Annotated[str | None, typer.Option(help="Swept both ways, as 0.05,0.1,0.2.")] = None,
    concept: _ConceptName = None,
    prompts: _Prompts = None,
    benign: _Benign = None,
    data: _Data = None,
    tokens: _Tokens = 32,
    model: Model = None,
    trust: _Trust = None,
) -> None:
    """Sweep doses of a vector, and write a bundle with its working range and its cap."""
    from probes.report.steering_page import HTML, write
    from probes.steering.evaluation import open_model, sweep
    from probes.steering.rewrite import with_vector
    from probes.steering.sweep import DOSES, both_ways, parse_doses

    loaded, subject = _subject(bundle, trust, vector, concept, prompts, benign, data, tokens)
    wanted = both_ways(DOSES) if doses is None else parse_doses(doses)
    target = require_destination(made or bundle)
    directory = _directory(report_in)
    with progress() as report:
        source = open_model(loaded, model, report)
        found = sweep(subject, source, wanted, version=__version__, command=_command(), progress=report)
    # Before it is written: a full disk must not take what was measured.
    _print(found)
    if directory is not None:
        write(found, directory)
        out.print(Text(f"report {directory / HTML}"))
    old = subject.vector
    row = loaded.manifest.vectors.index(old)
    new = msgspec.structs.replace(old, working=found.working, max_dose=found.max_dose)
    written, signed = with_vector(loaded, new, loaded.vectors[row], target, version=__version__)
    tell(written, signed=signed)


@steer.command("eval")
def evaluate_vector(
    bundle: BundleArgument,
    vector: VectorName,
    made: Annotated[Path, typer.Option("--out", "-o", help="Directory for steering.html and steering.json.")],
    dose: Annotated[
        float | None,
        typer.Option("--dose", "-d", help="In norms of the residual stream; else the working range's end."),
    ] = None,
    probe: Annotated[
        str | None, typer.Option("--probe", "-p", help="Sets the policy's steering off; else the vector's namesake.")
    ] = None,
    concept: _ConceptName = None,
    prompts: _Prompts = None,
    benign: _Benign = None,
    data: _Data = None,
    tokens: _Tokens = 32,
    texts: Annotated[
        bool, typer.Option("--texts", help="Also write answers.jsonl, which holds the text of all answers.")
    ] = False,
    model: Model = None,
    trust: _Trust = None,
) -> None:
    """Compare unsteered answers with always-steered and policy-steered ones to the same prompts."""
    from probes.report.steering_page import HTML, write
    from probes.steering.edit import edits_of
    from probes.steering.evaluation import open_model, trial
    from probes.steering.generation import Trigger
    from probes.steering.operation import add

    loaded, subject = _subject(bundle, trust, vector, concept, prompts, benign, data, tokens)
    size = _dose(subject.vector) if dose is None else dose
    if size == 0:
        raise SteeringError("A dose of 0 changes nothing.", "Give one with --dose, such as 0.1 or -0.1.")
    # Over the cap, or no number: found before the model is loaded.
    edits_of(loaded, {vector: add(size)})
    trigger = Trigger.of(loaded, probe or vector)
    directory = _directory(made)
    assert directory is not None
    with progress() as report:
        source = open_model(loaded, model, report)
        found, questions, compared = trial(
            subject, source, size, trigger, version=__version__, command=_command(), progress=report
        )
    _print(found)
    write(found, directory)
    if texts:
        path = directory / "answers.jsonl"
        with _whole(path) as stream:
            for row, question in enumerate(questions):
                said = {
                    outcome.name: {
                        "text": source.tokenizer.decode(answers[row].token_ids),
                        "steered": answers[row].steered,
                        "fired_at": answers[row].fired_at,
                    }
                    for outcome, answers in zip(found.outcomes, compared.answers, strict=True)
                }
                _write(stream, path, msgspec.json.encode({"id": question.id, "answers": said}) + b"\n")
        out.print(Text(f"answers {path}"))
    out.print(Text(f"report {directory / HTML}"))


def _subject(
    bundle: Path,
    trust: list[Path] | None,
    vector: str,
    concept: str | None,
    prompts: Path | None,
    benign: Path | None,
    data: Path | None,
    tokens: int,
) -> "tuple[Bundle, Subject]":
    """The evaluation to run, with all files read."""
    from probes.data.sources import load
    from probes.report import require_renderer
    from probes.steering.evaluation import Subject

    _quiet()
    require_renderer()
    loaded = _load(bundle, trust)
    of = find_concept(concept) if concept is not None else namesake(vector)
    learnt = load(of.name, data) if of is not None and data is not None else []
    subject = Subject(loaded, loaded.vector(vector), of, _requests(prompts), _requests(benign), tokens, learnt)
    return loaded, subject


def _requests(path: Path | None) -> "list[Request] | None":
    from probes.data.requests import read_requests

    return None if path is None else read_requests(path)


def _dose(vector: Vector) -> float:
    """The end of the working range that is farther from 0.

    Raises:
        SteeringError: No sweep has found one.
    """
    if vector.working is None or vector.working == (0.0, 0.0):
        raise SteeringError(
            f"Vector '{vector.name}' has no working range.", "Give a --dose, or run: plumbob steer calibrate"
        )
    return max(vector.working, key=abs)


def _directory(path: Path | None) -> Path | None:
    return None if path is None else _report_directory(path)


def _command() -> str:
    return shlex.join(["plumbob", *sys.argv[1:]])


def _print(found: "SteeringReport") -> None:
    from probes.evaluation.wording import percent
    from probes.report.steering_page import ratio
    from probes.steering.conclusions import change

    table = Table(
        "arm", "probe, change", "words, change", "refuses", "repetition", "perplexity of ordinary answers",
        "facts right", "tokens", "rows steered", "fired on",
    )  # fmt: skip
    for outcome in found.outcomes:
        facts = outcome.accuracy.mean if outcome.accuracy else found.facts_right if not outcome.dose else None
        table.add_row(
            Text(outcome.name),
            "" if outcome.probe is None else change(outcome.probe),
            "" if outcome.words is None else change(outcome.words),
            percent(outcome.refused.mean),
            percent(outcome.repetition.mean),
            "1" if outcome.perplexity is None else ratio(outcome.perplexity),
            "" if facts is None else percent(facts),
            str(outcome.tokens),
            str(outcome.steered),
            "" if outcome.triggered is None else f"{outcome.triggered} of {found.prompts}",
        )
    table.caption = "Changes are within prompts, in logits, with 95% intervals; perplexity is relative to unsteered."
    print_table(table)
    for sentence in [*found.says, *found.notes]:
        out.print(Text(sentence))
