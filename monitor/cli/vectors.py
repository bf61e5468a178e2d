"""``plumbob steer list``, ``extract``, ``combine``, ``import`` and ``export``: the vectors of a bundle.

Whatever can be wrong with names and files is found before the model is loaded. A bundle is never changed: what these
commands write is another one, without a signature.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from monitor import __version__
from monitor.cli.console import err, out, print_table, progress
from monitor.cli.offline import _load, _quiet, _Trust
from probes.bundle import Bundle, Vector, require_destination
from probes.errors import ConceptError, SteeringError
from probes.steering import Direction, combine, fingerprint

if TYPE_CHECKING:
    from probes.data.concepts import Concept

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle of the model, or: demo")]
_Out = Annotated[Path, typer.Option("--out", "-o", help="Directory of the new bundle; an earlier one is replaced.")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Where the model is now, if not where it was fitted from.")
]
_Name = Annotated[str, typer.Option("--name", "-n", help="What the new vector is called.")]
_Layer = Annotated[int | None, typer.Option("--layer", "-l", help="Block whose output it is added to, from 0.")]
_Replace = Annotated[bool, typer.Option("--replace", help="Take the place of a vector that has the name.")]
VectorName = Annotated[str, typer.Option("--vector", "-v", help="Which of the bundle's vectors.")]


def list_vectors(bundle: BundleArgument, trust: _Trust = None) -> None:
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


def extract(
    bundle: BundleArgument,
    concept: Annotated[str, typer.Option("--concept", "-c", help="Shipped concept, or a concept file (.yaml).")],
    name: _Name,
    made: _Out,
    method: Annotated[
        str, typer.Option(help="mean: of the pairs' differences; pca: their first component; probe: what it reads.")
    ] = "mean",
    layer: _Layer = None,
    replace: _Replace = False,
    model: Model = None,
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
        of = find_concept(concept)
        chosen = _layer_of(loaded, of.name, layer)
        require_layer(loaded, chosen)
        require_room(loaded, name, chosen, replaces=replace)
        with progress() as report:
            source = open_model(loaded, model, report)
            direction = from_pairs(loaded, source, of.pairs, chosen, "pca" if method == "pca" else "mean", report)
            norm = hidden_norm(loaded, chosen, source, report)
        origin = f"{len(of.pairs)} pairs of {of.name}"
    _add(loaded, Vector(name, direction.layer, norm, method=method, origin=origin), direction, target)


def combine_vectors(
    bundle: BundleArgument,
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


def import_vector(
    bundle: BundleArgument,
    file: Annotated[Path, typer.Option("--file", "-f", help="File of safetensors.")],
    name: _Name,
    made: _Out,
    layer: _Layer = None,
    tensor: Annotated[str | None, typer.Option(help="Its name in the file, if there are several.")] = None,
    replace: _Replace = False,
    model: Model = None,
    trust: _Trust = None,
) -> None:
    """Take a direction from a file, and write a bundle that has it."""
    from probes.steering.evaluation import open_model
    from probes.steering.extraction import MODEL_KEY, digest, from_file, hidden_norm, known_norm
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
    if MODEL_KEY not in _metadata(file):
        err.print(Text(f"{file} does not say which model it was made of: that it fits is your word."))


def export_vector(
    bundle: BundleArgument,
    vector: VectorName,
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


def find_concept(name: str) -> "Concept":
    """A shipped concept by its name, or a user's by its file.

    Raises:
        ConceptError: There is none.
    """
    from probes.data.concepts import CONCEPTS, load_concept

    if Path(name).suffix in (".yaml", ".yml"):
        return load_concept(Path(name))
    if (found := namesake(name)) is None:
        known = ", ".join(concept.name for concept in CONCEPTS)
        raise ConceptError(f"There is no concept '{name}'.", f"Name a file (.yaml), or one of: {known}.")
    return found


def namesake(name: str) -> "Concept | None":
    """The shipped concept of that name, ``None`` where there is none."""
    from probes.data.concepts import CONCEPTS

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


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as opened:
        return dict(opened.metadata() or {})


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
    tell(written, signed=signed)


def tell(written: Bundle, *, signed: bool) -> None:
    """Say what was written, and that it needs a signature where the old bundle had one."""
    if signed:
        err.print(Text("its signature was left behind, since it is another bundle: sign it with plumbob sign"))
    out.print(Text(f"bundle {written.path} ({written.digest[:12]})"))
