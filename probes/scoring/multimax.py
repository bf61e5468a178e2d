r"""MultiMax: a small network that reads single states, and heads that attend to a few of them.

It is for what no single direction shows. With the state :math:`x_t` of a token,

.. math::

    y_t = \operatorname{relu}(W_2 \operatorname{relu}(W_1 x_t + b_1) + b_2), \qquad
    v_{h,t} = u_h \cdot y_t, \qquad l_{h,t} = q_h \cdot y_t

are the value and the attention logit of head :math:`h` there, which do not depend on any other token. The score is the
sum, over heads, of the attention-weighted average of the last ``window`` tokens (fewer, at the beginning):

.. math::

    s_t = c + \sum_h \frac{\sum_{j = t-w+1}^{t} e^{l_{h,j}} v_{h,j}}{\sum_{j = t-w+1}^{t} e^{l_{h,j}}}

Only tokens that the probe reads count: those of other roles are left out before. The verdict takes the maximum of it
over the request (:mod:`probes.scoring.aggregate`).

What remains of a request is bounded: :class:`Carry` has the values and logits of the last ``window − 1`` tokens, so
that scores may be computed as the states arrive. A token whose state is not finite has the score NaN, and later ones
are scored as if it had not been there.

Source: Kramár et al., "Building Production-Ready Probes For Gemini", arXiv 2601.11516. Numpy only: the monitor runs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

MAX_WINDOW: Final = 256
"""Tokens; what is remembered of a request grows with it. As for :class:`probes.scoring.aggregate.Aggregate`."""
MAX_HEADS: Final = 64
"""For the same reason."""
_TENSORS: Final = ("w1", "b1", "w2", "b2", "value", "attention", "bias")


@dataclass(slots=True)
class Carry:
    """The memory of the last tokens of one request, the newest last; changed by :meth:`MultiMax.scores`."""

    recent: NDArray[np.float64]
    """Value and attention logit, shape ``(window - 1, heads, 2)``; a logit of −inf where there was no token."""


@dataclass(frozen=True, slots=True, eq=False)
class MultiMax:
    """The weights of one probe, float32.

    Raises:
        ValueError: They do not fit each other, are not finite, or are too many; the message names the tensor.
    """

    w1: NDArray[np.float32]
    """Shape ``(width, hidden)``; what standardises the states is in it, and in ``b1``."""
    b1: NDArray[np.float32]
    """Shape ``(width,)``."""
    w2: NDArray[np.float32]
    """Shape ``(width, width)``."""
    b2: NDArray[np.float32]
    """Shape ``(width,)``."""
    value: NDArray[np.float32]
    """Shape ``(heads, width)``."""
    attention: NDArray[np.float32]
    """Shape ``(heads, width)``."""
    bias: NDArray[np.float32]
    """Shape ``(1,)``."""
    window: int
    """Tokens that a score is an average of."""

    def __post_init__(self) -> None:
        if self.w1.ndim != 2 or self.value.ndim != 2:
            raise ValueError(f"w1 and value have {self.w1.ndim} and {self.value.ndim} dimensions, not 2")
        width, heads = len(self.w1), self.heads
        shapes = {"w1": (width, self.hidden), "b1": (width,), "w2": (width, width), "b2": (width,)}
        for name, shape in {**shapes, "value": (heads, width), "attention": (heads, width), "bias": (1,)}.items():
            tensor: NDArray[np.float32] = getattr(self, name)
            if tensor.shape != shape or not tensor.size:
                raise ValueError(f"{name} has shape {tensor.shape}, not {shape} with something in it")
            if not np.isfinite(tensor).all():
                raise ValueError(f"{name} is not finite")
        if heads > MAX_HEADS:
            raise ValueError(f"it has {heads} heads, more than {MAX_HEADS}")
        if not 1 <= self.window <= MAX_WINDOW:
            raise ValueError(f"its window of {self.window} tokens is not one of 1 to {MAX_WINDOW}")

    @property
    def hidden(self) -> int:
        """Width of the states that it reads."""
        return self.w1.shape[1]

    @property
    def heads(self) -> int:
        """Number of heads."""
        return len(self.value)

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[np.generic]]) -> Self:
        """The probe that :meth:`tensors` describes.

        Raises:
            KeyError: One is missing.
            ValueError: They do not fit each other, or are not finite; the message names the tensor.
        """
        if (window := tensors["window"]).shape != (1,) or window.dtype != np.int64:
            raise ValueError(f"window is {window.dtype} of shape {window.shape}, not one integer")
        return cls(**{name: np.asarray(tensors[name], np.float32) for name in _TENSORS}, window=int(window[0]))

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """The tensors of a bundle, by name."""
        weights: dict[str, NDArray[np.generic]] = {name: getattr(self, name) for name in _TENSORS}
        return {**weights, "window": np.array([self.window], np.int64)}

    def begin(self) -> Carry:
        """The memory before the first token of a request."""
        recent = np.zeros((self.window - 1, self.heads, 2))
        recent[..., 1] = -np.inf
        return Carry(recent)

    def token_values(self, states: NDArray[np.floating]) -> NDArray[np.float64]:
        """The value and the attention logit of each head at each token, by itself.

        Args:
            states: Shape ``(tokens, hidden)``.

        Returns:
            Shape ``(tokens, heads, 2)``.
        """
        # What is too large for float32 is not finite afterwards, and treated as such.
        with np.errstate(over="ignore", invalid="ignore"):
            inner = np.maximum(np.asarray(states, np.float32) @ self.w1.T + self.b1, 0.0)
            outer = np.maximum(inner @ self.w2.T + self.b2, 0.0)
            return np.stack([outer @ self.value.T, outer @ self.attention.T], axis=-1).astype(np.float64)

    def scores(self, states: NDArray[np.floating], carry: Carry) -> NDArray[np.float64]:
        """The score of each token, in logits.

        Args:
            states: Of the next tokens of one request that the probe reads, in order, shape ``(tokens, hidden)``.
            carry: From :meth:`begin`, or as the tokens before left it; changed.

        Returns:
            Shape ``(tokens,)``; NaN where the state is not finite.
        """
        found = self.token_values(states)
        scored = np.isfinite(found).all(axis=(1, 2))
        seen = np.concatenate([carry.recent, found[scored]])
        carry.recent = seen[len(seen) - len(carry.recent) :].copy()
        scores = np.full(len(found), np.nan)
        scores[scored] = float(self.bias[0]) + self._averages(seen).sum(axis=1)
        return scores

    def _averages(self, seen: NDArray[np.float64]) -> NDArray[np.float64]:
        """The attention-weighted average of the window that ends at each token, the first ``window - 1`` excepted.

        Args:
            seen: Values and logits, shape ``(window - 1 + tokens, heads, 2)``.

        Returns:
            Shape ``(tokens, heads)``.
        """
        tokens = len(seen) - self.window + 1
        values, logits = np.ascontiguousarray(seen[..., 0]), np.ascontiguousarray(seen[..., 1])
        highest = logits[self.window - 1 :].copy()
        for lag in range(self.window - 1):
            np.maximum(highest, logits[lag : lag + tokens], out=highest)
        above, below = np.zeros((2, tokens, self.heads))
        # One place of the window at a time, and not a sum over an axis: its order must not hang on how many come.
        for lag in range(self.window):
            weight = np.exp(logits[lag : lag + tokens] - highest)
            above += weight * values[lag : lag + tokens]
            below += weight
        return above / below
