"""Extraction of directions: from contrast pairs, a probe, or a file.

1. Both sides of each pair are read, and the states of the last message averaged, as fitting does
   (:mod:`probes.fit`).
2. ``mean``: the mean over pairs of positive less negative (contrastive activation addition, Rimsky et al.,
   arXiv 2312.06681, there at the answer's letter; here over the message).
3. ``pca``: the first principal component of those differences (representation engineering, Zou et al.,
   arXiv 2310.01405). They are not centred, since which side of a pair comes first is a convention: with half of them
   turned round, their mean is zero and their second moments are these. It points to where most differences do.
4. ``probe``: the direction that a linear probe reads. What is read best need not be what the model uses.
5. ``file``: a tensor of any origin, in safetensors. The file may say which model and layer it belongs to, and is then
   held to it.

The unit of dose is that of the layer's other vectors, else measured as fitting does: the median norm of the states of
the model's own answers to ordinary requests.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from probes.bundle import Bundle
from probes.data.concepts import load_benign
from probes.data.examples import Pair
from probes.errors import SteeringError, reason
from probes.models import Progress, no_progress
from probes.models.activation_store import last_message
from probes.models.activations import TransformersSource
from probes.steering.direction import Direction, fingerprint

Method = Literal["mean", "pca", "probe", "file", "combination"]
"""The method by which a vector was made; ``combination`` is one of others."""

MODEL_KEY: Final = "plumbob.model"
"""Of a file's metadata: the fingerprint of the model that its direction belongs to."""
LAYER_KEY: Final = "plumbob.layer"
TENSOR: Final = "direction"
"""Name of the tensor in the files that are written here."""

NORM_REQUESTS: Final = 32
"""Ordinary requests whose answers give the unit of dose: a median of some 1,000 tokens."""
NORM_TOKENS: Final = 32
"""Of each of those answers at most, as in fitting."""


def differences(
    source: TransformersSource, pairs: Sequence[Pair], layer: int, progress: Progress = no_progress
) -> NDArray[np.float64]:
    """Positive less negative of each pair, means over the last message, shape ``(pairs, hidden)``.

    Args:
        source: The model.
        pairs: One at least.
        layer: Whose output is read, counted from 0.
        progress: Told how many tokens are read.

    Raises:
        SteeringError: A pair has no text in its last message.
        ModelError: The model cannot be read.
    """
    sides = [side for pair in pairs for side in (pair.positive, pair.negative)]
    for row, side in enumerate(sides):
        # Its rows would be those of the message before.
        if not side or not side[-1].content.strip():
            raise SteeringError(f"Pair {pairs[row // 2].id} has no text in its last message.", "Write one.")
    readings = source.read([source.encode(side) for side in sides], [layer], progress)
    means = np.empty((len(sides), source.hidden))
    for row, reading in enumerate(readings):
        last = last_message(reading.roles)
        means[row] = reading.states[0][last].mean(axis=0, dtype=np.float64)
    return means[::2] - means[1::2]


def mean_direction(found: NDArray[np.floating]) -> NDArray[np.float64]:
    """The mean of differences, shape ``(pairs, hidden)`` to ``(hidden,)``."""
    return np.asarray(found, np.float64).mean(axis=0)


def principal_direction(found: NDArray[np.floating]) -> NDArray[np.float64]:
    """The first principal component of differences, as long as their mean is along it.

    Args:
        found: Shape ``(pairs, hidden)``.

    Raises:
        SteeringError: All of them are zero, or half of them point one way and half the other.
    """
    found = np.asarray(found, np.float64)
    _, sizes, rows = np.linalg.svd(found, full_matrices=False)
    along = float(found.mean(axis=0) @ rows[0])
    if sizes[0] == 0 or abs(along) < 1e-9 * sizes[0]:
        raise SteeringError(
            "The differences of the pairs have no common direction.", "Write pairs that differ in the concept alone."
        )
    return along * rows[0]


def from_pairs(
    bundle: Bundle,
    source: TransformersSource,
    pairs: Sequence[Pair],
    layer: int,
    method: Literal["mean", "pca"],
    progress: Progress = no_progress,
) -> Direction:
    """A direction of more of what the pairs' positives show.

    Raises:
        SteeringError: The layer is not the model's, or the pairs give no direction.
    """
    require_layer(bundle, layer)
    found = differences(source, pairs, layer, progress)
    values = mean_direction(found) if method == "mean" else principal_direction(found)
    return Direction(fingerprint(bundle.manifest.model), layer, values)


def of_probe(bundle: Bundle, name: str) -> Direction:
    """The direction that a linear probe reads, at its layer.

    Raises:
        SteeringError: The bundle has no linear probe of that name.
    """
    for probe, weight in zip(bundle.probes, bundle.weight, strict=True):
        if probe.name == name:
            return Direction(fingerprint(bundle.manifest.model), probe.layer, weight)
    known = ", ".join(probe.name for probe in bundle.probes) or "none"
    raise SteeringError(f"Bundle {bundle.path} has no linear probe '{name}'.", f"It has: {known}.")


def of_bundle(bundle: Bundle) -> dict[str, Direction]:
    """A bundle's vectors, of unit length, by name."""
    model = fingerprint(bundle.manifest.model)
    return {
        vector.name: Direction(model, vector.layer, values)
        for vector, values in zip(bundle.manifest.vectors, bundle.vectors, strict=True)
    }


