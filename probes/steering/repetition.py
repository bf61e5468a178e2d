"""Repetition in a text, which steering too hard makes."""

from collections.abc import Sequence
from typing import Final

NGRAM: Final = 3


def repetition(token_ids: Sequence[int]) -> float:
    """Share of sequences of three tokens that occurred before, 0 to 1; 0 of a text that has none.

    It is 1 − distinct-3 (Li et al., arXiv 1510.03055, for distinct-n).
    """
    grams = list(zip(*(token_ids[start:] for start in range(NGRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
