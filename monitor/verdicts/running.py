"""The running aggregates of all probes, by row of the verdict table, and as events show them."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from monitor.events import ProbeFired, Reading, Request
from probes.bundle import Probe
from probes.scoring.aggregate import Aggregates
from probes.scoring.roles import Role


class RunningVerdicts:
    """The running verdicts of some probes, one row a request.

    Args:
        probes: In the order of the columns of scores.
    """

    def __init__(self, probes: Sequence[Probe]) -> None:
        self.probes = tuple(probes)
        self.aggregates = Aggregates(
            [probe.aggregate for probe in probes], np.array([probe.threshold for probe in probes])
        )
        # Tokens that a probe was to read and could not, by row and probe.
        self._unscored = np.zeros((0, len(self.probes)), np.int64)
        known = np.array([[probe.reads(role) for probe in probes] for role in Role], bool).reshape(len(Role), -1)
        # Indexed by a row's byte of role: one that this version does not know is read as TEMPLATE, without a test.
        self._reads = np.repeat(known[[Role.TEMPLATE]], 256, axis=0)
        self._reads[: len(Role)] = known

    def reset(self, row: int) -> None:
        """Give ``row`` to a new request."""
        self.aggregates.reset(row)
        if row >= len(self._unscored):
            grown = np.zeros((self.aggregates.capacity, len(self.probes)), np.int64)
            grown[: len(self._unscored)] = self._unscored
            self._unscored = grown
        self._unscored[row] = 0

    def count_unscored(self, rows: NDArray[np.int64], unscored: NDArray[np.bool_]) -> None:
        """Count tokens that probes were to read and could not.

        Args:
            rows: The row of each token's request, shape ``(tokens,)``.
            unscored: Shape ``(tokens, probes)``.
        """
        np.add.at(self._unscored, rows, unscored)

    def reads(self, roles: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The mask of tokens that each probe reads, by role, shape ``(tokens, probes)``."""
        return self._reads[roles]

    def fold(
        self,
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        requests: NDArray[np.int64],
        scores: NDArray[np.floating],
        positions: NDArray[np.int64],
        read: NDArray[np.bool_],
    ) -> Iterator[tuple[int, int]]:
        """Fold tokens, grouped by request, into the aggregates.

        Requests with one token each (decode) are folded together, the others (prefill) one by one.

        Args:
            starts: Index of each request's first token, shape ``(requests,)``.
            lengths: Tokens of each request, at least 1, shape ``(requests,)``.
            requests: The row of each, all different, shape ``(requests,)``.
            scores: Shape ``(tokens, probes)``.
            positions: Absolute, shape ``(tokens,)``.
            read: Which probe reads which token, shape ``(tokens, probes)``.

        Yields:
            Token and probe of each first firing.
        """
        single = lengths == 1
        at = starts[single]
        for which, probe in self.aggregates.update_each(requests[single], scores[at], positions[at], read[at]):
            yield int(at[which]), probe
        for request in np.flatnonzero(~single):
            start, row = int(starts[request]), int(requests[request])
            run = slice(start, start + int(lengths[request]))
            for probe in self.aggregates.update(row, scores[run], positions[run], read[run]):
                # A replay may carry the same position again: it comes after the row that fired.
                here = positions[run] == self.aggregates.fired_at[row, probe]
                yield start + int(np.argmax(here)), probe

    def note_fired(self, row: int, fired: ProbeFired) -> bool:
        """Take over a firing that was seen elsewhere; whether it is the probe's first."""
        probe = next((index for index, known in enumerate(self.probes) if known.name == fired.probe), None)
        if probe is None or self.aggregates.fired_at[row, probe] >= 0:
            return False
        self.aggregates.fired_at[row, probe] = fired.position
        self.aggregates.fired_with[row, probe] = fired.aggregate
        self.aggregates.peak[row, probe] = max(self.aggregates.peak[row, probe], fired.aggregate)
        return True

    def fired(self, row: int, probe: int, role: int, request: Request) -> ProbeFired:
        """The event of a first firing, at a token of this role."""
        return ProbeFired(
            request=request,
            probe=self.probes[probe].name,
            aggregate=float(self.aggregates.fired_with[row, probe]),
            threshold=self.probes[probe].threshold,
            position=int(self.aggregates.fired_at[row, probe]),
            role=Role(role).name.lower() if role < len(Role) else "template",
        )

    def readings(self, row: int, unscored: Sequence[int] | None = None) -> tuple[Reading, ...]:
        """The reading of each probe on a request.

        Args:
            row: The request's.
            unscored: Tokens of each probe's roles that it could not score; ``None``: those that were counted here.
        """
        aggregates = self.aggregates
        missing: Sequence[int] = self._unscored[row].tolist() if unscored is None else unscored
        return tuple(
            Reading(
                probe=probe.name,
                tokens=int(aggregates.count[row, column]),
                peak=peak if (peak := float(aggregates.peak[row, column])) > -np.inf else None,
                threshold=probe.threshold,
                fired_at=position if (position := int(aggregates.fired_at[row, column])) >= 0 else None,
                unscored=missing[column],
            )
            for column, probe in enumerate(self.probes)
        )