def from_file(bundle: Bundle, path: Path, layer: int | None, tensor: str | None = None) -> Direction:
    """A direction from a file of safetensors, of any length.

    Args:
        bundle: Of the model that it is to steer.
        path: The file. Its metadata may have :data:`MODEL_KEY` and :data:`LAYER_KEY`, as :func:`to_file` writes them.
        layer: Where it is added; ``None`` for the layer that the file names.
        tensor: Its name in the file; ``None`` where the file has one tensor only.

    Raises:
        SteeringError: It is no such file, or does not fit the model; the message says in what.
    """
    require_file(path)
    try:
        with safe_open(path, framework="numpy") as opened:
            metadata, names = dict(opened.metadata() or {}), sorted(opened.keys())
            name = tensor or (names[0] if len(names) == 1 else None)
            if name is None or name not in names:
                what = f"has no tensor '{tensor}'" if tensor else f"has {len(names)} tensors"
                known = ", ".join(names[:8]) or "none"
                raise SteeringError(f"{path} {what}.", f"Name one with --tensor; there are: {known}.")
            values = np.asarray(opened.get_tensor(name))
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        # A type that numpy does not have, bfloat16, comes as a TypeError or an AttributeError.
        raise SteeringError(
            f"{path} cannot be read: {reason(error)}.", "Name a file of safetensors with a float32 vector."
        ) from error
    own = metadata.get(LAYER_KEY)
    if own is not None and not own.isdecimal():
        raise SteeringError(f"{path} says that its layer is {own!r}.", "Write the file again.")
    if own is not None and layer is not None and int(own) != layer:
        raise SteeringError(f"{path} has a direction of layer {own}, not {layer}.", "Leave --layer out.")
    if layer is None and own is None:
        raise SteeringError(f"{path} does not say which layer it belongs to.", "Name it with --layer.")
    chosen = layer if layer is not None else int(own or 0)
    require_layer(bundle, chosen)
    model = bundle.manifest.model
    if (theirs := metadata.get(MODEL_KEY)) is not None and theirs != fingerprint(model):
        raise SteeringError(f"{path} has a direction of another model than {model.name}.", "Extract it from this one.")
    if values.shape != (model.hidden,):
        raise SteeringError(
            f"{path} has a tensor of shape {values.shape}; the model is {model.hidden} wide.",
            f"Give one of shape ({model.hidden},).",
        )
    if values.dtype.kind not in "fiu":
        raise SteeringError(f"{path} has a tensor of type {values.dtype}.", "Give numbers.")
    return Direction(fingerprint(model), chosen, values)


def to_file(direction: Direction, path: Path) -> None:
    """Write a direction so that :func:`from_file` reads it, bound to its model and layer.

    Raises:
        SteeringError: The file cannot be written.
    """
    metadata = {MODEL_KEY: direction.model, LAYER_KEY: str(direction.layer)}
    try:
        save_file({TENSOR: np.asarray(direction.values, np.float32)}, path, metadata)
    except (SafetensorError, OSError) as error:
        raise SteeringError(f"{path} cannot be written: {reason(error)}.", "Name another file.") from error


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        SteeringError: It cannot be read.
    """
    require_file(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hidden_norm(bundle: Bundle, layer: int, source: TransformersSource, progress: Progress = no_progress) -> float:
    """The unit of dose at a layer; see the module's docstring.

    Raises:
        SteeringError: The model answers nothing.
        ModelError: The model cannot be read.
    """
    if (known := known_norm(bundle, layer)) is not None:
        return known
    requests = load_benign()
    chosen = [request.messages for request in requests[:: max(1, len(requests) // NORM_REQUESTS)]][:NORM_REQUESTS]
    prompts = [source.encode(messages, respond=True) for messages in chosen]
    answered = source.respond(prompts, NORM_TOKENS, progress)
    norms = [
        np.linalg.norm(reading.states[0][len(prompt) :], axis=-1)
        for prompt, reading in zip(prompts, source.read(answered, [layer], progress), strict=True)
    ]
    norm = float(np.median(np.concatenate(norms))) if any(map(len, norms)) else 0.0
    if norm == 0:
        raise SteeringError("The model answers ordinary requests with nothing.", "Steer one that talks.")
    return norm


def known_norm(bundle: Bundle, layer: int) -> float | None:
    """The unit of dose that the bundle's vectors of a layer have, ``None`` where it has none there."""
    return next((vector.hidden_norm for vector in bundle.manifest.vectors if vector.layer == layer), None)


def require_layer(bundle: Bundle, layer: int) -> None:
    """Check that the model has a layer.

    Raises:
        SteeringError: It does not.
    """
    layers = bundle.manifest.model.layers
    if not 0 <= layer < layers:
        raise SteeringError(f"The model has no layer {layer}.", f"Name one from 0 to {layers - 1}.")


def require_file(path: Path) -> None:
    """Check that there is a file.

    Raises:
        SteeringError: There is none, or it cannot be read.
    """
    try:
        with path.open("rb"):
            return
    except OSError as error:
        raise SteeringError(f"{path} cannot be read: {error.strerror}.", "Name a file of safetensors.") from error
