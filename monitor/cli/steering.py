"""``plumbob steer``: vectors made, combined, tried at many doses, and compared with what a policy would do.

Whatever can be wrong with names and files is found before the model is loaded. A bundle is never changed: what these
commands write is another one, without a signature.
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
from monitor.cli.console import err, out, print_table, progress
from monitor.cli.offline import _load, _quiet, _report_directory, _Trust, _whole, _write
from probes.bundle import Bundle, Vector, require_destination
from probes.errors import ConceptError, SteeringError
from probes.steering import Direction, combine, fingerprint

if TYPE_CHECKING:
    from probes.concepts import Concept
    from probes.requests import Request
    from probes.steering.document import SteeringReport
    from probes.steering.evaluation import Subject

steer = typer.Typer(help="Make steering vectors, and measure what they do.", no_args_is_help=True)

_BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle that was fitted to the model.")]
_Out = Annotated[Path, typer.Option("--out", "-o", help="Directory of the new bundle; an earlier one is replaced.")]
_Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Where the model is now, if not where it was fitted from.")
]
_Name = Annotated[str, typer.Option("--name", "-n", help="What the new vector is called.")]
_Layer = Annotated[int | None, typer.Option("--layer", "-l", help="Block whose output it is added to, from 0.")]
_Replace = Annotated[bool, typer.Option("--replace", help="Take the place of a vector that has the name.")]
_VectorName = Annotated[str, typer.Option("--vector", "-v", help="Which of the bundle's vectors.")]
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
_Tokens = Annotated[int, typer.Option("--tokens", min=4, max=2048, help="Of each answer at most.")]


@steer.command("list")
def list_vectors(bundle: _BundleArgument, trust: _Trust = None) -> None:
    """Show a bundle's vectors."""
    loaded = _load(bundle, trust)
    table = Table("vector", "layer", "made", "dose 1 is", "working range", "cap")
    for vector in loaded.manifest.vectors:
        table.add_row(
            Text(vector.name),
            str(vector.layer),
            Text(f"{vector.method} of {vector.origin}" if vector.origin else vector.method),
            f"{vector.hidden_norm:.4g}",
            "not swept" if vector.working is None else f"{vector.working[0]:g} to {vector.working[1]:g}",
            "none" if vector.max_dose is None else f"{vector.max_dose:g}",
        )
    print_table(table)


@steer.command()
def extract(
    bundle: _BundleArgument,
    concept: Annotated[str, typer.Option("--concept", "-c", help="Shipped concept, or a concept file (.yaml).")],
    name: _Name,
    made: _Out,
    method: Annotated[
        str, typer.Option(help="mean: of the pairs' differences; pca: their first component; probe: what it reads.")
    ] = "mean",
    layer: _Layer = None,
    replace: _Replace = False,
    model: _Model = None,
    trust: _Trust = None,
) -> None:
    """Make a vector of a concept's contrast pairs, or of its probe, and write a bundle that has it."""
    from probes.steering.evaluation import open_model
    from probes.steering.extraction import from_pairs, hidden_norm, known_norm, of_probe, require_layer
    from probes.steering.rewrite import require_room

    _quiet()
    loaded = _load(bundle, trust)
    if method not in ("mean", "pca", "probe"):
        raise SteeringError(f"There is no method '{method}'.", "Name one of: mean, pca, probe.")
    target = require_destination(made)
    if method == "probe":
        direction = of_probe(loaded, concept)
        if layer is not None and layer != direction.layer:
            raise SteeringError(f"Probe '{concept}' reads layer {direction.layer}, not {layer}.", "Leave --layer out.")
        require_room(loaded, name, direction.layer, replaces=replace)
        norm, origin = known_norm(loaded, direction.layer), f"probe {concept}"
        if norm is None:
            with progress() as report:
                norm = hidden_norm(loaded, direction.layer, open_model(loaded, model, report), report)
    else:
        of = _concept(concept)
        chosen = _layer_of(loaded, of.name, layer)
        require_layer(loaded, chosen)
        require_room(loaded, name, chosen, replaces=replace)
        with progress() as report:
            source = open_model(loaded, model, report)
            direction = from_pairs(loaded, source, of.pairs, chosen, "pca" if method == "pca" else "mean", report)
            norm = hidden_norm(loaded, chosen, source, report)
        origin = f"{len(of.pairs)} pairs of {of.name}"
    _add(loaded, Vector(name, direction.layer, norm, method=method, origin=origin), direction, target)


