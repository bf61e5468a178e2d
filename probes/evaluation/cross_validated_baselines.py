"""Text baselines where labelled texts are all there is: learnt on some of them, judged on the others.

Groups are kept whole (scikit-learn's StratifiedGroupKFold), so that no text is judged by what was learnt from its twin.
An AUROC compares only texts that were left out together: scores of two fits have no common scale, and to pool them
would flatter the probe that is held against them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from probes.evaluation.baselines import text_scores
from probes.evaluation.metrics import auroc, certifiable, recall_at
from probes.evaluation.results import Baseline

FEWEST: Final = 50
"""Labelled texts below which nothing is learnt from them: a fold would leave out ten at most."""
FOLDS: Final = 5
"""At most; no more than there are groups of either label."""


@dataclass(frozen=True, slots=True)
class CrossValidated:
    """Scores of texts by fits that left them out, ``(texts,)`` each."""

    words: NDArray[np.float64]
    length: NDArray[np.float64]
    fold: NDArray[np.int64]
    """The fold that left it out."""

    def baseline(self, positive: NDArray[np.bool_], negative: NDArray[np.bool_], rate: float) -> Baseline | None:
        """The figures of both baselines on a part of the texts.

        Args:
            positive: Which texts are, shape ``(texts,)``.
            negative: The same.
            rate: False-positive rate of the recall, which pools the folds.

        Returns:
            ``None`` where no fold left out one of each.
        """
        words, length = (self._auroc(scores, positive, negative) for scores in (self.words, self.length))
        if words is None or length is None:
            return None
        enough = certifiable(int(negative.sum()), rate)
        return Baseline(words, recall_at(self.words[positive], self.words[negative], rate) if enough else None, length)

    def _auroc(
        self, scores: NDArray[np.float64], positive: NDArray[np.bool_], negative: NDArray[np.bool_]
    ) -> float | None:
        wins, pairs = 0.0, 0
        for fold in np.unique(self.fold).tolist():
            high, low = scores[positive & (self.fold == fold)], scores[negative & (self.fold == fold)]
            if len(high) and len(low):
                wins += auroc(high, low) * len(high) * len(low)
                pairs += len(high) * len(low)
        return wins / pairs if pairs else None


def cross_validated(texts: Sequence[str], labels: NDArray[np.bool_], groups: NDArray[np.str_]) -> CrossValidated | str:
    """Learn both baselines on all texts but a fold's, fold by fold.

    Args:
        texts: What the probe reads of each request.
        labels: Shape ``(texts,)``; both are there.
        groups: Shape ``(texts,)``.

    Returns:
        The scores, or, in a sentence, why there are none.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if len(texts) < FEWEST:
        return f"No baseline was made of words and length: {len(texts)} labelled requests, and it takes {FEWEST}."
    folds = min(FOLDS, *(len(np.unique(groups[labels == label])) for label in (True, False)))
    if folds < 2:
        return "No baseline was made of words and length: all requests of one label are of one group."
    words, length, fold_of = np.zeros(len(texts)), np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    splitter: Any = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    listed = list(texts)
    for number, (fitted, left) in enumerate(splitter.split(labels, labels, groups)):
        if labels[fitted].all() or not labels[fitted].any():
            return "No baseline was made of words and length: groups leave one label alone when a fold is left out."
        try:
            scores = text_scores(
                [listed[index] for index in fitted.tolist()],
                labels[fitted],
                np.ones(len(fitted)),
                [listed[index] for index in left.tolist()],
            )
        except ValueError:
            # scikit-learn's, where no word is left: texts that are empty, or of which no two share one.
            return "No baseline was made of words and length: what the probe reads has no words to learn."
        words[left], length[left], fold_of[left] = scores.words, scores.length, number
    return CrossValidated(words, length, fold_of)
