r"""The running verdict: from a probe's score a token to one decision a request.

A probe scores every token; a verdict must not hang on one of them. The aggregate of a request is an exponential moving
average of the scores over the tokens that the probe reads (its roles), bias-corrected so that the first tokens count in
full (Kingma and Ba, arXiv 1412.6980, section 3, for the correction; "cheap monitors", Anthropic 2025, for EMA probes):

.. math::

    n_t = d\,n_{t-1} + s_t, \qquad m_t = d\,m_{t-1} + 1, \qquad a_t = n_t / m_t, \qquad d = 2^{-1/h}

with half-life ``h`` in tokens. After ``min_tokens`` tokens, the verdict's ``peak`` is the largest ``a_t`` so far, and
the probe fires at the first ``t`` where ``a_t`` reaches the threshold. Since the average is linear in the scores, and
a linear probe's score is linear in the activation, a probe trained on averaged activations is read exactly as it was
trained.

:func:`running_mean` is the reference; :class:`Aggregates` does the same for many requests and probes at once.
"""

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

_BLOCK = 64
"""Rows of one request folded at once; the matrix of powers below is this large."""


class Aggregate(msgspec.Struct, frozen=True):
    """How token scores become a request's verdict."""

    half_life: Annotated[float, msgspec.Meta(gt=0)] = 12.0
    """Tokens after which a score counts half."""
    min_tokens: Annotated[int, msgspec.Meta(ge=1)] = 4
    """Tokens that must have been read before the probe may fire."""

    @property
    def decay(self) -> float:
        """The weight that a score keeps from one token to the next."""
        return float(0.5 ** (1.0 / self.half_life))


def running_mean(values: NDArray[np.floating], half_life: float) -> NDArray[np.float64]:
    """The bias-corrected exponential moving average after each row: the reference.

    Args:
        values: Shape ``(tokens,)`` or ``(tokens, anything)``.
        half_life: In tokens.

    Returns:
        The averages, the same shape, float64.
    """
    decay = 0.5 ** (1.0 / half_life)
    mean = np.zeros(np.shape(values), np.float64)
    weighted, weight = np.zeros(np.shape(values)[1:], np.float64), 0.0
    for row, value in enumerate(np.asarray(values, np.float64)):
        weighted = decay * weighted + value
        weight = decay * weight + 1.0
        mean[row] = weighted / weight
    return mean


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
        steps = np.arange(_BLOCK + 1)
        # powers[k, i] = decay_k ** i; fold[k, i, j] = decay_k ** (i - j) for j <= i.
        self._powers = self._decay[:, None] ** steps
        lag = np.subtract.outer(np.arange(_BLOCK), np.arange(_BLOCK))
        self._fold = np.where(lag >= 0, self._decay[:, None, None] ** np.maximum(lag, 0), 0.0)
        probes = len(aggregates)
        self.weighted = np.zeros((capacity, probes))
        self.weight = np.zeros((capacity, probes))
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
        weighted = np.where(read, self._decay * self.weighted[rows] + scores, self.weighted[rows])
        weight = np.where(read, self._decay * self.weight[rows] + 1.0, self.weight[rows])
        count = self.count[rows] + read
        self.weighted[rows], self.weight[rows], self.count[rows] = weighted, weight, count
        ripe = read & (count >= self._min_tokens)
        mean = np.divide(weighted, weight, out=np.full_like(weighted, -np.inf), where=ripe)
        self.peak[rows] = np.maximum(self.peak[rows], mean)
        fired = (mean >= self.thresholds) & (self.fired_at[rows] < 0) & ripe
        if not fired.any():
            return []
        self.fired_at[rows] = np.where(fired, positions[:, None], self.fired_at[rows])
        self.fired_with[rows] = np.where(fired, mean, self.fired_with[rows])
        return [(int(token), int(probe)) for token, probe in np.argwhere(fired)]

    def _alike(self, read: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
        """Probes that read the same tokens at the same decay, and can be folded by one matrix product."""
        groups: dict[tuple[float, bytes], list[int]] = {}
        columns = np.ascontiguousarray(read.T)
        for probe in np.flatnonzero(columns.any(axis=1)):
            groups.setdefault((float(self._decay[probe]), columns[probe].tobytes()), []).append(int(probe))
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
        weighted = fold @ scores.astype(np.float64) + carried * self.weighted[row, probes]
        weight = fold.sum(axis=1, keepdims=True) + carried * self.weight[row, probes]
        ripe = self.count[row, probes] + np.arange(1, tokens + 1)[:, None] >= self._min_tokens[probes]
        mean = np.where(ripe, weighted / weight, -np.inf)
        self.weighted[row, probes], self.weight[row, probes] = weighted[-1], weight[-1]
        self.count[row, probes] += tokens
        self.peak[row, probes] = np.maximum(self.peak[row, probes], mean.max(axis=0))
        over = ripe & (mean >= self.thresholds[probes]) & (self.fired_at[row, probes] < 0)
        fired = np.flatnonzero(over.any(axis=0))
        first = over[:, fired].argmax(axis=0)
        self.fired_at[row, probes[fired]] = positions[first]
        self.fired_with[row, probes[fired]] = mean[first, fired]
        return probes[fired].tolist()

    def _grow(self) -> None:
        fillers = {"count": 0, "peak": -np.inf, "fired_at": -1, "fired_with": np.nan}
        for name, filler in {"weighted": 0.0, "weight": 0.0, **fillers}.items():
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.full_like(old, filler)]))
