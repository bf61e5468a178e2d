"""Linear probes: how they are fitted and read, on the rows of many conversations at one layer.

A probe is fitted on what its verdict averages: the running mean of the states (:mod:`probes.scoring.aggregate`) at the
end of each message, and then, since the verdict is the *highest* mean of a request, on those places too where the probe
fitted so far is highest (hard examples, mined twice; Felzenszwalb et al. 2010, section 4, for the procedure). Of a
negative this is the place that would have raised a false alarm; of a positive, the one that shows the concept best.

Four ways to a direction:

* ``logistic``: logistic regression on standardised means, the scale folded back into the weights;
* ``mean_difference``: from the mean of the negatives to that of the positives, without (mass-mean; Marks and Tegmark,
  arXiv 2310.06824) regard to how the states vary;
* ``two_direction``: truth and its interaction with polarity (TTPD; Bürger et al., arXiv 2407.12831), for concepts whose
  sign negation would turn: a regression on the label and on label times polarity, whose first direction is read, with
  the second one projected out;
* ``at_ends``: logistic regression where messages end, plus a direction that tells ends from the places before them,
  added with such a weight that the score peaks at ends: for concepts that a message shows at its last word only. What
  makes a statement false is not yet there in its middle, and a peak that falls there is chance.

All of them end as ``score = weight · state + bias`` in logits: a column of the engine's matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from probes.errors import ConceptError
from probes.models.activation_store import Rows
from probes.scoring.aggregate import Aggregate
from probes.scoring.forms import Kind
from probes.scoring.multimax import MultiMax

PENALISED: Final = ("logistic", "at_ends")
"""Those whose penalty is chosen."""
MINED: Final = 2
"""Rounds in which places are added where the probe is highest."""
BENIGN_POINTS: Final = 2
"""Places of each benign request that are ordinary from the start."""
END_GAP: Final = 4.0
"""Distance of the score of an end from that of a place before it, in standard deviations of the scores at ends: more,
and where an end is seen best decides instead of what is seen there."""
TOLD: Final = 2.0
"""Standard deviations by which ends must differ from the places before them to be told apart: less would be noise,
which lifting would make louder."""
BEFORE_END: Final = 3
"""Places before the end of each message."""
_FORGOTTEN: Final = 8.0
"""Half-lives after which a state no longer counts in a mean."""


@dataclass(frozen=True, slots=True)
class Linear:
    """score = weight · state + bias."""

    weight: NDArray[np.float64]
    bias: float


def token_scores(probe: Linear | MultiMax, states: NDArray[np.floating]) -> NDArray[np.floating]:
    """The score of each token of one conversation, shape ``(tokens,)``.

    Args:
        probe: Reads them.
        states: What it reads, in the order of the tokens, shape ``(tokens, hidden)``.
    """
    if isinstance(probe, Linear):
        return states @ probe.weight.astype(states.dtype) + probe.bias
    return probe.scores(states, probe.begin())


class Spans:
    """The rows that a probe reads in each of many conversations, at one layer.

    Args:
        rows: Of all conversations.
        roles: Whose rows it reads.
        aggregate: How its scores are averaged.
    """

    def __init__(self, rows: Rows, roles: Sequence[int], aggregate: Aggregate) -> None:
        read = np.isin(rows.roles, roles)
        self.states = rows.states if read.all() else rows.states[read]
        before = np.concatenate([[0], np.cumsum(read)])
        self.offsets: NDArray[np.int64] = before[rows.offsets]
        self.last = rows.last[read]
        self.aggregate = aggregate
        counts = np.diff(self.offsets)
        self.counts: NDArray[np.int64] = counts
        """Rows of each conversation, shape ``(conversations,)``."""
        self.conversation_of = np.repeat(np.arange(len(counts)), counts)
        """Conversation of each row, shape ``(rows,)``."""
        self.token_of = np.arange(len(self.last)) - self.offsets[self.conversation_of]
        """Index of each row within its conversation, shape ``(rows,)``."""

    def message(self, conversation: int) -> NDArray[np.float32]:
        """The states of a conversation's last message, shape ``(tokens, hidden)``."""
        part = slice(self.offsets[conversation], self.offsets[conversation + 1])
        return self.states[part][self.last[part]]

    def means(self, points: NDArray[np.int64]) -> NDArray[np.float32]:
        """The running mean of the states at some rows, shape ``(points, hidden)``.

        Args:
            points: Rows of :attr:`states`.
        """
        decay = self.aggregate.decay
        back = int(np.ceil(_FORGOTTEN * self.aggregate.half_life)) + self.aggregate.window
        begins = np.maximum(self.offsets[self.conversation_of[points]], points + 1 - back)
        means = np.empty((len(points), self.states.shape[1]), np.float32)
        for index, (begin, end) in enumerate(zip(begins.tolist(), (points + 1).tolist(), strict=True)):
            weights = decay ** np.arange(end - begin - 1, -1, -1, dtype=np.float64)
            if self.aggregate.window > 1:
                weights = _through_windows(weights, self.aggregate.window)
            means[index] = (weights / weights.sum()).astype(np.float32) @ self.states[begin:end]
        return means

    def scores(self, probe: Linear | MultiMax) -> NDArray[np.floating]:
        """The score of each row, shape ``(rows,)``."""
        if isinstance(probe, Linear):
            return token_scores(probe, self.states)
        parts = np.split(self.states, self.offsets[1:-1])
        return np.concatenate([np.zeros(0), *(token_scores(probe, part) for part in parts)])

    def running(self, probe: Linear | MultiMax) -> NDArray[np.float64]:
        """The aggregate after each row, conversations in rows and their tokens in columns; −inf beyond and before.

        Equal to :func:`probes.scoring.aggregate.running` on each conversation.
        """
        from scipy.signal import lfilter as untyped

        lfilter: Any = untyped
        aggregate, scores = self.aggregate, self.scores(probe)
        width = int(self.counts.max(initial=1))
        padded = np.zeros((len(self.counts), width))
        padded[self.conversation_of, self.token_of] = scores
        if aggregate.window > 1:
            sums = lfilter(np.ones(aggregate.window), [1.0], padded, axis=1)
            padded = sums / np.minimum(np.arange(1, width + 1), aggregate.window)
        weighted = lfilter([1.0], [1.0, -aggregate.decay], padded, axis=1)
        means = weighted / lfilter([1.0], [1.0, -aggregate.decay], np.ones(width))
        if aggregate.agree_of > 1:
            before = np.full((len(means), aggregate.agree_of - 1), -np.inf)
            views = np.lib.stride_tricks.sliding_window_view(np.hstack([before, means]), aggregate.agree_of, axis=1)
            means = np.sort(views, axis=-1)[..., -aggregate.agree]
        columns = np.arange(width)
        unripe = (columns < aggregate.min_tokens - 1) | (columns >= self.counts[:, None])
        return np.where(unripe, -np.inf, means)

    def peaks(self, probe: Linear | MultiMax) -> NDArray[np.float64]:
        """The verdict's peak of each conversation, shape ``(conversations,)``; −inf where it has none."""
        return self.running(probe).max(axis=1, initial=-np.inf)


