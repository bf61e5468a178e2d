"""Edits of a tiny model's generation."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
import numpy as np
import pytest

from probes.bundle import Calibration, Evaluation, Probe
from probes.scoring.aggregate import Aggregate
from probes.steering.edit import Edit
from probes.steering.generation import Trigger

NORM = 8.0


def edit(layer, seed, operation):
    unit = np.random.default_rng(seed).normal(size=32)
    return Edit(layer, unit[None] / np.linalg.norm(unit), np.array([operation.entry(NORM)]))


def trigger(layer, threshold=0.5, roles=("assistant",), **aggregate):
    probe = Probe(
        name="p",
        layer=layer,
        roles=list(roles),
        threshold=threshold,
        aggregate=Aggregate(**{"half_life": 2.0, "min_tokens": 2, **aggregate}),
        calibration=Calibration(0.01, 100, 1, (0.0, 0.05)),
        evaluation=Evaluation(50, 50, 0.9, 0.6, 0.8),
    )
    return Trigger(probe, np.random.default_rng(11).normal(size=32) / 5, 0.1)
