"""Random networks for probe workers to read with."""

from collections.abc import Sequence

import msgspec
import numpy as np

from probes.bundle import Probe, WorkerProbe
from probes.scoring.multimax import MultiMax


def random_network(seed: int, hidden: int, *, norm: float = 1.0) -> MultiMax:
    """A network whose scores vary by about one over states of this norm."""
    random = np.random.default_rng(seed)
    shapes = (16, hidden), (16,), (16, 16), (16,), (3, 16), (3, 16), (1,)
    w1, *rest = (random.normal(size=shape).astype(np.float32) / 2 for shape in shapes)
    return MultiMax(w1 * np.float32(2.0 / norm), *rest, window=5)


def random_worker_probe(
    like: Probe, name: str, layer: int, hidden: int, *, norm: float = 1.0, roles: Sequence[str] = ()
) -> WorkerProbe:
    """A worker probe that is as ``like`` in everything else."""
    probe = msgspec.structs.replace(like, name=name, layer=layer, roles=list(roles or like.roles), kind="multimax")
    return WorkerProbe(probe, random_network(layer, hidden, norm=norm))
