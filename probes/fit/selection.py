"""Choose layer, kind and penalty by left-out data, never by the data that a probe was fitted on.

Each fold leaves out whole data sets (or topics, where there is one set only), of labelled examples and of benign
requests at once. Every candidate is fitted on the rest and scores what was left out. The choice is the candidate with
the best mean, over folds, of two things. One is recall at 1% of the left-out benign requests, less the share of the
fold's own negatives that fire there: what an operator buys, beyond what the kind of text gives away. Where examples
look like no benign request at all, positives and their matched negatives fire alike, and nothing was bought. The other,
less coarse, is the area under the ROC curve against the fold's own negatives.

What a fold shows of the probe is reported for the choice that the *other* folds would have made, so that no choice is
judged by what it was chosen on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from probes.evaluation.metrics import Interval, auroc, bootstrap
from probes.fit.linear import Kind, Linear, Spans, Training, fit
from probes.models.activation_store import Rows
from probes.scoring.aggregate import Aggregate
from probes.scoring.multimax import MultiMax

SHIPPED: Final = "shipped"
"""The source of what comes with Plumbob."""
TOPIC_FOLDS: Final = 3
"""The folds that leave topics out."""
GAIN_DRAWS: Final = 300
"""Resamples of the interval that a bigger probe has to clear."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to make the probe."""

    layer: int
    kind: Kind | Literal["multimax"]
    penalty: float
    """Of kinds that have one, 1.0 for the others."""
    aggregate: Aggregate