@dataclass(frozen=True, slots=True)
class Training:
    """Training data of a probe: conversations of some :class:`Spans`.

    Each array has one element a conversation.
    """

    chosen: NDArray[np.int64]
    """Conversations."""
    labels: NDArray[np.bool_]
    """True where each shows the concept."""
    weights: NDArray[np.float64]
    """Weight of each."""
    polarity: NDArray[np.float64]
    """−1 where the statement is negated, otherwise 1."""
    benign: NDArray[np.bool_]
    """True for benign requests, all of whose rows are benign; of the others, the last message is
    labelled."""


def fit(spans: Spans, training: Training, kind: Kind, penalty: float) -> Linear:
    """Fit one probe.

    Args:
        spans: Rows of the conversations.
        training: Which of them, and what they are.
        kind: How.
        penalty: The inverse penalty C of the logistic regression.

    Raises:
        ConceptError: All positives, or all negatives, are too short for a verdict.
    """
    index, points = _first_points(spans, training)
    for label in (True, False):
        if not (training.labels[index] == label).any():
            raise ConceptError(
                f"No example that {'shows' if label else 'does not show'} the concept has the "
                f"{spans.aggregate.min_tokens} tokens that a verdict takes.",
                "Write longer messages, or set a lower min_tokens.",
            )
    states = spans.means(points)
    if kind == "at_ends":
        return _fit_ends(spans, states, training, index, points, penalty)
    probe = _fit_points(states, training, index, kind, penalty)
    for _ in range(MINED):
        more = _highest(spans, training, probe)
        fresh = more >= 0
        seen = set(zip(index.tolist(), points.tolist(), strict=True))
        fresh &= np.array([(at, point) not in seen for at, point in enumerate(more.tolist())])
        if not fresh.any():
            break
        index, points = np.concatenate([index, np.flatnonzero(fresh)]), np.concatenate([points, more[fresh]])
        states = np.concatenate([states, spans.means(more[fresh])])
        probe = _fit_points(states, training, index, kind, penalty)
    return probe