@steer.command("combine")
def combine_vectors(
    bundle: _BundleArgument,
    name: _Name,
    expression: Annotated[
        str, typer.Option("--expression", "-e", help="Such as: a - 0.5 * b, or: orthogonal(a, b); of unit vectors.")
    ],
    made: _Out,
    replace: _Replace = False,
    trust: _Trust = None,
) -> None:
    """Combine a bundle's vectors into another, of unit length, and write a bundle that has it."""
    from probes.steering.extraction import known_norm, of_bundle
    from probes.steering.rewrite import require_room

    loaded = _load(bundle, trust)
    direction = combine(expression, of_bundle(loaded))
    require_room(loaded, name, direction.layer, replaces=replace)
    norm = known_norm(loaded, direction.layer)
    assert norm is not None, "what is combined is at that layer"
    vector = Vector(name, direction.layer, norm, method="combination", origin=expression.strip())
    _add(loaded, vector, direction, require_destination(made))


@steer.command("import")
def import_vector(
    bundle: _BundleArgument,
    file: Annotated[Path, typer.Option("--file", "-f", help="File of safetensors.")],
    name: _Name,
    made: _Out,
    layer: _Layer = None,
    tensor: Annotated[str | None, typer.Option(help="Its name in the file, if there are several.")] = None,
    replace: _Replace = False,
    model: _Model = None,
    trust: _Trust = None,
) -> None:
    """Take a direction from a file, and write a bundle that has it."""
    from probes.steering.evaluation import open_model
    from probes.steering.extraction import LAYER_KEY, digest, from_file, hidden_norm, known_norm
    from probes.steering.rewrite import require_room

    _quiet()
    loaded = _load(bundle, trust)
    direction = from_file(loaded, file, layer, tensor)
    # A length of zero is found here, before the model is touched.
    direction.unit()
    require_room(loaded, name, direction.layer, replaces=replace)
    target = require_destination(made)
    norm = known_norm(loaded, direction.layer)
    if norm is None:
        with progress() as report:
            norm = hidden_norm(loaded, direction.layer, open_model(loaded, model, report), report)
    origin = f"{file.name}, SHA-256 {digest(file)}"
    _add(loaded, Vector(name, direction.layer, norm, method="file", origin=origin), direction, target)
    if LAYER_KEY not in _metadata(file):
        err.print(Text(f"{file} does not say which model it was made of: that it fits is your word."))


@steer.command("export")
def export_vector(
    bundle: _BundleArgument,
    vector: _VectorName,
    made: Annotated[Path, typer.Option("--out", "-o", help="File of safetensors; replaced if there.")],
    trust: _Trust = None,
) -> None:
    """Write a vector to a file that names its model and layer."""
    from probes.steering.extraction import to_file

    loaded = _load(bundle, trust)
    found = loaded.vector(vector)
    row = loaded.manifest.vectors.index(found)
    to_file(Direction(fingerprint(loaded.manifest.model), found.layer, loaded.vectors[row]), made)
    out.print(Text(f"vector {vector} in {made}"))


@steer.command("calibrate")
def calibrate_vector(
    bundle: _BundleArgument,
    vector: _VectorName,
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
    tokens: _Tokens = 32,
    model: _Model = None,
    trust: _Trust = None,
) -> None:
    """Sweep doses of a vector, and write a bundle with its working range and its cap."""
    from probes.steering.evaluation import open_model, sweep
    from probes.steering.page import HTML, write
    from probes.steering.rewrite import with_vector
    from probes.steering.sweep import DOSES, both_ways, parse_doses

    loaded, subject = _subject(bundle, trust, vector, concept, prompts, benign, tokens)
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
    _tell(written, signed=signed)


