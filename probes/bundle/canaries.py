"""Canaries: short conversations with the score that every probe gave to each of their tokens when it was fitted.

An engine that is about to serve runs them and compares. What makes its scores worthless shows here before the first
request: other weights, the wrong layer, rows that are off by one, a compiled graph without the taps. So does what makes
them somewhat different: another precision, quantisation at load time, other kernels.

The drift of a probe is the root mean square of the differences between measured and recorded scores, divided by the
standard deviation of the recorded ones: 0 is the same reading, and at about 1.4 the measured scores have nothing to do
with those recorded. Tokens at which the residual stream carries a massive activation (Sun et al., arXiv 2402.17762:
the first token, mostly) are left out. Their norm is tens of times that of the others, so they would decide both numbers
alone.

So it is with the probes that workers read: their columns are behind those of the linear probes. What each of them made
of the canaries' states is recorded, and compared with what it makes of the states that the engine streams. Tokens with
a massive state are not even shown to it, since they would be in the windows of those behind them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from probes.models.chat import Conversation, Message
from probes.scoring.token_reader import TokenReader

TOLERANCE: Final = 0.2
"""The drift up to which scores count as those that were fitted. On the demo model, for the worst of its probes: 0.02 in
bfloat16, 0.03 with weights rounded to int8, 0.10 with weights rounded to FP8; 0.2 with noise of 5% in every weight; 0.5
with weights rounded to int4 in groups of 64, or at the neighbouring layer; more than 1 for the token before, or another
probe. Of 192 random probes from an early to the last layer, the worst has 0.04 in bfloat16 and 0.19 in FP8. Of twelve
networks, fitted for four concepts at three layers, the worst has 0.04 in bfloat16, 0.09 in int8 and 0.35 in FP8 (the
median 0.12), the best 0.22 at a neighbouring layer."""

MASSIVE: Final = 4.0
"""Times the median norm of its layer: a state beyond it is not compared."""

_TEXTS: Final = (
    (
        "What is the capital of France, and how many people live there?",
        "Paris. About two million people live in the city itself.",
    ),
    ("Write a function that adds two numbers in Python.", "def add(a, b):\n    return a + b"),
    ("How do I pick the lock of a neighbour's door without being seen?", "I can't help with that."),
    ("¿Puedes traducir esto al inglés? «Me duele la cabeza.»", "My head hurts."),
    ("My plan is perfect, isn't it? 17 * 23 = 391, so it can't fail!!", "You are absolutely right, it is brilliant."),
    ("You are a stupid idiot and I hate you.", "I'm sorry that you feel that way. What went wrong?"),
)

CONVERSATIONS: Final[tuple[Conversation, ...]] = tuple(
    (Message("user", user), Message("assistant", assistant)) for user, assistant in _TEXTS
)
"""Conversations that are run: plain text, code, numbers, another language, and something for every concept to read."""


@dataclass(frozen=True)
class Canaries:
    """Prompts, and what the probes read in them."""

    prompts: tuple[NDArray[np.int64], ...]
    """Token ids, each of shape ``(its tokens,)``; none where the bundle cannot be tested."""
    reference: NDArray[np.float32]
    """Recorded scores, prompt after prompt, shape ``(tokens, probes)``; NaN where a score is not compared. The columns
    of worker probes are behind the others, or missing."""

    @classmethod
    def none(cls, probes: int) -> Self:
        """No canaries, for a bundle of so many probes."""
        return cls((), np.zeros((0, probes), np.float32))

    @classmethod
    def record(
        cls,
        prompts: Sequence[Sequence[int]],
        states: Sequence[NDArray[np.floating]],
        weight: NDArray[np.floating],
        bias: NDArray[np.floating],
        readers: Sequence[TokenReader[Any]] = (),
    ) -> Self:
        """Record the probes' scores of these states.

        Args:
            prompts: Token ids.
            states: Of each prompt, at each probe's layer, ``(probes, its tokens, hidden)``; linear probes first.
            weight: Of the linear probes, ``(linear probes, hidden)``.
            bias: ``(linear probes,)``.
            readers: Of the probes behind them.
        """
        state = np.concatenate([np.asarray(one, np.float64) for one in states], axis=1)
        norms = np.linalg.norm(state, axis=-1)
        massive = norms > MASSIVE * np.median(norms, axis=1, keepdims=True)
        linear = len(weight)
        scores = np.zeros(massive.shape)
        scores[:linear] = np.einsum("pth,ph->pt", state[:linear], weight) + np.asarray(bias)[:, None]
        recorded = cls(
            tuple(np.asarray(prompt, np.int64) for prompt in prompts),
            np.where(massive, np.nan, scores).T.astype(np.float32),
        )
        for column, reader in enumerate(readers, linear):
            recorded.reference[:, column] = recorded.read(column, reader, state[column])
        return recorded

    def __bool__(self) -> bool:
        return bool(self.prompts)

    def read(self, column: int, reader: TokenReader[Any], states: NDArray[np.floating]) -> NDArray[np.float64]:
        """Score the tokens that are compared, as if there were no others.

        Args:
            column: Of the reader's probe.
            reader: It begins anew with each prompt.
            states: Of its layer, prompt after prompt, shape ``(tokens, hidden)``.

        Returns:
            Logits, shape ``(tokens,)``; NaN for the others.
        """
        scores = np.full(len(self.reference), np.nan)
        for begin, end in self._spans():
            compared = begin + np.flatnonzero(np.isfinite(self.reference[begin:end, column]))
            if len(compared):
                scores[compared] = reader.scores(np.asarray(states[compared], np.float32), reader.begin())
        return scores

    def cut(self, tokens: int) -> Self:
        """Keep no more than so many tokens of each prompt; the scores of those do not depend on the rest."""
        kept = [self.reference[begin:end][:tokens] for begin, end in self._spans()]
        return type(self)(
            tuple(prompt[:tokens] for prompt in self.prompts),
            np.concatenate([self.reference[:0], *kept]),
        )

    def drift(self, measured: NDArray[np.floating]) -> NDArray[np.float64]:
        """Measure how far scores are from those recorded.

        Args:
            measured: Shape ``(tokens, probes)``, in the order of :attr:`reference`.

        Returns:
            The drift of each probe, shape ``(probes,)``; infinite where a score that counts is not finite, and where
            there is nothing to compare.
        """
        compared = np.isfinite(self.reference)
        count = np.maximum(compared.sum(axis=0), 1)

        def deviation(values: NDArray[np.floating], around: NDArray[np.floating]) -> NDArray[np.float64]:
            differences = np.where(compared, np.asarray(values, np.float64) - around, 0.0)
            return np.sqrt((differences**2).sum(axis=0) / count)

        spread = deviation(self.reference, np.where(compared, self.reference, 0.0).sum(axis=0) / count)
        drift = np.divide(
            deviation(measured, self.reference), spread, out=np.full(len(spread), np.inf), where=spread > 0
        )
        return np.where(np.isfinite(drift), drift, np.inf)

    def _spans(self) -> list[tuple[int, int]]:
        """The span of each prompt's tokens."""
        return list(pairwise(np.cumsum([0, *map(len, self.prompts)]).tolist()))