@dataclass(frozen=True, slots=True)
class Fold:
    """One fold: the conversations of a concept that are left out; ``(conversations,)`` each."""

    name: str
    test: NDArray[np.bool_]
    """Left out of fitting, and scored."""
    fitted: NDArray[np.bool_]
    """Fitted on."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """All conversations of a concept, the benign ones among them; ``(conversations,)`` each."""

    labels: NDArray[np.bool_]
    benign: NDArray[np.bool_]
    polarity: NDArray[np.float64]
    sources: NDArray[np.str_]
    groups: NDArray[np.str_]
    topics: NDArray[np.str_]

    def training(self, chosen: NDArray[np.bool_]) -> Training:
        """Training data from the chosen ones.

        Data sets count by the square root of their size: the largest does not drown the others, and the smallest does
        not count as much as it. Benign requests count together as much as the other negatives.
        """
        at = np.flatnonzero(chosen)
        weights = np.zeros(len(at))
        for side in (True, False):
            for benign in (True, False):
                part = (self.labels[at] == side) & (self.benign[at] == benign)
                for source in np.unique(self.sources[at][part]):
                    members = part & (self.sources[at] == source)
                    weights[members] = 1.0 / np.sqrt(members.sum())
                if part.any():
                    weights[part] /= weights[part].sum()
        return Training(at, self.labels[at], weights, self.polarity[at], self.benign[at])


def leave_sources_out(data: Labelled, seed: int = 0) -> list[Fold]:
    """One fold for each data set that has positives; by topic where there is only one.

    Data sets about one topic, which may share what they are about, are left out together. Data sets without positives,
    the benign ones among them, are left out in turn, one or more with each fold.
    """
    positive = np.unique(data.sources[data.labels])
    if len(positive) > 1:
        units = _related(data)
    else:
        # Topics of other data have no part in it: the few of a small concept could all fall into one bin.
        inside = ~data.benign & np.isin(data.sources, positive)
        units = np.where(inside, _binned(np.where(inside, data.topics, ""), TOPIC_FOLDS, seed), data.sources)
    names = np.unique(units[data.labels])
    # A single set of benign requests is parted, so that some of it is left out of every fold.
    single = len(np.unique(data.sources[data.benign])) == 1
    units = np.where(data.benign & single, _binned(data.groups, len(names), seed), units)
    sides = [np.unique(units[~np.isin(units, names) & (data.benign == benign)]) for benign in (False, True)]
    if single:
        sides[1] = np.unique(units[data.benign])
    folds: list[Fold] = []
    for number, name in enumerate(names.tolist()):
        test = ~data.benign & (units == name)
        for benign, others in zip((False, True), sides, strict=True):
            mine = others[np.arange(len(others)) % len(names) == number]
            if benign and not len(mine):
                mine = others[[number % len(others)]]
            test |= (data.benign == benign) & np.isin(units, mine)
        # Statements that two data sets share are not fitted on either.
        shared = np.isin(data.groups, data.groups[test & ~data.benign])
        folds.append(Fold(name, test, ~test & ~shared))
    return folds


def _related(data: Labelled) -> NDArray[np.str_]:
    """The unit of each conversation: its data set, joined to those that share a topic with it.

    What ships with Plumbob is about everything, and stands alone.
    """
    unit = {name: name for name in np.unique(data.sources).tolist()}
    for topic in np.unique(data.topics[~data.benign]).tolist():
        sharing = np.unique(data.sources[~data.benign & (data.topics == topic) & (data.sources != SHIPPED)]).tolist()
        joined = {unit[name] for name in sharing}
        for name, mine in unit.items():
            if mine in joined:
                unit[name] = min(joined)
    members = {mine: "+".join(name for name in unit if unit[name] == mine) for mine in unit.values()}
    return np.array([members[unit[name]] for name in data.sources.tolist()])


def _binned(values: NDArray[np.str_], bins: int, seed: int) -> NDArray[np.str_]:
    """Each distinct value in one of a few bins, shuffled the same way every time."""
    distinct, inverse = np.unique(values, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(distinct)) % bins
    return np.array([f"topics {part + 1}" for part in range(bins)])[order[inverse]]


def make(spans: Spans, data: Labelled, chosen: NDArray[np.bool_], candidate: Candidate) -> Linear | MultiMax:
    """Fit a candidate's probe.

    Args:
        spans: Rows of the conversations, as the candidate reads them.
        data: What they are.
        chosen: Those to fit on, shape ``(conversations,)``.
        candidate: How.

    Raises:
        ConceptError: There is too little to fit on.
    """
    training = data.training(chosen)
    if candidate.kind == "multimax":
        # Where it is used: it brings torch.
        from probes.fit.multimax_training import fit_multimax

        return fit_multimax(spans, training, data.groups[training.chosen])
    return fit(spans, training, candidate.kind, candidate.penalty)


@dataclass(frozen=True, slots=True)
class Shown:
    """Scores of a fold's left-out data by a candidate's probe that was fitted without them."""

    peaks: NDArray[np.float64]
    """Of all conversations, −inf where they are not of the fold, shape ``(conversations,)``."""
    recall: float
    """Positives at or above the level that 1% of the left-out benign requests and own negatives reach."""
    auroc: float
    """Positives against the fold's own negatives; against benign requests where it has none."""
    alarm: float = 0.0
    """The fold's own negatives at or above that level; 0 where it has none."""


def shown(peaks: NDArray[np.float64], data: Labelled, fold: Fold, rate: float) -> Shown:
    """Judge the peaks of a fold."""
    positive = peaks[fold.test & data.labels]
    own = peaks[fold.test & ~data.labels & ~data.benign]
    quiet = peaks[fold.test & data.benign]
    quiet = quiet[np.isfinite(quiet)]
    level = np.quantile(quiet, 1 - rate, method="higher") if len(quiet) else np.inf
    recall = float((positive > level).mean()) if len(positive) else np.nan
    alarm = float((own > level).mean()) if len(own) else 0.0
    negative = own if len(own) else quiet
    area = auroc(positive, negative) if len(positive) and len(negative) else np.nan
    return Shown(peaks, recall, area, alarm)


Table = Mapping[Candidate, Sequence[Shown]]
"""The scores of each candidate in each fold."""


