"""The bundle: one directory with all that an engine and its monitor need to read one model.

``artefact``   the directory, written whole and read back
``manifest``   the types of ``bundle.json``
``canaries``   short conversations with the scores that their tokens had at fit
``signing``    who vouches for it

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
    Calibration,
    Evaluation,
    Manifest,
    ModelIdentity,
    Probe,
    Vector,
    WorkerProbe,
    load_bundle,
    require_destination,
    save_bundle,
)

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
