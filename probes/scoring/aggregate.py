r"""The running verdict: from a probe's score a token to one decision a request.

A probe scores every token; a verdict must not hang on one of them. Over the tokens that a probe reads (its roles),

1. a **window mean** of the last ``window`` scores (Constitutional Classifiers++, arXiv 2601.04603, trains with it),
2. an exponential moving average of that, bias-corrected so that the first tokens count in full (Kingma and Ba,
   arXiv 1412.6980, section 3, for the correction; "cheap monitors", Anthropic 2025, for EMA probes),

.. math::

    n_t = d\,n_{t-1} + w_t, \qquad m_t = d\,m_{t-1} + 1, \qquad a_t = n_t / m_t, \qquad d = 2^{-1/h}

with half-life ``h`` in tokens, and

3. **agreement**: the value that ``agree`` of the last ``agree_of`` averages reach, their ``agree``-th largest, so that
   several places of a text must speak for it (segment coherence, arXiv 2604.14865),

make the aggregate. After ``min_tokens`` tokens, the verdict's ``peak`` is the largest aggregate so far, the rolling
maximum, and the probe fires at the first token where the aggregate reaches the threshold: a request fires if and only
if its peak reaches it. As long as one average is enough (``agree`` of 1), the aggregate is linear in the scores, and a
linear probe's score is linear in the activation, so that a probe trained on averaged activations is read exactly as it
was trained.

:func:`running` is the reference; :class:`Aggregates` does the same for many requests and probes at once.
"""

from typing import Annotated

import msgspec
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

_BLOCK = 64
"""Rows of one request folded at once; the matrix of powers below is this large."""


class Aggregate(msgspec.Struct, frozen=True):
    """The aggregation of token scores into a request's verdict."""

    half_life: Annotated[float, msgspec.Meta(gt=0)] = 12.0
    """Tokens after which a score counts half."""
    min_tokens: Annotated[int, msgspec.Meta(ge=1)] = 4
    """Tokens that must have been read before the probe may fire."""
    window: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    """Scores whose mean enters the moving average; as many as there are, before."""
    agree: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """Averages that must reach the threshold, among ..."""
    agree_of: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """... the last so many."""

    def __post_init__(self) -> None:
        if self.agree > self.agree_of:
            raise ValueError(f"{self.agree} of the last {self.agree_of} averages cannot agree")

    @property
    def decay(self) -> float:
        """The weight that a score keeps from one token to the next."""
        return float(0.5 ** (1.0 / self.half_life))

    def describe(self) -> str:
        """In words, for people."""
        scores = "scores" if self.window == 1 else f"means of {self.window} scores"
        text = (
            f"moving average of {scores} with a half-life of {self.half_life:g} tokens, from token {self.min_tokens} on"
        )
        return (
            text if self.agree_of == 1 else f"{text}; {self.agree} of the last {self.agree_of} must reach the threshold"
        )


def running_mean(values: NDArray[np.floating], half_life: float, window: int = 1) -> NDArray[np.float64]:
    """The bias-corrected exponential moving average of window means after each row: the reference.

    Args:
        values: Shape ``(tokens,)`` or ``(tokens, anything)``.
        half_life: In tokens.
        window: Rows whose mean is averaged.

    Returns:
        The averages, the same shape, float64.
    """
    decay = 0.5 ** (1.0 / half_life)
    values = np.asarray(values, np.float64)
    mean = np.zeros(values.shape, np.float64)
    weighted, weight = np.zeros(values.shape[1:], np.float64), 0.0
    for row in range(len(values)):
        weighted = decay * weighted + values[max(0, row + 1 - window) : row + 1].mean(axis=0)
        weight = decay * weight + 1.0
        mean[row] = weighted / weight
    return mean


def running(scores: NDArray[np.floating], aggregate: Aggregate) -> NDArray[np.float64]:
    """The aggregate after each token: the reference.

    Args:
        scores: Of the tokens that the probe reads, shape ``(tokens,)``.
        aggregate: How they are aggregated.

    Returns:
        Shape ``(tokens,)``, float64; −inf where the probe may not fire yet.
    """
    means = running_mean(scores, aggregate.half_life, aggregate.window)
    result = np.full(len(means), -np.inf)
    for row in range(max(aggregate.min_tokens, aggregate.agree) - 1, len(means)):
        result[row] = np.sort(means[max(0, row + 1 - aggregate.agree_of) : row + 1])[-aggregate.agree]
    return result


