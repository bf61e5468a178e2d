"""Controls beside a probe's figures: labels drawn at random, directions drawn at random, and calibrated probability.

A probe that separates labels drawn at random as well as true ones has memorised (control tasks and selectivity: Hewitt
and Liang, arXiv 1909.03368).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes.evaluation.metrics import Interval, auroc, expected_calibration_error, platt
from probes.evaluation.results import Controls, Reliability
from probes.fit.linear import Linear, Spans
from probes.fit.material import Material
from probes.fit.selection import Candidate, Fold, make

DRAWS: Final = 5
"""Of random labels."""
DIRECTIONS: Final = 20
"""Drawn at random."""


def controls(spans: Spans, material: Material, fold: Fold, best: Candidate) -> Controls:
    """Random labels, fixed for each group, and random directions, on one fold."""
    data = material.data
    tested = np.flatnonzero(fold.test & ~data.benign)
    high, low = tested[data.labels[tested]], tested[~data.labels[tested]]
    true = spans.peaks(make(spans, data, fold.fitted, best))
    task = auroc(true[high], true[low])
    random = np.random.default_rng(0)
    names = np.unique(data.groups[~data.benign])
    control = list[float]()
    for _ in range(DRAWS):
        # Half of the groups, so that either label is there however few they are.
        drawn = np.isin(data.groups, random.permutation(names)[: len(names) // 2])
        peaks = spans.peaks(make(spans, replace(data, labels=drawn & ~data.benign), fold.fitted, best))
        seen = tested[drawn[tested]], tested[~drawn[tested]]
        control.append(auroc(peaks[seen[0]], peaks[seen[1]]) if len(seen[0]) and len(seen[1]) else 0.5)
    scale = spans.states.std(axis=0) + 1e-6
    directions = list[float]()
    for _ in range(DIRECTIONS):
        peaks = spans.peaks(Linear(random.normal(size=len(scale)) / scale, 0.0))
        area = auroc(peaks[high], peaks[low])
        directions.append(max(area, 1 - area))
    return Controls(
        DRAWS,
        _spread(control),
        _spread([task - value for value in control]),
        _spread(directions),
    )


def _spread(values: Sequence[float]) -> Interval:
    """The mean of draws, and the range they had."""
    return Interval(float(np.mean(values)), float(np.min(values)), float(np.max(values)))


def reliability(
    margins: NDArray[np.float64], labels: NDArray[np.bool_], groups: NDArray[np.str_]
) -> tuple[Reliability | None, tuple[float, float] | None]:
    """Platt's scale and offset on all examples, and the error of ones that were fitted on half of the groups."""
    names, inverse = np.unique(groups, return_inverse=True)
    half = (np.random.default_rng(1).permutation(len(names)) % 2 == 0)[inverse]
    heard = np.isfinite(margins)
    if any(not (labels & heard & part).any() or not (~labels & heard & part).any() for part in (half, ~half)):
        return None, None
    probability = np.zeros(len(margins))
    for part in (half, ~half):
        probability[~part] = platt(margins[part], labels[part]).probability(margins[~part])
    bins = 15
    error = expected_calibration_error(probability[heard], labels[heard], bins)
    final = platt(margins, labels)
    return Reliability(int(heard.sum()), bins, error), (final.scale, final.offset)