def leave_out(
    rows: Callable[[int], Rows],
    roles: Sequence[int],
    data: Labelled,
    candidates: Sequence[Candidate],
    folds: Sequence[Fold],
    rate: float,
    done: Callable[[], None] = lambda: None,
) -> dict[Candidate, list[Shown]]:
    """Fit every candidate once for each fold.

    Args:
        rows: The rows of the conversations at a layer.
        roles: Whose rows the probe reads.
        data: What the conversations are.
        candidates: Those of one layer are taken together.
        folds: What is left out.
        rate: The false-positive rate at which recall is taken.
        done: Called after each fit.
    """
    table: dict[Candidate, list[Shown]] = {}
    spans: Spans | None = None
    loaded: tuple[int, Aggregate] | None = None
    layer_rows: Rows | None = None
    for candidate in sorted(candidates, key=lambda item: (item.layer, item.aggregate.half_life)):
        if layer_rows is None or loaded is None or loaded[0] != candidate.layer:
            layer_rows = rows(candidate.layer)
            loaded = None
        if spans is None or loaded != (candidate.layer, candidate.aggregate):
            spans = Spans(layer_rows, roles, candidate.aggregate)
            loaded = (candidate.layer, candidate.aggregate)
        table[candidate] = []
        for fold in folds:
            probe = make(spans, data, fold.fitted, candidate)
            peaks = np.where(fold.test, spans.peaks(probe), -np.inf)
            table[candidate].append(shown(peaks, data, fold, rate))
            done()
    return table


def choose(table: Table, without: int | None = None) -> Candidate:
    """The best candidate by all folds, or by all but one.

    Args:
        table: As :func:`leave_out` makes it.
        without: A fold not to look at.
    """

    def mean(values: Sequence[float]) -> float:
        kept = [value for index, value in enumerate(values) if index != without and np.isfinite(value)]
        return float(np.mean(kept)) if kept else 0.0

    def worth(candidate: Candidate) -> float:
        folds = table[candidate]
        return mean([fold.recall - fold.alarm for fold in folds]) + mean([fold.auroc for fold in folds])

    return max(table, key=worth)


def gain(
    plain: Sequence[Shown], bigger: Sequence[Shown], data: Labelled, folds: Sequence[Fold], rate: float
) -> Interval:
    """The gain of a bigger probe in the criterion of choice, on left-out data, with its interval by groups.

    Both probes are judged on the same resamples, so that what is hard for both does not widen the interval.

    Args:
        plain: What the linear probe showed, fold by fold.
        bigger: What the other one showed.
        data: What the conversations are.
        folds: What was left out.
        rate: The false-positive rate at which recall is taken.
    """
    parts: list[tuple[int, NDArray[np.intp]]] = [
        (number, np.flatnonzero(fold.test)) for number, fold in enumerate(folds) if (fold.test & data.labels).any()
    ]
    of_fold = np.concatenate([np.full(len(rows), number) for number, rows in parts])
    row = np.concatenate([rows for _, rows in parts])
    groups = [f"{number} {name}" for number, name in zip(of_fold.tolist(), data.groups[row].tolist(), strict=True)]

    def added(drawn: NDArray[np.intp]) -> float:
        differences: list[float] = []
        for number, _ in parts:
            mine = row[drawn[of_fold[drawn] == number]]
            one, other = (_worth(table[number].peaks[mine], mine, data, rate) for table in (plain, bigger))
            differences.append(other - one)
        return float(np.nanmean(differences))

    return bootstrap(added, groups, GAIN_DRAWS)


def _worth(peaks: NDArray[np.float64], rows: NDArray[np.intp], data: Labelled, rate: float) -> float:
    found = shown(
        peaks,
        Labelled(*(getattr(data, name)[rows] for name in Labelled.__slots__)),
        Fold("", np.ones(len(rows), bool), np.zeros(len(rows), bool)),
        rate,
    )
    return found.recall - found.alarm + found.auroc
