"""The demo's bundle: fitted once for each version of the data, the code that fits, and the demo model."""

import hashlib
from pathlib import Path

from probes.bundle import Bundle, load_bundle
from probes.data.concepts import CONCEPTS, benign_path
from probes.errors import BundleError
from probes.fit.bundle_fit import fit_bundle
from probes.models import DEMO, Progress, cache_directory, identify, resolve_model


def demo_bundle(version: str, progress: Progress) -> Bundle:
    """The cached bundle of the demo model, fitted where there is none.

    Args:
        version: Of plumbob, for the manifest.
        progress: Told about slow work.

    Raises:
        PlumbobError: The demo model cannot be had.
    """
    identity = identify(resolve_model(DEMO, progress), DEMO)
    path = cache_directory() / "bundles" / f"demo-{_origin(version)}"
    try:
        bundle = load_bundle(path)
        bundle.require_model(identity)
    except BundleError:
        return fit_bundle(DEMO, path, version=version, progress=progress)
    return bundle


def _origin(version: str) -> str:
    """What the bundle is made of: data and code."""
    here = Path(__file__).parent
    files = [benign_path(), *(concept.path for concept in CONCEPTS), *sorted(here.rglob("*.py"))]
    digest = hashlib.sha256(version.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
