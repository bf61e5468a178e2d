"""Frames that are made in a line."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from monitor.wire.frames import ROW, VERSION, Frame, FrameHeader, Started
from tests.harness.bundles import PROBES


def make_frame(
    sequence: int = 0,
    rows: Sequence[tuple[int, int, int, int]] = (),
    scores: float | Sequence[Sequence[float]] = 0.0,
    *,
    engine: str = "engine",
    started: Sequence[Started] = (),
    finished: Sequence[int] = (),
    complete: bool = False,
    probes: int = len(PROBES),
    acked: int = -1,
    dropped: int = 0,
    unscored: int = 0,
    monotonic_ns: int = 0,
    **more: Any,
) -> Frame:
    """A frame of rows ``(slot, position, role, steered)``; one number for ``scores`` stands for all."""
    header = FrameHeader(
        version=VERSION,
        engine=engine,
        rank=0,
        sequence=sequence,
        acked=acked,
        dropped=dropped,
        unscored=unscored,
        monotonic_ns=monotonic_ns,
        rows=len(rows),
        probes=probes,
        complete=complete,
        finished=list(finished),
        started=list(started),
        **more,
    )
    values = np.full((len(rows), probes), scores) if isinstance(scores, int | float) else np.array(scores)
    return Frame(header, np.array(list(rows), ROW), values.astype("<f4").reshape(len(rows), probes), np.empty(0, "<i4"))
