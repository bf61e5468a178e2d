"""Thresholds as false-positive rates.

The threshold of a probe is the conformal quantile of its verdicts on held-back benign requests: the smallest observed
value that at most ``rate`` of new requests exceeds, on average over draws of the benign set (Vovk et al., Algorithmic
Learning in a Random World, 2005). What the sample shows is reported with its exact interval (Clopper and Pearson,
Biometrika 1934).
"""

import math

import numpy as np
from numpy.typing import NDArray

from probes.bundle import Calibration
from probes.errors import ConceptError


def calibrate(peaks: NDArray[np.floating], rate: float) -> tuple[float, Calibration]:
    """Set a threshold.

    Args:
        peaks: The verdict's peak of each held-back benign request, shape ``(requests,)``.
        rate: The share of benign requests that may fire, above 0 and below 1.

    Returns:
        The threshold, a value just above an observed peak, and what it stands on.

    Raises:
        ConceptError: Too few requests for such a rate, or too few that have a verdict.
    """
    count, allowed = len(peaks), may_fire(len(peaks), rate)
    # The first peak that must not fire; a verdict fires at or above its threshold.
    highest_quiet = float(np.sort(peaks)[::-1][allowed])
    if not math.isfinite(highest_quiet):
        raise ConceptError(
            f"Of {count} benign requests, {int(np.isfinite(peaks).sum())} have a verdict.",
            "Write longer ones: the threshold must stand on requests that could have fired.",
        )
    threshold = math.nextafter(highest_quiet, math.inf)
    fired = int((peaks >= threshold).sum())
    return threshold, Calibration(rate, count, fired, clopper_pearson(fired, count))


def may_fire(count: int, rate: float) -> int:
    """How many of ``count`` benign requests may reach a threshold that is set on them.

    Args:
        count: Requests.
        rate: The share of new benign requests that may fire, above 0 and below 1.

    Raises:
        ConceptError: Too few requests for such a rate.
    """
    if not 0 < rate < 1:
        raise ConceptError(f"A false-positive rate of {rate:g} cannot be set.", "Choose one above 0 and below 1.")
    # Rounded, since 0.29 * 100 is a little below 29.
    allowed = math.floor(round(rate * (count + 1), 9)) - 1
    if allowed < 0:
        raise ConceptError(
            f"A false-positive rate of {rate:g} cannot be set on {count} benign requests.",
            f"It takes {math.ceil(round(1 / rate, 9)) - 1}; choose a higher rate with --fpr.",
        )
    return allowed


def clopper_pearson(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion.

    Args:
        hits: Successes.
        count: Trials, at least 1.
        confidence: Of the two-sided interval.
    """
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, count - hits)) if hits < count else 1.0
    return low, high
