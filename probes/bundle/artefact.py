"""The bundle: one directory with everything that the engine and the monitor need to read one model.

::

    bundle/
      bundle.json          the manifest: model, probes, vectors, thresholds with their evidence
      tensors.safetensors  probes.weight (probes, hidden), probes.bias (probes,), vectors (vectors, hidden), float32;
                           canaries.tokens and canaries.lengths, int64, canaries.reference (tokens, probes), float32;
                           worker.NAME.w1 and so on, those of the worker probe NAME (:mod:`probes.scoring.multimax`)
      report.json, .html   the evaluation of the probes
      signature.json       the signature of the manifest's digest (:mod:`probes.bundle.signing`)

The manifest names the SHA-256 of every other file, the signature excepted, and the bundle's digest is the SHA-256 of
the manifest, so that one digest stands for all of it. What else the directory holds, as those of volumes and hubs do,
is no part of the bundle: it is not read, and nothing vouches for it. A bundle is bound to one model by the fingerprint
of its configuration, weights, tokenizer and chat template; its canaries show whether an engine computes that model.
Nothing here needs torch, and nothing is pickled.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes.bundle.canaries import Canaries
from probes.bundle.manifest import Manifest, ModelIdentity, Probe, Vector
from probes.errors import BundleError
from probes.scoring.multimax import MultiMax
from probes.scoring.roles import Role

MANIFEST: Final = "bundle.json"
TENSORS: Final = "tensors.safetensors"
SIGNATURE: Final = "signature.json"
MAX_PROBES_PER_LAYER: Final = 64
MAX_VECTORS_PER_LAYER: Final = 8
MAX_WORKER_PROBES: Final = 64

MULTIMAX: Final = "multimax"
"""The kind of worker probes."""


@dataclass(frozen=True, slots=True)
class WorkerProbe:
    """A probe that is more than a direction, with the network that reads states for it."""

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
        """List the score columns of the probes of one layer; consecutive, since probes are sorted by layer."""
        return [column for column, probe in enumerate(self.manifest.probes) if probe.layer == layer]

    def vector_rows(self, layer: int) -> list[int]:
        """List the rows of :attr:`vectors` at one layer."""
        return [row for row, vector in enumerate(self.manifest.vectors) if vector.layer == layer]

    def vector(self, name: str) -> Vector:
        """Find the steering vector of that name.

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
        """Mask of the roles that each linear probe reads, shape ``(roles, probes)``."""
        return self.all_read_mask[:, : len(self.probes)]

    @cached_property
    def all_read_mask(self) -> NDArray[np.bool_]:
        """Mask of the roles that each of :attr:`all_probes` reads, shape ``(roles, all probes)``."""
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
