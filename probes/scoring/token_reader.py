"""The seam for probes that are more than a direction: what reads the states of one request after the other.

:class:`probes.scoring.multimax.MultiMax` is one; whatever else has these two methods can take its place in a probe
worker (:mod:`monitor.workers`) and in offline scoring.
"""

from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

CarryT = TypeVar("CarryT")


class TokenReader(Protocol[CarryT]):
    """Scores the tokens of requests, piece by piece as they are computed.

    Pieces have to equal the whole: the scores of a request do not depend on how its tokens are divided among calls.
    What a reader remembers between them is its carry, one a request, which it alone looks into. Between two pieces
    there may be tokens that it never sees, because they are of another role or their states were lost.
    """

    def begin(self) -> CarryT:
        """The memory before the first token of a request."""
        ...

    def scores(self, states: NDArray[np.float32], carry: CarryT, /) -> NDArray[np.float64]:
        """The score of each of the next tokens that the probe reads.

        Args:
            states: The residual stream after the probe's layer, shape ``(tokens, hidden)``; not empty.
            carry: From :meth:`begin`, or as the tokens before left it; changed in place.

        Returns:
            Logits, shape ``(tokens,)``; NaN where there is none.
        """
        ...
