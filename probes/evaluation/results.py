"""The report as data: what ``report.json`` holds, and what the page is drawn from.

A figure that is not there is ``None``, never 0 or NaN: "not measured", "not certifiable". Shares and rates are between
0 and 1, scores and thresholds in logits.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from probes.evaluation.metrics import Interval, certifiable, proportion

FORMAT: Final = 1
BINS: Final = 40
"""Of a histogram of scores."""

Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
SplitKind = Literal[
    "grouped",
    "leave-topic",
    "leave-source",
    "leave-attack-family",
    "negation",
    "length",
    "style",
    "multi-turn",
]
"""``grouped`` is of the sources that the probe was fitted on, groups kept whole; every other is a shift from them."""


class Baseline(msgspec.Struct, frozen=True):
    """A text baseline, without any model.

    Of a :class:`Split`, learnt on the same examples as the probe; of a :class:`Given`, on the given data themselves.
    """

    tfidf_auroc: Share
    """Of a logistic regression on words (TF-IDF)."""
    tfidf_recall: Share | None
    """Its recall at the probe's nominal rate; ``None`` where that is not certifiable."""
    length_auroc: Share
    """Of the text's length, in the direction that the data show which it was learnt on."""

    @property
    def auroc(self) -> float:
        """Of the better of the two."""
        return max(self.tfidf_auroc, self.length_auroc)


class Split(msgspec.Struct, frozen=True):
    """A probe on one set of examples that it was not fitted on."""

    name: str
    """Such as ``leave-source: cast_harmful``."""
    kind: SplitKind
    n_positive: Count
    n_negative: Count
    auroc: Interval
    """By groups."""
    recall: Interval | None
    """At the probe's threshold, by groups; ``None`` where there are too few negatives to certify the nominal rate."""
    text: Baseline
    tokens_to_detect: float | None = None
    """Median of tokens read before the probe fired, over positives on which it did; ``None`` where it did on none."""

    @property
    def beats_baselines(self) -> bool:
        """True where the whole interval of its AUROC lies above both baselines."""
        return self.auroc.low > self.text.auroc


class AtRate(msgspec.Struct, frozen=True):
    """Recall where the threshold is set on the negatives of the set itself."""

    rate: Share
    """Requests of them that may fire."""
    recall: Interval | None
    """By groups; ``None`` where they are too few to certify the rate."""


class Given(msgspec.Struct, frozen=True):
    """A probe, its threshold as it is, on requests that a user labelled."""

    name: str
    """``all``, or a part that the data name: ``source=NAME``, ``SLICE=VALUE``."""
    n_positive: Count
    n_negative: Count
    auroc: Interval | None
    """By groups; ``None`` where there are too few of either label."""
    recall: Interval | None
    """At the probe's threshold, by groups; ``None`` where there are no positives."""
    at_rates: list[AtRate] = []
    """Of sets that have an AUROC."""
    text: Baseline | None = None
    """Learnt on the given data by cross-validation in whole groups; ``None`` where that cannot be."""
    tokens_to_detect: float | None = None
    """As of a :class:`Split`."""

    @property
    def beats_baselines(self) -> bool:
        """True where the whole interval of its AUROC lies above both baselines and above chance.

        What was learnt by cross-validation where there is nothing to learn does worse than chance.
        """
        return self.auroc is not None and self.text is not None and self.auroc.low > max(self.text.auroc, 0.5)


class Rate(msgspec.Struct, frozen=True):
    """The false-positive rate on benign requests, or on those that a user labelled as not showing the concept."""

    source: str
    """A data set, or another slice of the traffic, such as ``length: 512 to 1,023 tokens``."""
    requests: Count
    fired: Count
    interval: Interval
    """Clopper and Pearson's."""
    certified: bool
    """True where there are enough requests to show the nominal rate."""
    left_out: bool | None
    """True where its source had no part in fitting and calibration; ``None`` where that is not known."""

    @classmethod
    def of(cls, source: str, fired: int, requests: int, nominal: float, *, left_out: bool | None) -> Self:
        """The rate of ``fired`` in ``requests``, at least 1, against the rate that the threshold was set for."""
        interval, certified = proportion(fired, requests), certifiable(requests, nominal)
        return cls(source, requests, fired, interval, certified, left_out)


class SweepPoint(msgspec.Struct, frozen=True):
    """One choice that was tried, as the development split judged it."""

    layer: int
    kind: str
    penalty: float | None
    """``None`` for a kind that has none."""
    recall: Share
    """At the nominal rate, out of distribution."""
    auroc: Share


class Roc(msgspec.Struct, frozen=True):
    """A curve, as :func:`probes.evaluation.metrics.roc_points` gives it."""

    split: str
    n_positive: Count
    n_negative: Annotated[int, msgspec.Meta(ge=1)]
    points: Annotated[list[tuple[Share, Share]], msgspec.Meta(min_length=1)]
    """(false-positive rate, recall), both rising."""

    def recall(self, rate: float) -> float:
        """The recall at a false-positive rate: of the last point that does not exceed it."""
        return max((recall for fpr, recall in self.points if fpr <= rate), default=0.0)


