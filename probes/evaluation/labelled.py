"""The requests that are labelled for one probe, and what they show of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from probes.bundle.manifest import Probe
from probes.calibration.thresholds import traffic_slices
from probes.data.requests import Request
from probes.evaluation.cross_validated_baselines import CrossValidated, cross_validated
from probes.evaluation.metrics import (
    MIN_GROUPS,
    Interval,
    Platt,
    auroc_interval,
    bootstrap,
    certifiable,
    expected_calibration_error,
    recall_at,
    recall_interval,
    roc_points,
)
from probes.evaluation.results import AtRate, Given, Histogram, Rate, Reliability, Roc
from probes.scoring.roles import Role

ALL: Final = "all"
"""The name of all labelled requests together."""
SMALLEST: Final = 20
"""Requests of either label below which a source or slice has no figures of its own."""
RATES: Final = (0.01, 0.001)
"""False-positive rates at which recall is given where the data's own negatives set the threshold."""
BINS: Final = 15
"""Of the calibration error, of equal mass."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """The requests that are labelled for one probe; arrays are ``(requests,)``."""

    probe: Probe
    labels: NDArray[np.bool_]
    groups: NDArray[np.str_]
    peaks: NDArray[np.float64]
    detected: NDArray[np.int64]
    """Tokens that the probe read up to where it fired, 0 where it did not."""
    parts: Mapping[str, NDArray[np.bool_]]
    """All of them, then each source and slice."""
    text: CrossValidated | str
    """The text baselines, or, in a sentence, the reason why there are none."""

    @classmethod
    def of(
        cls, probe: Probe, requests: Sequence[Request], peaks: NDArray[np.float64], detected: NDArray[np.int64]
    ) -> Self:
        """Gather them.

        Args:
            probe: Of the bundle.
            requests: Those that are labelled for it.
            peaks: Shape ``(requests,)``.
            detected: Shape ``(requests,)``.

        Raises:
            ConceptError: They name more sources and slices than a report holds.
        """
        labels = np.array([request.labels[probe.name] for request in requests])
        groups = np.array(
            [
                # Told apart, so that no name is that of a request without one.
                f"request {index}" if request.group is None else f"group {request.group}"
                for index, request in enumerate(requests)
            ]
        )
        both = labels.any() and not labels.all()
        text = (
            cross_validated([_read(request, probe) for request in requests], labels, groups)
            if both
            else "One label alone."
        )
        return cls(probe, labels, groups, peaks, detected, parts(requests), text)

    def given(self, name: str) -> Given | None:
        """The figures of a part; ``None`` where it is too small, or no part at all."""
        part = self.parts[name]
        positive, negative = part & self.labels, part & ~self.labels
        high, low = int(positive.sum()), int(negative.sum())
        fewest = 1 if name == ALL else SMALLEST
        if name != ALL and (high < fewest or part.all()):
            return None
        both = min(high, low) >= fewest
        nominal = self.probe.calibration.false_positive_rate
        hits = self.detected[positive & (self.detected > 0)]
        return Given(
            name,
            high,
            low,
            auroc=auroc_interval(
                self.peaks[positive], self.peaks[negative], self.groups[positive], self.groups[negative]
            )
            if both
            else None,
            recall=recall_interval(self.peaks[positive], self.probe.threshold, self.groups[positive]) if high else None,
            at_rates=[AtRate(rate, self._recall_at(positive, negative, rate)) for rate in RATES] if both else [],
            text=self.text.baseline(positive, negative, nominal)
            if both and isinstance(self.text, CrossValidated)
            else None,
            tokens_to_detect=float(np.median(hits)) if len(hits) else None,
        )

    def rates(self, fitted: frozenset[str]) -> list[Rate]:
        """False-positive rates on the negatives of each part that has any."""
        found: list[Rate] = []
        for name, part in self.parts.items():
            negative = part & ~self.labels
            if negative.any():
                fired = int((self.peaks[negative] >= self.probe.threshold).sum())
                nominal = self.probe.calibration.false_positive_rate
                left_out = False if name in fitted else None
                found.append(Rate.of(name, fired, int(negative.sum()), nominal, left_out=left_out))
        return found

    def roc(self, name: str) -> Roc:
        """The curve of a part that has both labels."""
        part = self.parts[name]
        high, low = self.peaks[part & self.labels], self.peaks[part & ~self.labels]
        return Roc(name, len(high), len(low), roc_points(high, low))

    def scores(self) -> Histogram:
        """Histograms of scores, by label."""
        classes = {"shows the concept": self.labels, "does not": ~self.labels}
        return Histogram.of({name: self.peaks[mask] for name, mask in classes.items() if mask.any()})

    def reliability(self) -> Reliability | None:
        """Calibration error of the bundle's probability, over requests that have one."""
        fitted, heard = self.probe.probability, np.isfinite(self.peaks)
        if fitted is None or len(np.unique(self.labels[heard])) < 2:
            return None
        probability = Platt(fitted.scale, fitted.offset).probability(self.peaks[heard])
        return Reliability(int(heard.sum()), BINS, expected_calibration_error(probability, self.labels[heard], BINS))

    def remarks(self, fitted: frozenset[str]) -> list[str]:
        """Caveats of the figures."""
        said = [self.text] if isinstance(self.text, str) and len(np.unique(self.labels)) == 2 else []
        if silent := int((~np.isfinite(self.peaks)).sum()):
            said.append(
                f"{silent} of {len(self.peaks)} labelled requests have no verdict: it read none of their tokens, or "
                "too few. They count as not fired."
            )
        for label, name in ((True, "positives"), (False, "negatives")):
            groups = len(np.unique(self.groups[self.labels == label]))
            if 0 < groups < MIN_GROUPS:
                said.append(f"All {name} are of {groups} group{'' if groups == 1 else 's'}: too few for an interval.")
        if known := sorted(fitted & self.parts.keys()):
            said.append(
                f"{', '.join(known)}: of the same name as data that it was made from, whose figures flatter it."
            )
        return said

    def _recall_at(self, positive: NDArray[np.bool_], negative: NDArray[np.bool_], rate: float) -> Interval | None:
        """Recall at a rate of these negatives; the interval allows for the threshold's chance, too."""
        if not certifiable(int(negative.sum()), rate):
            return None
        chosen = np.flatnonzero(positive | negative)

        def on(rows: NDArray[np.intp]) -> float:
            labels, peaks = self.labels[chosen[rows]], self.peaks[chosen[rows]]
            return recall_at(peaks[labels], peaks[~labels], rate) if labels.any() and not labels.all() else math.nan

        drawn = bootstrap(on, self.groups[chosen])
        quiet = np.sort(self.peaks[negative])[::-1][math.floor(round(rate * int(negative.sum()), 9))]
        # Where all resamples agree, this one still has a width.
        fixed = recall_interval(self.peaks[positive], math.nextafter(quiet, math.inf), self.groups[positive])
        return Interval(drawn.point, min(drawn.low, fixed.low), max(drawn.high, fixed.high))


def parts(requests: Sequence[Request]) -> dict[str, NDArray[np.bool_]]:
    """All requests, then each source and slice that they name."""
    count = len(requests)
    # Not by length: how many tokens a probe reads is no kind that the data name.
    slices = traffic_slices(
        np.zeros(count, np.int64), [request.source for request in requests], [request.slices for request in requests]
    )
    return {ALL: np.ones(count, bool)} | {name: mask for name, mask in slices.items() if not name.startswith("length=")}


def _read(request: Request, probe: Probe) -> str:
    """The text of a request that the probe reads; a prompt without a template is the user's."""
    if request.prompt:
        return request.prompt if probe.reads(Role.USER) else ""
    return "\n".join(message.content for message in request.messages if message.role in probe.roles)