def _first_points(spans: Spans, training: Training) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The end of each conversation, and places along the benign ones: index into the training, and row."""
    first = spans.aggregate.min_tokens - 1
    index, points = list[int](), list[int]()
    for at, conversation in enumerate(training.chosen.tolist()):
        begin, end = int(spans.offsets[conversation]), int(spans.offsets[conversation + 1]) - 1
        if end - begin < first:
            continue
        places = np.linspace(end, begin + first, BENIGN_POINTS).astype(int).tolist() if training.benign[at] else [end]
        index += [at] * len(set(places))
        points += sorted(set(places))
    return np.array(index, np.int64), np.array(points, np.int64)


def _highest(spans: Spans, training: Training, probe: Linear) -> NDArray[np.int64]:
    """The row where each conversation's aggregate peaks within what is labelled; −1 where it has none."""
    running = spans.running(probe)
    width = running.shape[1]
    labelled = np.zeros((len(spans.counts), width), bool)
    labelled[spans.conversation_of, spans.token_of] = spans.last
    labelled[training.chosen[training.benign]] = True
    chosen = np.where(labelled, running, -np.inf)[training.chosen]
    best = chosen.argmax(axis=1)
    found = np.isfinite(chosen[np.arange(len(chosen)), best])
    return np.where(found, spans.offsets[training.chosen] + best, -1)


def _fit_points(
    states: NDArray[np.float32], training: Training, index: NDArray[np.int64], kind: Kind, penalty: float
) -> Linear:
    labels, polarity = training.labels[index], training.polarity[index]
    # A conversation counts as much however many places it gives.
    weights = training.weights[index] / np.bincount(index, minlength=len(training.chosen))[index]
    for side in (labels, ~labels):
        weights[side] /= weights[side].sum()
    weights *= len(index)
    mean = np.average(states, axis=0, weights=weights)
    scale = np.sqrt(np.average(np.square(states - mean), axis=0, weights=weights)) + 1e-6
    standard = ((states - mean) / scale).astype(np.float32)
    if kind == "logistic":
        direction, bias = _logistic(standard, labels, weights, penalty)
    else:
        direction = _direction(standard, labels, polarity, weights, kind)
        gain, bias = _logistic((standard @ direction)[:, None], labels, weights, 1.0)
        direction = direction * gain[0]
    weight = direction / scale
    return Linear(weight, float(bias - mean @ weight))


