"""The gate's rules written out, for one request at a time."""

import pytest

torch = pytest.importorskip("torch")
import dataclasses

import numpy as np
import pytest

from monitor.engine.ops.gate_layout import FOREVER
from probes.scoring.aggregate import Aggregate, running
from probes.scoring.roles import Role

CLOSE = 1e-9
"""Averages nearer to a threshold than this may fall on either side of it, by how their sum was rounded."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of one gate."""

    aggregate: Aggregate
    threshold: float = 0.0
    release: float = -np.inf
    calm: int = 0
    hold: int = FOREVER
    budget: int = FOREVER
    roles: tuple[Role, ...] = (Role.USER, Role.ASSISTANT)
    column: int = 0


def model(settings: Settings, scores, roles, respond: int):
    """What a gate does with a request, token by token, from the rules: flags FIRED and STEER, and averages."""
    read = np.array([role in settings.roles for role in roles]) & np.isfinite(scores)
    chosen = np.flatnonzero(read)
    aggregate = np.full(len(scores), -np.inf)
    aggregate[chosen] = running(scores[chosen], settings.aggregate)
    average = np.full(len(scores), np.nan)
    average[chosen] = running(scores[chosen], Aggregate(half_life=settings.aggregate.half_life, min_tokens=1))
    fired, steered = np.zeros((2, len(scores)), bool)
    is_open, since, spent = False, 0, 0
    for position in range(len(scores)):
        if read[position] and aggregate[position] >= settings.threshold and spent < settings.budget:
            fired[position], is_open, since = not is_open, True, 0
        if is_open and position >= respond:
            steered[position] = True
            spent += 1
            past = average[: position + 1][read[: position + 1]]
            calm = len(past) >= settings.calm and bool((past[len(past) - settings.calm :] < settings.release).all())
            if (since >= settings.hold and calm) or spent == settings.budget:
                is_open = False
            since += 1
    return fired, steered, average


def clear(settings: Settings, scores, roles) -> bool:
    """Whether no average is so near a threshold that rounding decides."""
    chosen = [score for score, role in zip(scores, roles, strict=True) if role in settings.roles and np.isfinite(score)]
    average = running(np.array(chosen), Aggregate(half_life=settings.aggregate.half_life, min_tokens=1))
    return all((np.abs(average - level) > CLOSE).all() for level in (settings.threshold, settings.release))