class Histogram(msgspec.Struct, frozen=True):
    """Scores of each class over common bins."""

    edges: Annotated[list[float], msgspec.Meta(min_length=2)]
    """Shape ``(bins + 1,)``, rising."""
    counts: dict[str, list[Count]]
    """Of each class, shape ``(bins,)``."""
    silent: dict[str, Count]
    """Requests of each class that had too little to read for a score."""

    def __post_init__(self) -> None:
        if self.edges != sorted(self.edges) or any(len(row) != len(self.edges) - 1 for row in self.counts.values()):
            raise ValueError("A histogram has edges that do not rise, or a class without a count a bin.")

    @classmethod
    def of(cls, scores: Mapping[str, ArrayLike]) -> Self:
        """Count scores of each class, shape ``(requests,)`` each; −inf is silent.

        Raises:
            ValueError: A score is NaN or +inf.
        """
        classes = {name: np.asarray(values, np.float64) for name, values in scores.items()}
        heard = {name: values[values != -np.inf] for name, values in classes.items()}
        edges = np.histogram_bin_edges(np.concatenate([np.zeros(0), *heard.values()]), BINS)
        return cls(
            edges.tolist(),
            {name: np.histogram(values, edges)[0].tolist() for name, values in heard.items()},
            {name: len(classes[name]) - len(values) for name, values in heard.items()},
        )


class Heatmap(msgspec.Struct, frozen=True):
    """An example conversation, token by token."""

    title: str
    tokens: list[str]
    """As the tokenizer decodes each."""
    roles: list[str]
    """Of each token."""
    scores: list[float | None]
    """In logits; ``None`` where the probe does not read."""
    fired_at: Count | None
    """Index of the token at which the probe fired."""

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.roles) == len(self.scores):
            raise ValueError("A heatmap has tokens, roles and scores of different numbers.")
        if self.fired_at is not None and self.fired_at >= len(self.tokens):
            raise ValueError("A heatmap fires after its last token.")


class Causal(msgspec.Struct, frozen=True):
    """The causal check: the model's behaviour with the probe's direction taken away, and added."""

    measure: str
    """A behaviour that more of the direction should raise: ``the share of harmless requests that are refused``."""
    n: Count
    """Prompts that each figure is over."""
    unsteered: Interval
    ablated: Interval | None
    """With the direction projected out."""
    added: Interval | None
    """With the direction added."""
    random: Interval | None
    """With a random direction of the same norm added: what any push does."""
    verdict: str
    """The check's conclusion, a plain sentence."""


class Controls(msgspec.Struct, frozen=True):
    """Controls: scores of a probe of this kind where there is nothing to read, over repeated draws, grouped split."""

    draws: Annotated[int, msgspec.Meta(ge=1)]
    random_label: Interval
    """AUROC of probes fitted to random labels, fixed for each group (Hewitt and Liang 2019)."""
    selectivity: Interval
    """AUROC of the probe, less that."""
    random_direction: Interval
    """AUROC of directions drawn at random, in whichever sense is better."""


class Reliability(msgspec.Struct, frozen=True):
    """Reliability of the Platt probability."""

    n: Count
    """Examples that it was judged on, none of which it was fitted on."""
    bins: Count
    ece: Share
    """Expected calibration error."""


class ProbeReport(msgspec.Struct, frozen=True):
    """Everything that was measured of one probe."""

    name: str
    definition: str
    """The meaning of a high score."""
    layer: int
    kind: str
    roles: list[str]
    """Whose tokens it reads."""
    threshold: float
    nominal: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    """The false-positive rate a request that the threshold was set for."""
    aggregate: str
    """The aggregation of token scores into a verdict, in words."""
    splits: list[Split]
    false_positives: list[Rate]
    sweep: list[SweepPoint] = []
    roc: list[Roc] = []
    scores: Histogram | None = None
    given: list[Given] = []
    """Figures on a user's own data, ``all`` of them first; there are no splits then."""
    heatmaps: list[Heatmap] = []
    causal: Causal | None = None
    controls: Controls | None = None
    calibration: Reliability | None = None
    seconds_a_token: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """The cost of scoring, beyond computing the activations."""
    remarks: list[str] = []
    """Caveats of the numbers, in plain sentences."""
    verdict_says: list[str] = []
    """Conclusions, by :func:`probes.evaluation.conclusions.sentences`; filled when the report is written."""


class Report(msgspec.Struct, frozen=True):
    """``report.json``."""

    plumbob: str
    """Version that wrote it."""
    created: str
    """UTC, ISO 8601."""
    model: str
    command: str
    """That made the report."""
    probes: list[ProbeReport]
    fingerprint: dict[str, str] = {}
    """SHA-256 of each part of the model, as in the bundle."""
    notes: list[str] = []
    """Notes that hold for every probe."""
    format: int = FORMAT
