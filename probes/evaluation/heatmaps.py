"""Example conversations of a report, token by token: where a probe is most wrong, and where it is right.

They put the text of requests into the report, and are made only where somebody asks for them.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes.data.requests import Request
from probes.evaluation.offline_scores import Encoded, Scorer
from probes.evaluation.results import Heatmap
from probes.scoring.roles import Role

SHOWN: Final = 400
"""Tokens of one example; of a longer conversation, those around the one that matters."""


def chosen(labels: NDArray[np.bool_], peaks: NDArray[np.float64], threshold: float) -> Iterator[tuple[str, int]]:
    """The requests that say most, each with what it is: the highest false alarm, the lowest miss, a typical hit.

    Args:
        labels: Shape ``(requests,)``.
        peaks: Shape ``(requests,)``; one without a verdict (−inf) shows nothing, and is not taken.
        threshold: At or above which a peak fires.
    """
    order = np.argsort(peaks, kind="stable")
    order = order[np.isfinite(peaks[order])]
    fired = peaks[order] >= threshold
    alarms, misses, hits = order[~labels[order] & fired], order[labels[order] & ~fired], order[labels[order] & fired]
    if len(alarms):
        yield "Highest false alarm", int(alarms[-1])
    if len(misses):
        yield "Lowest miss", int(misses[0])
    if len(hits):
        yield "A typical hit", int(hits[len(hits) // 2])


def heatmap(scorer: Scorer, column: int, title: str, request: Request, encoded: Encoded, fired_at: int) -> Heatmap:
    """One conversation as a probe reads it.

    Args:
        scorer: Reads it once more: token scores of all requests would not fit into memory.
        column: Of the probe.
        title: What the example shows.
        request: Its id goes into the title.
        encoded: What is read of it.
        fired_at: Position of the token at which the probe fired, −1 where it did not.

    Raises:
        ModelError: The model cannot be read.
    """
    (found,) = scorer.read([encoded])
    scores, read = found.scores[:, column], found.read[:, column]
    center = fired_at if fired_at >= 0 else int(np.argmax(np.where(read, scores, -np.inf)))
    begin = max(0, min(center - SHOWN // 2, len(scores) - SHOWN))
    window = range(begin, min(begin + SHOWN, len(scores)))
    cut = f", tokens {begin + 1:,} to {window.stop:,} of {len(scores):,}" if len(window) < len(scores) else ""
    return Heatmap(
        f"{title}: request {request.id!r}{cut}",
        [scorer.decode(int(encoded.token_ids[index])) for index in window],
        [Role(int(found.roles[index])).name.lower() for index in window],
        [float(scores[index]) if read[index] else None for index in window],
        fired_at - begin if fired_at >= 0 else None,
    )


def heatmaps(
    scorer: Scorer,
    column: int,
    requests: Sequence[Request],
    encoded: Sequence[Encoded],
    labels: NDArray[np.bool_],
    peaks: NDArray[np.float64],
    fired_at: NDArray[np.int64],
) -> list[Heatmap]:
    """The examples of one probe, up to three.

    Args:
        scorer: By what, and with which model.
        column: Of the probe.
        requests: Those that are labelled for it.
        encoded: What is read of each.
        labels: Shape ``(requests,)``.
        peaks: Shape ``(requests,)``.
        fired_at: Position at which it fired or −1, shape ``(requests,)``.

    Raises:
        ModelError: The model cannot be read.
    """
    threshold = scorer.bundle.all_probes[column].threshold
    return [
        heatmap(scorer, column, title, requests[index], encoded[index], int(fired_at[index]))
        for title, index in chosen(labels, peaks, threshold)
    ]
