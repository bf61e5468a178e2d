"""The dose sweep: which doses of a vector change answers, and which leave ordinary text unharmed.

From 0 outwards, each way by itself, a dose is within the **working range** while the perplexity of ordinary answers is
shown to stay within :data:`WORKING` of the unsteered one (the upper end of its interval) and answers repeat themselves
by no more than :data:`REPEATED` more. The **cap** is the largest dose at which the perplexity itself is within
:data:`CAP`, and the repetition within :data:`REPEATED_AT_CAP`: no dose beyond it may be ordered. A dose counts only if
all smaller ones of its sign do, so that a lucky one does not.
"""

from collections.abc import Callable, Sequence
from typing import Final

from probes.errors import SteeringError
from probes.steering.results import Outcome

DOSES: Final = (0.025, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Swept both ways, unless told otherwise."""
LARGEST: Final = 1.0
"""The largest dose that is swept, and that a policy may name: the vector is then as long as what it is added to."""
WORKING: Final = 1.05
"""Perplexity of ordinary answers, as the ratio to unsteered."""
REPEATED: Final = 0.05
"""Share of sequences of three tokens, more than unsteered."""
CAP: Final = 1.25
REPEATED_AT_CAP: Final = 0.2


def parse_doses(text: str) -> list[float]:
    """Doses as a user lists them, ``0.05,0.1``: each is swept both ways.

    Returns:
        Ascending, negative ones first.

    Raises:
        SteeringError: One is no number, or not above 0 and at most :data:`LARGEST`.
    """
    wanted = f"Give doses above 0, {LARGEST:g} at most, such as 0.05,0.1,0.2"
    try:
        sizes = {float(part) for part in text.split(",")}
    except ValueError as error:
        raise SteeringError(f"'{text}' is no list of doses.", wanted) from error
    if odd := sorted(size for size in sizes if not 0 < size <= LARGEST):
        raise SteeringError(f"A dose of {odd[0]:g} cannot be swept.", wanted)
    return both_ways(sorted(sizes))


def both_ways(sizes: Sequence[float]) -> list[float]:
    """Each size with either sign, ascending."""
    return sorted([*(-size for size in sizes), *sizes])


def is_working(outcome: Outcome) -> bool:
    """True where a dose leaves ordinary text unharmed."""
    return (
        outcome.perplexity is not None
        and outcome.perplexity.high <= WORKING
        and outcome.repetition.change.point <= REPEATED
    )


def is_allowed(outcome: Outcome) -> bool:
    """True where a dose is below the cap."""
    return (
        outcome.perplexity is not None
        and outcome.perplexity.point <= CAP
        and outcome.repetition.change.point <= REPEATED_AT_CAP
    )


def working_range(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """The lowest and the highest dose that works; 0 where none does that way.

    Args:
        outcomes: Of a sweep, in any order; the unsteered one has dose 0 and is passed over.
    """
    return -_reach(outcomes, -1, is_working), _reach(outcomes, 1, is_working)


def cap(outcomes: Sequence[Outcome]) -> float:
    """The largest dose, either way, that may be ordered.

    One number for both ways, the larger: the working range tells them apart.

    Raises:
        SteeringError: No dose that was swept is harmless enough.
    """
    found = max(_reach(outcomes, sign, is_allowed) for sign in (-1, 1))
    if found == 0:
        smallest = min(abs(outcome.dose) for outcome in outcomes if outcome.dose)
        raise SteeringError(
            f"Even a dose of {smallest:g} does more damage than a cap may allow: no cap can be set.",
            "Sweep smaller doses with --doses.",
        )
    return found


def _reach(outcomes: Sequence[Outcome], sign: int, passes: Callable[[Outcome], bool]) -> float:
    reached = 0.0
    for outcome in sorted((one for one in outcomes if one.dose * sign > 0), key=lambda one: abs(one.dose)):
        if not passes(outcome):
            break
        reached = abs(outcome.dose)
    return reached
