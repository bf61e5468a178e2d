"""Text baselines, without any model: TF-IDF and length, fitted on what the probe was fitted on.

A probe that does not beat them reads words, and a list of words is cheaper, faster and easier to explain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.data.concepts import Concept
from probes.models.chat import Message


def text_of(messages: Sequence[Message], concept: Concept) -> str:
    """The text of a conversation that a probe of the concept reads."""
    roles = {role.name.lower() for role in concept.roles} | {"text"}
    return "\n".join(message.content for message in messages if message.role in roles)


@dataclass(frozen=True, slots=True)
class TextScores:
    """Scores of the texts that a fold leaves out, ``(texts,)`` each."""

    words: NDArray[np.float64]
    """Of a logistic regression on TF-IDF of words and pairs of words."""
    length: NDArray[np.float64]
    """Characters, with the sign that the fitted texts show."""


def text_scores(
    texts: Sequence[str], labels: NDArray[np.bool_], weights: NDArray[np.float64], left_out: Sequence[str]
) -> TextScores:
    """Fit both baselines, and score what was left out.

    Args:
        texts: Fitted on.
        labels: Of these, shape ``(texts,)``.
        weights: How much each counts, shape ``(texts,)``.
        left_out: Scored.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model: Any = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(texts) > 200 else 1),
        LogisticRegression(C=10.0, max_iter=1000, class_weight="balanced"),
    )
    model.fit(texts, labels, logisticregression__sample_weight=weights * len(weights) / weights.sum())
    lengths = np.array([len(text) for text in texts], np.float64)
    longer = np.average(lengths[labels], weights=weights[labels]) >= np.average(
        lengths[~labels], weights=weights[~labels]
    )
    sign = 1.0 if longer else -1.0
    return TextScores(
        np.asarray(model.decision_function(left_out), np.float64), sign * np.array([len(text) for text in left_out])
    )
