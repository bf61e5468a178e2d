"""Consistency of a bundle with itself: what would fail later, inside the engine, is refused when it is read."""

from collections.abc import Iterator, Sequence

import numpy as np

from probes.bundle.artefact import MAX_PROBES_PER_LAYER, MAX_VECTORS_PER_LAYER, MAX_WORKER_PROBES, Bundle
from probes.bundle.manifest import Probe, Vector
from probes.errors import BundleError
from probes.scoring.roles import Role


def require_consistent(bundle: Bundle) -> None:
    """Check shapes, names, layers, limits and roles.

    Raises:
        BundleError: Something does not hold; the message names everything that does not.
    """
    if problems := [*_tensors(bundle), *_names(bundle), *_layers(bundle), *_roles(bundle)]:
        raise BundleError(
            f"Bundle {bundle.path} is inconsistent: {'; '.join(problems)}.",
            "Fit it again with: plumbob fit MODEL --out BUNDLE",
        )


def _tensors(bundle: Bundle) -> Iterator[str]:
    manifest, hidden = bundle.manifest, bundle.manifest.model.hidden
    if bundle.weight.shape != (len(manifest.probes), hidden) or bundle.bias.shape != (len(manifest.probes),):
        yield f"weights of shape {bundle.weight.shape} for {len(manifest.probes)} probes of width {hidden}"
    if bundle.vectors.shape != (len(manifest.vectors), hidden):
        yield f"vectors of shape {bundle.vectors.shape} for {len(manifest.vectors)} of width {hidden}"
    if not all(np.isfinite(array).all() for array in (bundle.weight, bundle.bias, bundle.vectors)):
        yield "tensors that are not finite"
    tokens = sum(map(len, bundle.canaries.prompts))
    # Those of worker probes are not in bundles that were fitted before they were recorded.
    if bundle.canaries.reference.shape not in ((tokens, len(manifest.probes)), (tokens, len(bundle.all_probes))):
        yield (
            f"canaries of {tokens} tokens with scores of shape {bundle.canaries.reference.shape} "
            f"for {len(manifest.probes)} probes and {len(manifest.worker_probes)} worker probes"
        )
    for worker in bundle.worker_probes:
        if worker.reader.hidden != hidden:
            yield f"worker probe '{worker.probe.name}' of width {worker.reader.hidden}, for a model of width {hidden}"


def _names(bundle: Bundle) -> Iterator[str]:
    for kind, items in (("probe", bundle.all_probes), ("vector", bundle.manifest.vectors)):
        names = [item.name for item in items]
        yield from (f"two {kind}s named '{name}'" for name in sorted({n for n in names if names.count(n) > 1}))


def _layers(bundle: Bundle) -> Iterator[str]:
    manifest = bundle.manifest
    if len(manifest.worker_probes) > MAX_WORKER_PROBES:
        yield f"{len(manifest.worker_probes)} worker probes, more than {MAX_WORKER_PROBES}"
    kinds: tuple[tuple[str, Sequence[Probe | Vector], int], ...] = (
        ("probe", manifest.probes, MAX_PROBES_PER_LAYER),
        ("worker probe", manifest.worker_probes, MAX_WORKER_PROBES),
        ("vector", manifest.vectors, MAX_VECTORS_PER_LAYER),
    )
    for kind, items, limit in kinds:
        for item in items:
            if not 0 <= item.layer < manifest.model.layers:
                yield (
                    f"{kind} '{item.name}' at layer {item.layer}, of a model with layers 0 to "
                    f"{manifest.model.layers - 1}"
                )
        layers = [item.layer for item in items]
        if layers != sorted(layers):
            yield f"{kind}s that are not sorted by layer"
        yield from (
            f"more than {limit} {kind}s at layer {layer}"
            for layer in sorted(set(layers))
            if layers.count(layer) > limit
        )


def _roles(bundle: Bundle) -> Iterator[str]:
    known = {role.name.lower() for role in Role}
    for probe in bundle.all_probes:
        for role in probe.roles:
            if role not in known:
                yield f"probe '{probe.name}' with the unknown role '{role}'"
