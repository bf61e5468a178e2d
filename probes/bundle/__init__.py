"""The bundle: one directory with all that an engine and its monitor need to read one model.

``manifest``     the types of ``bundle.json``
``artefact``     a loaded bundle
``canaries``     short conversations with the scores that their tokens had at fit
``store``        a bundle written and read back
``directory``    where one may be written, and how it takes the place of another
``consistency``  checks of a bundle against itself
``keys``         key files
``signing``      the signature beside a bundle
``shipped``      the bundle that comes with Plumbob

Nothing here needs torch.
"""

from probes.bundle.artefact import (
    MANIFEST,
    MAX_PROBES_PER_LAYER,
    MAX_VECTORS_PER_LAYER,
    MAX_WORKER_PROBES,
    MULTIMAX,
    SIGNATURE,
    TENSORS,
    Bundle,
    WorkerProbe,
)
from probes.bundle.directory import require_destination
from probes.bundle.manifest import Calibration, Evaluation, Manifest, ModelIdentity, Probe, Vector
from probes.bundle.store import load_bundle, save_bundle

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