class Aggregates:
    """Running aggregates of many requests and probes.

    All arrays are ``(capacity, probes)``; a request holds one row of them, numbered by the caller.

    Args:
        aggregates: One :class:`Aggregate` a probe.
        thresholds: The score at which each probe fires, shape ``(probes,)``.
        capacity: Requests to make room for at first; grows by doubling.
    """

    def __init__(self, aggregates: list[Aggregate], thresholds: NDArray[np.floating], capacity: int = 64) -> None:
        self.thresholds = np.asarray(thresholds, np.float64)
        self._decay = np.array([aggregate.decay for aggregate in aggregates])
        self._min_tokens = np.array([aggregate.min_tokens for aggregate in aggregates])
        self._window = np.array([aggregate.window for aggregate in aggregates])
        self._agree = np.array([aggregate.agree for aggregate in aggregates])
        self._agree_of = np.array([aggregate.agree_of for aggregate in aggregates])
        steps = np.arange(_BLOCK + 1)
        # powers[k, i] = decay_k ** i; fold[k, i, j] = decay_k ** (i - j) for j <= i.
        self._powers = self._decay[:, None] ** steps
        lag = np.subtract.outer(np.arange(_BLOCK), np.arange(_BLOCK))
        self._fold = np.where(lag >= 0, self._decay[:, None, None] ** np.maximum(lag, 0), 0.0)
        probes = len(aggregates)
        self.weighted = np.zeros((capacity, probes))
        self.weight = np.zeros((capacity, probes))
        # The last scores and averages of each request and probe, the newest last: what windows and agreement look back
        # on.
        self._scores = np.zeros((capacity, probes, max(self._window, default=1) - 1))
        self._means = np.full((capacity, probes, max(self._agree_of, default=1) - 1), -np.inf)
        self.count = np.zeros((capacity, probes), np.int64)
        """Tokens read."""
        self.peak = np.full((capacity, probes), -np.inf)
        """The largest aggregate since ``min_tokens`` were read; −inf before."""
        self.fired_at = np.full((capacity, probes), -1, np.int64)
        """Position of the token at which the probe fired, −1 where it has not."""
        self.fired_with = np.full((capacity, probes), np.nan)
        """The aggregate at that token; NaN where the probe has not fired."""

    @property
    def capacity(self) -> int:
        """Rows allocated."""
        return len(self.weighted)

    def mean(self, row: int) -> NDArray[np.float64]:
        """The current aggregate of each probe, shape ``(probes,)``; NaN where nothing was read."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.weighted[row] / self.weight[row]

    def reset(self, row: int) -> None:
        """Give ``row`` to a new request, growing the arrays where needed."""
        while row >= self.capacity:
            self._grow()
        self.weighted[row] = self.weight[row] = 0.0
        self._scores[row] = 0.0
        self._means[row] = -np.inf
        self.count[row] = 0
        self.peak[row] = -np.inf
        self.fired_at[row] = -1
        self.fired_with[row] = np.nan

    def update(
        self,
        row: int,
        scores: NDArray[np.floating],
        positions: NDArray[np.integer],
        read: NDArray[np.bool_],
    ) -> list[int]:
        """Fold a run of tokens of one request, in order of position.

        Args:
            row: The request's row.
            scores: Shape ``(tokens, probes)``.
            positions: Absolute positions, shape ``(tokens,)``.
            read: Which probe reads which token, shape ``(tokens, probes)``.

        Returns:
            The indices of probes that fired for the first time.
        """
        fired: list[int] = []
        for probes in self._alike(read):
            chosen = np.flatnonzero(read[:, probes[0]])
            for start in range(0, len(chosen), _BLOCK):
                part = chosen[start : start + _BLOCK]
                fired += self._fold_block(row, probes, scores[part][:, probes], positions[part])
        return fired

    def update_each(
        self,
        rows: NDArray[np.integer],
        scores: NDArray[np.floating],
        positions: NDArray[np.integer],
        read: NDArray[np.bool_],
    ) -> list[tuple[int, int]]:
        """Fold one token each of different requests: a decode step.

        Args:
            rows: The requests' rows, all different, shape ``(tokens,)``.
            scores: Shape ``(tokens, probes)``.
            positions: Absolute positions, shape ``(tokens,)``.
            read: Which probe reads which token, shape ``(tokens, probes)``.

        Returns:
            ``(index into rows, probe)`` of each first firing.
        """
        count = self.count[rows] + read
        windowed = self._windowed(rows, scores, count, read)
        weighted = np.where(read, self._decay * self.weighted[rows] + windowed, self.weighted[rows])
        weight = np.where(read, self._decay * self.weight[rows] + 1.0, self.weight[rows])
        self.weighted[rows], self.weight[rows], self.count[rows] = weighted, weight, count
        ripe = read & (count >= self._min_tokens)
        mean = np.divide(weighted, weight, out=np.full_like(weighted, -np.inf), where=read)
        mean = np.where(ripe, self._agreed(rows, mean, read), -np.inf)
        self.peak[rows] = np.maximum(self.peak[rows], mean)
        fired = (mean >= self.thresholds) & (self.fired_at[rows] < 0) & ripe
        if not fired.any():
            return []
        self.fired_at[rows] = np.where(fired, positions[:, None], self.fired_at[rows])
        self.fired_with[rows] = np.where(fired, mean, self.fired_with[rows])
        return [(int(token), int(probe)) for token, probe in np.argwhere(fired)]

    def _windowed(
        self,
        rows: NDArray[np.integer],
        scores: NDArray[np.floating],
        count: NDArray[np.int64],
        read: NDArray[np.bool_],
    ) -> NDArray[np.floating]:
        """The window mean after one more token of each request, shape ``(tokens, probes)``."""
        back = self._scores.shape[2]
        if not back:
            return scores
        recent = np.concatenate([self._scores[rows], np.asarray(scores, np.float64)[..., None]], axis=2)
        self._scores[rows] = np.where(read[..., None], recent[..., 1:], recent[..., :-1])
        inside = np.arange(back, -1, -1) < self._window[:, None]
        return np.where(inside, recent, 0.0).sum(axis=2) / np.maximum(np.minimum(count, self._window), 1)

    def _agreed(
        self, rows: NDArray[np.integer], mean: NDArray[np.float64], read: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """The value that enough of the last averages reach, shape ``(tokens, probes)``."""
        back = self._means.shape[2]
        if not back:
            return mean
        recent = np.concatenate([self._means[rows], mean[..., None]], axis=2)
        self._means[rows] = np.where(read[..., None], recent[..., 1:], recent[..., :-1])
        inside = np.arange(back, -1, -1) < self._agree_of[:, None]
        ordered = np.sort(np.where(inside, recent, -np.inf), axis=2)
        return np.take_along_axis(ordered, (back + 1 - self._agree)[None, :, None], axis=2)[..., 0]

    def _alike(self, read: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
        """Probes that read the same tokens and aggregate alike, and can be folded by one matrix product."""
        groups: dict[tuple[float, int, int, int, bytes], list[int]] = {}
        columns = np.ascontiguousarray(read.T)
        for probe in np.flatnonzero(columns.any(axis=1)):
            how = (float(self._decay[probe]), int(self._window[probe]), int(self._agree[probe]))
            groups.setdefault((*how, int(self._agree_of[probe]), columns[probe].tobytes()), []).append(int(probe))
        return [np.array(group) for group in groups.values()]

    def _fold_block(
        self,
        row: int,
        probes: NDArray[np.intp],
        scores: NDArray[np.floating],
        positions: NDArray[np.integer],
    ) -> list[int]:
        """Fold up to :data:`_BLOCK` tokens that all ``probes`` read; returns those that first fired here."""
        tokens = len(scores)
        carried = self._powers[probes[0], 1 : tokens + 1, None]
        fold = self._fold[probes[0], :tokens, :tokens]
        windowed = self._windowed_block(row, probes, scores.astype(np.float64))
        weighted = fold @ windowed + carried * self.weighted[row, probes]
        weight = fold.sum(axis=1, keepdims=True) + carried * self.weight[row, probes]
        ripe = self.count[row, probes] + np.arange(1, tokens + 1)[:, None] >= self._min_tokens[probes]
        mean = np.where(ripe, self._agreed_block(row, probes, weighted / weight), -np.inf)
        self.weighted[row, probes], self.weight[row, probes] = weighted[-1], weight[-1]
        self.count[row, probes] += tokens
        self.peak[row, probes] = np.maximum(self.peak[row, probes], mean.max(axis=0))
        over = ripe & (mean >= self.thresholds[probes]) & (self.fired_at[row, probes] < 0)
        fired = np.flatnonzero(over.any(axis=0))
        first = over[:, fired].argmax(axis=0)
        self.fired_at[row, probes[fired]] = positions[first]
        self.fired_with[row, probes[fired]] = mean[first, fired]
        return probes[fired].tolist()

    def _windowed_block(self, row: int, probes: NDArray[np.intp], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The window mean after each of a run of tokens, shape ``(tokens, probes)``; ``probes`` aggregate alike."""
        back, window = self._scores.shape[2], int(self._window[probes[0]])
        if not back:
            return scores
        recent = np.concatenate([self._scores[row, probes].T, scores])
        self._scores[row, probes] = recent[len(scores) :].T
        sums = sliding_window_view(recent[back + 1 - window :], window, axis=0).sum(axis=-1)
        count = self.count[row, probes] + np.arange(1, len(scores) + 1)[:, None]
        return sums / np.minimum(count, window)

    def _agreed_block(self, row: int, probes: NDArray[np.intp], mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """The value that enough of the last averages reach, after each token of a run, shape ``(tokens, probes)``."""
        back, last = self._means.shape[2], int(self._agree_of[probes[0]])
        if not back:
            return mean
        recent = np.concatenate([self._means[row, probes].T, mean])
        self._means[row, probes] = recent[len(mean) :].T
        ordered = np.sort(sliding_window_view(recent[back + 1 - last :], last, axis=0), axis=-1)
        return ordered[..., last - int(self._agree[probes[0]])]

    def _grow(self) -> None:
        fillers = {"count": 0, "peak": -np.inf, "fired_at": -1, "fired_with": np.nan, "_means": -np.inf}
        for name, filler in {"weighted": 0.0, "weight": 0.0, "_scores": 0.0, **fillers}.items():
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.full_like(old, filler)]))
