"""A bundle with other vectors: written anew, since a bundle is never changed, and so without a signature.

The report on its probes goes along, for they are the same.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from probes.bundle import MAX_VECTORS_PER_LAYER, SIGNATURE, Bundle, Vector, save_bundle
from probes.errors import SteeringError


def require_room(bundle: Bundle, name: str, layer: int, *, replaces: bool = False) -> None:
    """Check that a vector can be put into a bundle, before the work of making it.

    Args:
        bundle: To put it into.
        name: What it is to be called.
        layer: Where it steers.
        replaces: Whether it may take the place of the one that has the name.

    Raises:
        SteeringError: The name is none or taken, or the layer is full.
    """
    if not name.isidentifier():
        raise SteeringError(f"'{name}' is no name for a vector.", "Use letters, digits and underscores.")
    others = [vector for vector in bundle.manifest.vectors if vector.name != name]
    if len(others) < len(bundle.manifest.vectors) and not replaces:
        raise SteeringError(
            f"Bundle {bundle.path} has a vector '{name}' already.", "Name it otherwise, or add --replace."
        )
    if sum(vector.layer == layer for vector in others) >= MAX_VECTORS_PER_LAYER:
        raise SteeringError(
            f"Layer {layer} has {MAX_VECTORS_PER_LAYER} vectors, which is all that the engine steers by.",
            "Choose another layer.",
        )


def with_vector(
    bundle: Bundle, vector: Vector, values: NDArray[np.floating], out: Path, *, version: str
) -> tuple[Bundle, bool]:
    """Write a bundle that has one more vector, or another one of the same name.

    Args:
        bundle: All of it but its signature goes along.
        vector: What it is.
        values: Its direction, shape ``(hidden,)``, of any length above 0.
        out: Directory of the new bundle; the old one may be replaced.
        version: Of plumbob, for the manifest.

    Returns:
        The bundle, and whether a signature was left behind.

    Raises:
        SteeringError: The vector has no length.
        BundleError: ``out`` exists and is no bundle, or cannot be written.
    """
    if not np.linalg.norm(values) > 0:
        raise SteeringError(f"Vector '{vector.name}' has no length: it points nowhere.", "Combine vectors that differ.")
    vectors: Sequence[tuple[Vector, NDArray[np.floating]]] = [
        *(
            (other, row)
            for other, row in zip(bundle.manifest.vectors, bundle.vectors, strict=True)
            if other.name != vector.name
        ),
        (vector, values),
    ]
    manifest, signed = bundle.manifest, (bundle.path / SIGNATURE).exists()
    written = save_bundle(
        out,
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=manifest.model,
        markers=manifest.markers,
        probes=list(zip(bundle.probes, bundle.weight, bundle.bias.tolist(), strict=True)),
        vectors=vectors,
        canaries=bundle.canaries,
        worker_probes=bundle.worker_probes,
        # Read before it is written: the new bundle may take the old one's place.
        files={name: (bundle.path / name).read_bytes() for name in manifest.files},
        provenance=manifest.provenance,
    )
    return written, signed
