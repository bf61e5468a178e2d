"""The forms of linear probes."""

from typing import Literal

Kind = Literal["logistic", "mean_difference", "two_direction", "at_ends"]
"""Ways to fit a linear probe."""
