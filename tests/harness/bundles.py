"""Bundles that are made in a line."""

from pathlib import Path

import numpy as np

from probes.bundle import Bundle, Calibration, Evaluation, ModelIdentity, Probe, Vector, save_bundle
from probes.scoring.aggregate import Aggregate
from probes.scoring.roles import Markers

HIDDEN = 8
PROBES = (
    # name, layer, roles, threshold, in the order of the score columns
    ("harmful_intent", 1, ["user"], 2.0),
    ("toxicity", 1, ["user", "assistant"], 1.0),
    ("sycophancy", 2, ["assistant"], 0.5),
)
VECTORS = (("harmful_intent", 1), ("sycophancy", 2))


def make_bundle(path: Path, *, min_tokens: int = 1, half_life: float = 4.0, agree: int = 1, seed: int = 0) -> Bundle:
    """A bundle of hidden width 8 and four layers, with three probes and two vectors."""
    random = np.random.default_rng(seed)
    return save_bundle(
        path,
        version="0",
        created="2026-01-01T00:00:00Z",
        model=ModelIdentity(name="tiny", hidden=HIDDEN, layers=4, parts={"config": "c", "weights": "w"}),
        markers=Markers(headers={"user": [1, 2], "assistant": [1, 3]}, terminator=[4]),
        probes=[
            (
                Probe(
                    name=name,
                    layer=layer,
                    roles=roles,
                    threshold=threshold,
                    aggregate=Aggregate(half_life=half_life, min_tokens=min_tokens, agree=agree, agree_of=agree),
                    calibration=Calibration(0.01, 100, 1, (0.0, 0.05)),
                    evaluation=Evaluation(50, 60, 0.9, 0.6, 0.8),
                ),
                random.normal(size=HIDDEN),
                0.25,
            )
            for name, layer, roles, threshold in PROBES
        ],
        vectors=[(Vector(name, layer, hidden_norm=10.0), random.normal(size=HIDDEN)) for name, layer in VECTORS],
    )
