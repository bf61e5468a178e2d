"""The result of a benchmark."""

import msgspec
import numpy as np


class Result(msgspec.Struct, frozen=True):
    """Tokens a second of two arms that took turns."""

    model: str
    description: str
    """Batch, tokens, and how the model was run."""
    machine: str
    versions: dict[str, str]
    rates: dict[str, list[float]]
    """Arm to generated tokens a second, one for each pair, in order."""
    ratio: float
    """Median over pairs of tapped / stock."""
    interval: tuple[float, float]
    """95% interval of that median, by bootstrap over pairs."""

    @property
    def pairs(self) -> int:
        """Pairs of runs."""
        return len(next(iter(self.rates.values())))

    def to_json(self) -> bytes:
        """Indented, for a file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def median_ratio(stock: list[float], tapped: list[float]) -> tuple[float, tuple[float, float]]:
    """The median of the pairs' ratios, with its 95% bootstrap interval.

    Args:
        stock: Of each pair.
        tapped: Of each pair, in the same order.
    """
    ratios = np.asarray(tapped) / np.asarray(stock)
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), (float(low), float(high))
