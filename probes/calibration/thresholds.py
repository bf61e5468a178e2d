"""Thresholds as false-positive rates.

1. The quantile of a set of benign requests is the conformal one of their verdicts: the smallest observed value that at
   most ``rate`` of new requests exceeds, on average over draws of the set (Vovk et al., Algorithmic Learning in a
   Random World, 2005).
2. Traffic is cut into slices, by source, by length, and by whatever the data name. A slice of fewer than
   :data:`CERTIFYING` / ``rate`` requests is not certified: it could not show the rate, even if none of it fired.
3. A probe's threshold is the largest of the quantile of all requests and those of the certified sources, so that no
   source which is large enough to tell pays for another that is quieter.
4. What each set shows at that threshold is reported with its exact interval (Clopper and Pearson, Biometrika 1934).
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from probes.bundle.manifest import Calibration, Probe, Slice
from probes.errors import ConceptError
from probes.scoring.intervals import clopper_pearson

if TYPE_CHECKING:
    from probes.data.requests import Request
    from probes.evaluation.offline_scores import Scores

CERTIFYING: Final = 3.0
"""Times one over the rate: no alarm in n requests shows, at 95%, a rate below 3/n."""
SOURCE_SLICE: Final = "source="
"""Prefix of the names of slices that have a say in the threshold."""
LENGTHS: Final = (16, 32, 64, 128, 256)
"""Upper ends of the slices by length, in tokens read; the last slice has none."""
MAX_SLICES: Final = 256
"""Slices of one calibration. They go into the manifest: one for each user or day would swell it."""

_NO_SLICES: Final[Mapping[str, NDArray[np.bool_]]] = MappingProxyType({})


def calibrate(
    peaks: NDArray[np.floating], rate: float, slices: Mapping[str, NDArray[np.bool_]] = _NO_SLICES
) -> tuple[float, Calibration]:
    """Set a threshold.

    Args:
        peaks: The verdict's peak of each held-back benign request, −inf where it has none, shape ``(requests,)``.
        rate: The share of benign requests that may fire, above 0 and below 1.
        slices: Name to which requests belong to it, ``(requests,)`` each; see :func:`traffic_slices`.

    Returns:
        The threshold, a value just above an observed peak, and what it stands on.

    Raises:
        ConceptError: Too few requests for such a rate, or too few that have a verdict.
    """
    if np.isnan(peaks).any():
        raise ConceptError("Verdicts of benign requests are not numbers.", "Check the model's weights.")
    count = len(peaks)
    pooled = _quantile(peaks, may_fire(count, rate))
    if pooled is None:
        raise ConceptError(
            f"Of {count} benign requests, {int(np.isfinite(peaks).sum())} have a verdict.",
            "Write longer ones: the threshold must stand on requests that could have fired.",
        )
    own = {name: _quantile(peaks[mask], _allowed(int(mask.sum()), rate)) for name, mask in slices.items()}
    certified = {name: round(int(mask.sum()) * rate, 9) >= CERTIFYING for name, mask in slices.items()}
    sources = [own[name] for name in slices if name.startswith(SOURCE_SLICE) and certified[name]]
    threshold = max([pooled, *(quantile for quantile in sources if quantile is not None)])
    over = peaks >= threshold

    def shown(mask: NDArray[np.bool_]) -> tuple[int, int, tuple[float, float]]:
        benign, fired = int(mask.sum()), int((over & mask).sum())
        return benign, fired, clopper_pearson(fired, benign)

    found: list[Slice] = []
    for name, mask in slices.items():
        benign, fired, interval = shown(mask)
        found.append(Slice(name, benign, fired, own[name], interval, certified[name]))
    return threshold, Calibration(rate, *shown(np.ones(count, bool)), found)


def recalibrate(
    probes: Sequence[Probe], requests: "Sequence[Request]", scores: "Scores", rate: float
) -> tuple[list[Probe], dict[str, str]]:
    """Set the thresholds of probes on an operator's own benign requests.

    A request counts for a probe if it has any token of the roles that the probe reads: traffic without its answers
    says nothing of a probe of answers. One that is too short for a verdict counts, and does not fire.

    Args:
        probes: In the order of the scores' columns.
        requests: Benign ones.
        scores: Their verdicts.
        rate: The share of benign requests that may fire.

    Returns:
        The probes, and, by name, why one of them keeps the threshold that it had.
    """
    changed: list[Probe] = []
    kept: dict[str, str] = {}
    for column, probe in enumerate(probes):
        present = np.flatnonzero(scores.tokens[:, column])
        chosen = [requests[index] for index in present]
        slices = traffic_slices(
            scores.tokens[present, column],
            [request.source for request in chosen],
            [request.slices for request in chosen],
        )
        try:
            threshold, calibration = calibrate(scores.peak[present, column], rate, slices)
        except ConceptError as error:
            kept[probe.name] = f"Of {len(requests)} requests, {len(present)} have tokens that it reads. {error}"
            changed.append(probe)
        else:
            changed.append(msgspec.structs.replace(probe, threshold=threshold, calibration=calibration))
    return changed, kept


def traffic_slices(
    tokens: NDArray[np.integer],
    sources: Sequence[str | None],
    named: Sequence[Mapping[str, str]] | None = None,
) -> dict[str, NDArray[np.bool_]]:
    """Cut requests into the slices that :func:`calibrate` reports, empty ones left out.

    Args:
        tokens: How many the probe reads of each request, shape ``(requests,)``.
        sources: Where each request comes from; ``None`` where that is not known.
        named: Name to value of each request: other slices that the data name.

    Raises:
        ConceptError: There are more than :data:`MAX_SLICES`.
    """
    belongs: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        if source is not None:
            belongs.setdefault(f"{SOURCE_SLICE}{source}", []).append(index)
    bucket = np.searchsorted(LENGTHS, tokens)
    for at, name in enumerate(_length_names()):
        if len(inside := np.flatnonzero(bucket == at)):
            belongs[name] = inside.tolist()
    for index, values in enumerate(named or ()):
        for name, value in values.items():
            belongs.setdefault(f"{name}={value}", []).append(index)
    if len(belongs) > MAX_SLICES:
        raise ConceptError(
            f"The requests have {len(belongs)} sources and slices; a calibration holds {MAX_SLICES}.",
            "Name kinds of traffic, not single users or days.",
        )
    slices: dict[str, NDArray[np.bool_]] = {}
    for name, inside in belongs.items():
        slices[name] = np.zeros(len(tokens), bool)
        slices[name][inside] = True
    return slices


def may_fire(count: int, rate: float) -> int:
    """Benign requests, of ``count``, that may reach a threshold set on them.

    Args:
        count: Requests.
        rate: The share of new benign requests that may fire, above 0 and below 1.

    Raises:
        ConceptError: Too few requests for such a rate.
    """
    if not 0 < rate < 1:
        raise ConceptError(f"A false-positive rate of {rate:g} cannot be set.", "Choose one above 0 and below 1.")
    allowed = _allowed(count, rate)
    if allowed < 0:
        raise ConceptError(
            f"A false-positive rate of {rate:g} cannot be set on {count} benign requests.",
            f"It takes {math.ceil(round(1 / rate, 9)) - 1}; choose a higher rate with --fpr.",
        )
    return allowed


def _allowed(count: int, rate: float) -> int:
    """As :func:`may_fire`; negative where the requests are too few."""
    # Rounded, since 0.29 * 100 is a little below 29.
    return math.floor(round(rate * (count + 1), 9)) - 1


def _quantile(peaks: NDArray[np.floating], allowed: int) -> float | None:
    """The lowest threshold that no more than ``allowed`` peaks reach, or ``None`` where a verdict does not set it."""
    if allowed < 0:
        return None
    # The first peak that must not fire; a verdict fires at or above its threshold.
    highest_quiet = float(np.sort(peaks)[::-1][allowed])
    return math.nextafter(highest_quiet, math.inf) if math.isfinite(highest_quiet) else None


def _length_names() -> list[str]:
    starts = [1, *(end + 1 for end in LENGTHS)]
    return [*(f"length={start}-{end}" for start, end in zip(starts, LENGTHS, strict=False)), f"length={starts[-1]}+"]