@steer.command("eval")
def evaluate_vector(
    bundle: _BundleArgument,
    vector: _VectorName,
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
    tokens: _Tokens = 32,
    texts: Annotated[
        bool, typer.Option("--texts", help="Also write answers.jsonl, which holds the text of all answers.")
    ] = False,
    model: _Model = None,
    trust: _Trust = None,
) -> None:
    """Compare unsteered answers with always-steered and policy-steered ones to the same prompts."""
    from probes.steering.edit import edits_of
    from probes.steering.evaluation import open_model, trial
    from probes.steering.generation import Trigger
    from probes.steering.operation import add
    from probes.steering.page import HTML, write

    loaded, subject = _subject(bundle, trust, vector, concept, prompts, benign, tokens)
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
    tokens: int,
) -> "tuple[Bundle, Subject]":
    """What is evaluated, with all files read."""
    from probes.report import require_figures
    from probes.steering.evaluation import Subject

    _quiet()
    require_figures()
    loaded = _load(bundle, trust)
    of = _concept(concept) if concept is not None else _namesake(vector)
    subject = Subject(loaded, loaded.vector(vector), of, _requests(prompts), _requests(benign), tokens)
    return loaded, subject


def _requests(path: Path | None) -> "list[Request] | None":
    from probes.requests import read_requests

    return None if path is None else read_requests(path)


def _concept(name: str) -> "Concept":
    """A shipped concept by its name, or a user's by its file.

    Raises:
        ConceptError: There is none.
    """
    from probes.concepts import CONCEPTS, load_concept

    if Path(name).suffix in (".yaml", ".yml"):
        return load_concept(Path(name))
    if (found := _namesake(name)) is None:
        known = ", ".join(concept.name for concept in CONCEPTS)
        raise ConceptError(f"There is no concept '{name}'.", f"Name a file (.yaml), or one of: {known}.")
    return found


def _namesake(name: str) -> "Concept | None":
    from probes.concepts import CONCEPTS

    return next((concept for concept in CONCEPTS if concept.name == name), None)


def _layer_of(bundle: Bundle, concept: str, layer: int | None) -> int:
    """The layer that was asked for, else that of the concept's probe.

    Raises:
        SteeringError: There is neither.
    """
    if layer is not None:
        return layer
    for probe in bundle.probes:
        if probe.name == concept:
            return probe.layer
    raise SteeringError(f"Bundle {bundle.path} has no probe '{concept}' to take the layer of.", "Name it with --layer.")


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


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as opened:
        return dict(opened.metadata() or {})


def _command() -> str:
    return shlex.join(["plumbob", *sys.argv[1:]])


def _add(bundle: Bundle, vector: Vector, direction: Direction, target: Path) -> None:
    from probes.steering.rewrite import with_vector

    written, signed = with_vector(bundle, vector, direction.unit().values, target, version=__version__)
    others = [other for other in bundle.manifest.vectors if other.name != vector.name and other.layer == vector.layer]
    if others:
        rows = {other.name: bundle.vectors[bundle.manifest.vectors.index(other)] for other in others}
        nearest = {
            name: direction.cosine(Direction(direction.model, direction.layer, values)) for name, values in rows.items()
        }
        said = ", ".join(f"{name} {cosine:+.2f}" for name, cosine in nearest.items())
        out.print(Text(f"cosine with the layer's other vectors: {said}"))
    out.print(Text(f"vector {vector.name} at layer {vector.layer}: {vector.method} of {vector.origin}"))
    _tell(written, signed=signed)


def _tell(written: Bundle, *, signed: bool) -> None:
    if signed:
        err.print(Text("its signature was left behind, since it is another bundle: sign it with plumbob sign"))
    out.print(Text(f"bundle {written.path} ({written.digest[:12]})"))


def _print(found: "SteeringReport") -> None:
    from probes.report.words import percent
    from probes.steering.page import ratio
    from probes.steering.sentences import change

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