def _fit_ends(
    spans: Spans,
    states: NDArray[np.float32],
    training: Training,
    index: NDArray[np.int64],
    points: NDArray[np.int64],
    penalty: float,
) -> Linear:
    """The direction of ends, and one that lifts them above the places before them."""
    probe = _fit_points(states, training, index, "logistic", penalty)
    before = _before_end(spans, training, index, points)
    if not len(before):
        # Every message has its first verdict at its last token.
        return probe
    at_end = points == spans.offsets[training.chosen[index] + 1] - 1
    ends, others = states[at_end], spans.means(before)
    scale = ends.std(axis=0) + 1e-6
    places = np.concatenate([ends, others]) / scale
    lift, _ = _logistic(
        places - places.mean(axis=0),
        np.arange(len(places)) < len(ends),
        np.repeat([0.5 / len(ends), 0.5 / len(others)], [len(ends), len(others)]) * len(places),
        penalty,
    )
    # What is shown at ends is not to be changed by how clearly a place is an end.
    shown = probe.weight * scale
    lift -= shown * (lift @ shown) / (shown @ shown)
    lift /= scale
    gap = float((ends @ lift).mean() - (others @ lift).mean())
    if gap < TOLD * float((others @ lift).std()):
        return probe
    lift *= END_GAP * float((ends @ probe.weight).std()) / gap
    return Linear(probe.weight + lift, probe.bias - float((ends @ lift).mean()))


def _before_end(
    spans: Spans, training: Training, index: NDArray[np.int64], points: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Places of each labelled message between its first verdict and its end."""
    first = spans.aggregate.min_tokens - 1
    found = list[int]()
    for at, point in zip(index.tolist(), points.tolist(), strict=True):
        conversation = int(training.chosen[at])
        begin = int(spans.offsets[conversation]) + first
        if not training.benign[at] and begin < point:
            kept = spans.last[begin:point]
            places = begin + np.flatnonzero(kept)
            found += places[np.linspace(0, len(places) - 1, BEFORE_END).astype(int)].tolist() if len(places) else []
    return np.unique(np.array(found, np.int64))


def _direction(
    standard: NDArray[np.floating],
    labels: NDArray[np.bool_],
    polarity: NDArray[np.float64],
    weights: NDArray[np.float64],
    kind: Kind,
) -> NDArray[np.float64]:
    """A unit direction in standardised states."""
    sign = np.where(labels, 1.0, -1.0)
    # Where nothing is negated, label and label times polarity are the same, and there is one direction.
    if kind == "mean_difference" or np.ptp(polarity) == 0:
        direction = (standard * (weights * sign)[:, None]).sum(axis=0)
    else:
        # Least squares of the states on label, label times polarity, and polarity.
        design = np.stack([sign, sign * polarity, polarity, np.ones_like(sign)], axis=1)
        root = np.sqrt(weights)[:, None]
        effects = np.linalg.lstsq(design * root, standard * root, rcond=None)[0]
        truth, other = effects[0].astype(np.float64), effects[1].astype(np.float64)
        norm = float(other @ other)
        direction = truth - other * (truth @ other) / norm if norm > 0 else truth
    return direction / max(float(np.linalg.norm(direction)), 1e-12)


def _logistic(
    states: NDArray[np.floating], labels: NDArray[np.bool_], weights: NDArray[np.float64], penalty: float
) -> tuple[NDArray[np.float64], float]:
    from sklearn.linear_model import LogisticRegression

    model: Any = LogisticRegression(C=penalty, max_iter=1000, tol=1e-3)
    model.fit(states, labels, sample_weight=weights)
    return model.coef_[0].astype(np.float64), float(model.intercept_[0])


def _through_windows(weights: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The weight of each state in an average of window means, from the weights of those means."""
    spread = np.zeros(len(weights))
    for end, weight in enumerate(weights):
        begin = max(0, end + 1 - window)
        spread[begin : end + 1] += weight / (end + 1 - begin)
    return spread
