"""Bundles with canaries."""

import pytest

pytest.importorskip("torch")
import pytest

from probes.bundle import Bundle, save_bundle
from probes.bundle.canaries import Canaries


def with_canaries(bundle: Bundle, path, canaries: Canaries, workers=()) -> Bundle:
    manifest = bundle.manifest
    return save_bundle(
        path,
        version="0",
        created=manifest.created,
        model=manifest.model,
        markers=manifest.markers,
        probes=list(zip(bundle.probes, bundle.weight, bundle.bias.tolist(), strict=True)),
        vectors=list(zip(manifest.vectors, bundle.vectors, strict=True)),
        canaries=canaries,
        worker_probes=workers or bundle.worker_probes,
    )
