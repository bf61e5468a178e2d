"""The bundle: one directory with everything that the engine and the monitor need to read one model.

::

    bundle/
      bundle.json          the manifest: model, probes, vectors, thresholds with their evidence
      tensors.safetensors  probes.weight (probes, hidden), probes.bias (probes,), vectors (vectors, hidden), float32;
                           canaries.tokens and canaries.lengths, int64, canaries.reference (tokens, probes), float32;
                           worker.NAME.w1 and so on, those of the worker probe NAME (:mod:`probes.scoring.multimax`)
      report.json, .html   what the probes are worth, where the bundle was evaluated
      signature.json       who vouches for it (:mod:`probes.bundle.signing`)

The manifest names the SHA-256 of every other file, the signature excepted, and the bundle's digest is the SHA-256 of
the manifest, so that one digest stands for all of it. A file that it does not name is refused: it would pass for a
part. A bundle is bound to one model by the fingerprint of its configuration, weights, tokenizer and chat template; its
canaries show whether an engine computes that model. Nothing here needs torch, and nothing is pickled.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from probes.bundle.canaries import Canaries
from probes.bundle.manifest import FORMAT, Calibration, Evaluation, Manifest, ModelIdentity, Probe, Provenance, Vector
from probes.errors import BundleError
from probes.scoring.multimax import MultiMax
from probes.scoring.roles import Markers, Role

__all__ = [
    "MANIFEST",
    "MAX_PROBES_PER_LAYER",
    "MAX_VECTORS_PER_LAYER",
    "MAX_WORKER_PROBES",
    "MULTIMAX",
    "SIGNATURE",
    "TENSORS",
    "Bundle",
    "Calibration",
    "Evaluation",
    "Manifest",
    "ModelIdentity",
    "Probe",
    "Vector",
    "WorkerProbe",
    "load_bundle",
    "require_destination",
    "save_bundle",
]

MANIFEST = "bundle.json"
TENSORS = "tensors.safetensors"
SIGNATURE = "signature.json"
_OPTIONAL: Final = ("report.json", "report.html")
"""Further files that a bundle may have."""

MAX_PROBES_PER_LAYER = 64
MAX_VECTORS_PER_LAYER = 8
MAX_WORKER_PROBES = 64

MULTIMAX: Final = "multimax"
"""The kind of worker probes."""


@dataclass(frozen=True, slots=True)
class WorkerProbe:
    """A probe that is more than a direction: what it is, and what reads states for it."""

    probe: Probe
    reader: MultiMax


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle."""

    manifest: Manifest
    digest: str
    """SHA-256 of the manifest, which holds that of the tensors."""
    path: Path
    weight: NDArray[np.float32]
    """Shape ``(probes, hidden)``."""
    bias: NDArray[np.float32]
    """Shape ``(probes,)``."""
    vectors: NDArray[np.float32]
    """Unit rows, shape ``(vectors, hidden)``."""
    canaries: Canaries
    """Empty where an engine cannot be tested: a bundle made by hand."""
    readers: tuple[MultiMax, ...] = ()
    """Those of the worker probes, in the order of the manifest."""

    @property
    def probes(self) -> list[Probe]:
        """Linear probes, which the engine reads, in the order of their score columns."""
        return self.manifest.probes

    @property
    def worker_probes(self) -> list[WorkerProbe]:
        """Probes that read streamed activations outside the engine, sorted by layer."""
        return [WorkerProbe(*pair) for pair in zip(self.manifest.worker_probes, self.readers, strict=True)]

    @property
    def all_probes(self) -> list[Probe]:
        """Linear probes, then those of workers: the order of verdicts."""
        return [*self.manifest.probes, *self.manifest.worker_probes]

    @cached_property
    def layers(self) -> list[int]:
        """Tapped layers, ascending: those that are scored, steered, or streamed to worker probes."""
        return sorted({item.layer for item in [*self.all_probes, *self.manifest.vectors]})

    def probe_columns(self, layer: int) -> list[int]:
        """Score columns of the probes of one layer; consecutive, since probes are sorted by layer."""
        return [column for column, probe in enumerate(self.manifest.probes) if probe.layer == layer]

    def vector_rows(self, layer: int) -> list[int]:
        """Rows of :attr:`vectors` at one layer."""
        return [row for row, vector in enumerate(self.manifest.vectors) if vector.layer == layer]

    def vector(self, name: str) -> Vector:
        """The steering vector of that name.

        Raises:
            BundleError: There is none.
        """
        for vector in self.manifest.vectors:
            if vector.name == name:
                return vector
        known = ", ".join(vector.name for vector in self.manifest.vectors) or "none"
        raise BundleError(f"Bundle {self.path} has no steering vector '{name}'.", f"It has: {known}.")

    @cached_property
    def read_mask(self) -> NDArray[np.bool_]:
        """Which linear probe reads which role, shape ``(roles, probes)``."""
        return self.all_read_mask[:, : len(self.probes)]

    @cached_property
    def all_read_mask(self) -> NDArray[np.bool_]:
        """Which of :attr:`all_probes` reads which role, shape ``(roles, all probes)``."""
        return np.array([[probe.reads(role) for probe in self.all_probes] for role in Role]).reshape(
            len(Role), len(self.all_probes)
        )

    def require_model(self, identity: ModelIdentity) -> None:
        """Check that the bundle was fitted to this model.

        Raises:
            BundleError: It was fitted to another; the message names the parts that differ.
        """
        mine = self.manifest.model
        differing = [part for part, digest in mine.parts.items() if identity.parts.get(part) != digest]
        if differing:
            raise BundleError(
                f"Bundle {self.path} was fitted to model '{mine.name}', not to '{identity.name}': "
                f"{', '.join(differing)} differ.",
                f"Serve the model it was fitted to, or run: plumbob fit {identity.name} --out NEW_BUNDLE",
            )


