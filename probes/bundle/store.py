"""Bundles on disk: written whole or not at all, and read back only where every digest holds."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from probes.bundle.artefact import MANIFEST, MULTIMAX, TENSORS, Bundle, WorkerProbe
from probes.bundle.canaries import Canaries
from probes.bundle.consistency import require_consistent
from probes.bundle.directory import OPTIONAL, replace_bundle, require_destination
from probes.bundle.manifest import FORMAT, Manifest, ModelIdentity, Probe, Provenance, Vector
from probes.bundle.shipped import bundle_directory
from probes.errors import BundleError
from probes.scoring.multimax import MultiMax
from probes.scoring.roles import Markers


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
        model: That it is bound to.
        markers: Of the chat template.
        probes: Each with its weight, shape ``(hidden,)``, and bias.
        vectors: Each with its direction, shape ``(hidden,)``, normalised here.
        canaries: With scores in the order of ``probes`` and then, where they were recorded, of ``worker_probes``;
            ``None`` where an engine is not to be tested.
        files: Further files, by name: a report.
        provenance: Data that each probe, and ``benign``, were made from.
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
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    replace_bundle(path, {TENSORS: blob, **files, MANIFEST: encoded}, load_bundle)
    return load_bundle(path)


def load_bundle(path: Path | str) -> Bundle:
    """Read and check a bundle.

    Args:
        path: The directory, or ``demo`` for the bundle that ships (:mod:`probes.bundle.shipped`).

    Returns:
        The bundle.

    Raises:
        BundleError: Missing, damaged, of an unknown format, or inconsistent with itself.
    """
    path = bundle_directory(path)
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
    require_consistent(bundle)
    return bundle


class _Versioned(msgspec.Struct):
    format: int


def _require_files(path: Path, manifest: Manifest, blob: bytes) -> None:
    """Check the digest of every file that the manifest names; others in the directory are no part of the bundle."""
    again = "Fit it again with: plumbob fit MODEL --out BUNDLE"
    if unknown := sorted(set(manifest.files) - set(OPTIONAL)):
        raise BundleError(f"Bundle {path} names a file that no bundle has: {unknown[0]}.", again)
    contents = {TENSORS: blob, **{name: (path / name).read_bytes() for name in manifest.files}}
    for name, content in contents.items():
        wanted = manifest.tensors_sha256 if name == TENSORS else manifest.files[name]
        if hashlib.sha256(content).hexdigest() != wanted:
            raise BundleError(f"Bundle {path} is damaged: {name} does not match its manifest.", again)


def _stack(rows: list[NDArray[np.floating]], hidden: int) -> NDArray[np.float32]:
    return np.asarray(rows, np.float32).reshape(len(rows), hidden)


def _prefix(probe: Probe) -> str:
    """Prefix of the names of a worker probe's tensors."""
    return f"worker.{probe.name}."


def _reader(probe: Probe, tensors: Mapping[str, NDArray[np.generic]]) -> MultiMax:
    """Make the network of a worker probe.

    Raises:
        ValueError: Its kind is unknown, or its tensors are missing or wrong; the message says which.
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