def save_bundle(
    path: Path,
    *,
    version: str,
    created: str,
    model: ModelIdentity,
    markers: Markers,
    probes: Sequence[tuple[Probe, NDArray[np.floating], float]],
    vectors: Sequence[tuple[Vector, NDArray[np.floating]]],
    canaries: Canaries | None = None,
    files: Mapping[str, bytes] = MappingProxyType({}),
    provenance: Mapping[str, Sequence[Provenance]] = MappingProxyType({}),
    worker_probes: Sequence[WorkerProbe] = (),
) -> Bundle:
    """Write a bundle, whole or not at all.

    Args:
        path: The directory; an earlier bundle there is replaced.
        version: Of plumbob.
        created: UTC, ISO 8601.
        model: What it is bound to.
        markers: Of the chat template.
        probes: Each with its weight, shape ``(hidden,)``, and bias.
        vectors: Each with its direction, shape ``(hidden,)``, normalised here.
        canaries: With scores in the order of ``probes`` and then, where they were recorded, of ``worker_probes``;
            ``None`` where an engine is not to be tested.
        files: Further files, by name: a report.
        provenance: What each probe, and ``benign``, was made from.
        worker_probes: Those that are more than a direction.

    Returns:
        The bundle, read back.

    Raises:
        BundleError: ``path`` exists and is no bundle, or cannot be written.
    """
    path = require_destination(path)
    order = sorted(range(len(probes)), key=lambda index: probes[index][0].layer)
    ordered = [probes[index] for index in order]
    canaries = canaries or Canaries.none(len(probes))
    directions = sorted(vectors, key=lambda item: item[0].layer)
    by_layer = sorted(range(len(worker_probes)), key=lambda index: worker_probes[index].probe.layer)
    workers = [worker_probes[index] for index in by_layer]
    columns = [*order, *(len(order) + index for index in by_layer)]
    recorded = [column for column in columns if column < canaries.reference.shape[1]]
    tensors = {
        "probes.weight": _stack([weight for _, weight, _ in ordered], model.hidden),
        "probes.bias": np.asarray([bias for _, _, bias in ordered], np.float32),
        "vectors": _stack([vector / np.linalg.norm(vector) for _, vector in directions], model.hidden),
        "canaries.tokens": np.concatenate([np.zeros(0, np.int64), *canaries.prompts]),
        "canaries.lengths": np.asarray([len(prompt) for prompt in canaries.prompts], np.int64),
        # Columns in another order are a view, which would be saved in the order of its memory.
        "canaries.reference": np.ascontiguousarray(canaries.reference[:, recorded]),
        **{
            f"{_prefix(worker.probe)}{name}": np.ascontiguousarray(tensor)
            for worker in workers
            for name, tensor in worker.reader.tensors().items()
        },
    }
    blob = save(tensors)
    manifest = Manifest(
        format=FORMAT,
        plumbob=version,
        created=created,
        model=model,
        markers=markers,
        probes=[probe for probe, _, _ in ordered],
        vectors=[vector for vector, _ in directions],
        tensors_sha256=hashlib.sha256(blob).hexdigest(),
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        provenance={name: list(sets) for name, sets in provenance.items()},
        worker_probes=[worker.probe for worker in workers],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary.chmod(0o755)
        (temporary / TENSORS).write_bytes(blob)
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        (temporary / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        # What cannot be read back does not replace what can.
        load_bundle(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load_bundle(path)


def require_destination(path: Path) -> Path:
    """Where a bundle may be written, resolved.

    Args:
        path: A directory that does not exist, is empty, or is a bundle.

    Raises:
        BundleError: It is something else, or cannot be made.
    """
    path = path.expanduser().resolve()
    another = "Name another directory with --out."
    if path.exists() and not (path.is_dir() and {entry.name for entry in path.iterdir()} <= _NAMES):
        raise BundleError(f"{path} exists and is not a bundle.", another)
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise BundleError(f"{path} cannot be written: {folder} is not a directory that you may write to.", another)
    return path


def load_bundle(path: Path | str) -> Bundle:
    """Read and check a bundle.

    Args:
        path: The directory.

    Returns:
        The bundle.

    Raises:
        BundleError: Missing, damaged, of an unknown format, or inconsistent with itself.
    """
    path = Path(path).expanduser().resolve()
    try:
        encoded = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST}.", "Make one with: plumbob fit MODEL --out BUNDLE"
        ) from error
    except OSError as error:
        raise BundleError(f"Bundle {path} cannot be read: {error.strerror}.", "Name a bundle's directory.") from error
    refit = "Fit it again with: plumbob fit MODEL --out BUNDLE"
    try:
        if (found := msgspec.json.decode(encoded, type=_Versioned).format) != FORMAT:
            raise BundleError(f"Bundle {path} has format {found}; this plumbob reads format {FORMAT}.", refit)
        manifest = msgspec.json.decode(encoded, type=Manifest)
        blob = (path / TENSORS).read_bytes()
        _require_files(path, manifest, blob)
        tensors = load(blob)
        bundle = Bundle(
            manifest=manifest,
            digest=hashlib.sha256(encoded).hexdigest(),
            path=path,
            weight=np.asarray(tensors["probes.weight"], np.float32),
            bias=np.asarray(tensors["probes.bias"], np.float32),
            vectors=np.asarray(tensors["vectors"], np.float32),
            canaries=Canaries(
                tuple(np.split(tensors["canaries.tokens"], np.cumsum(tensors["canaries.lengths"])))[:-1],
                np.asarray(tensors["canaries.reference"], np.float32),
            ),
            readers=tuple(_reader(probe, tensors) for probe in manifest.worker_probes),
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, SafetensorError, OSError, KeyError) as error:
        raise BundleError(f"Bundle {path} cannot be read: {error}.", refit) from error
    _check(bundle)
    return bundle


def _prefix(probe: Probe) -> str:
    """How the names of a worker probe's tensors begin."""
    return f"worker.{probe.name}."


def _reader(probe: Probe, tensors: Mapping[str, NDArray[np.generic]]) -> MultiMax:
    """What reads states for a worker probe.

    Raises:
        ValueError: Its kind is unknown, or its tensors are missing or wrong; the message names what is.
    """
    if probe.kind != MULTIMAX:
        raise ValueError(f"worker probe '{probe.name}' is of the unknown kind '{probe.kind}'")
    start = _prefix(probe)
    mine = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    try:
        return MultiMax.of(mine)
    except KeyError as error:
        raise ValueError(f"worker probe '{probe.name}' has no tensor {error}") from error
    except ValueError as error:
        raise ValueError(f"of worker probe '{probe.name}', {error}") from error


_NAMES: Final = {MANIFEST, TENSORS, SIGNATURE, *_OPTIONAL}


class _Versioned(msgspec.Struct):
    format: int


def _require_files(path: Path, manifest: Manifest, blob: bytes) -> None:
    """Check every file's digest, and that there is none beside them."""
    again = "Fit it again with: plumbob fit MODEL --out BUNDLE"
    if unknown := sorted(set(manifest.files) - set(_OPTIONAL)):
        raise BundleError(f"Bundle {path} names a file that no bundle has: {unknown[0]}.", again)
    contents = {TENSORS: blob, **{name: (path / name).read_bytes() for name in manifest.files}}
    for name, content in contents.items():
        wanted = manifest.tensors_sha256 if name == TENSORS else manifest.files[name]
        if hashlib.sha256(content).hexdigest() != wanted:
            raise BundleError(f"Bundle {path} is damaged: {name} does not match its manifest.", again)
    if stray := sorted({entry.name for entry in path.iterdir()} - {MANIFEST, SIGNATURE, *contents}):
        raise BundleError(
            f"Bundle {path} has a file that its manifest does not name: {stray[0]}.", "Move it elsewhere."
        )


def _stack(rows: list[NDArray[np.floating]], hidden: int) -> NDArray[np.float32]:
    return np.asarray(rows, np.float32).reshape(len(rows), hidden)


def _check(bundle: Bundle) -> None:
    """Refuse what would fail later, inside the engine."""
    manifest, problems = bundle.manifest, list[str]()
    model = manifest.model
    if bundle.weight.shape != (len(manifest.probes), model.hidden) or bundle.bias.shape != (len(manifest.probes),):
        problems.append(
            f"weights of shape {bundle.weight.shape} for {len(manifest.probes)} probes of width {model.hidden}"
        )
    if bundle.vectors.shape != (len(manifest.vectors), model.hidden):
        problems.append(f"vectors of shape {bundle.vectors.shape} for {len(manifest.vectors)} of width {model.hidden}")
    if not all(np.isfinite(array).all() for array in (bundle.weight, bundle.bias, bundle.vectors)):
        problems.append("tensors that are not finite")
    tokens = sum(map(len, bundle.canaries.prompts))
    # Those of worker probes are not in bundles that were fitted before they were recorded.
    if bundle.canaries.reference.shape not in ((tokens, len(manifest.probes)), (tokens, len(bundle.all_probes))):
        problems.append(
            f"canaries of {tokens} tokens with scores of shape {bundle.canaries.reference.shape} "
            f"for {len(manifest.probes)} probes and {len(manifest.worker_probes)} worker probes"
        )
    problems += [
        f"worker probe '{worker.probe.name}' of width {worker.reader.hidden}, for a model of width {model.hidden}"
        for worker in bundle.worker_probes
        if worker.reader.hidden != model.hidden
    ]
    for kind, items in (("probe", bundle.all_probes), ("vector", manifest.vectors)):
        names = [item.name for item in items]
        problems += [f"two {kind}s named '{name}'" for name in sorted({n for n in names if names.count(n) > 1})]
    if len(manifest.worker_probes) > MAX_WORKER_PROBES:
        problems.append(f"{len(manifest.worker_probes)} worker probes, more than {MAX_WORKER_PROBES}")
    for kind, items, limit in (
        ("probe", manifest.probes, MAX_PROBES_PER_LAYER),
        ("worker probe", manifest.worker_probes, MAX_WORKER_PROBES),
        ("vector", manifest.vectors, MAX_VECTORS_PER_LAYER),
    ):
        problems += [
            f"{kind} '{item.name}' at layer {item.layer}, of a model with layers 0 to {model.layers - 1}"
            for item in items
            if not 0 <= item.layer < model.layers
        ]
        layers = [item.layer for item in items]
        if layers != sorted(layers):
            problems.append(f"{kind}s that are not sorted by layer")
        problems += [
            f"more than {limit} {kind}s at layer {layer}"
            for layer in sorted(set(layers))
            if layers.count(layer) > limit
        ]
    known = {role.name.lower() for role in Role}
    problems += [
        f"probe '{probe.name}' with the unknown role '{role}'"
        for probe in bundle.all_probes
        for role in probe.roles
        if role not in known
    ]
    if problems:
        raise BundleError(
            f"Bundle {bundle.path} is inconsistent: {'; '.join(problems)}.",
            "Fit it again with: plumbob fit MODEL --out BUNDLE",
        )
