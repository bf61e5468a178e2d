"""Steering on the wire: as an act, as the order to steer a request, and as the order to arm a gate."""

import itertools
import math
from collections.abc import Callable, Collection

from monitor.policy import Gate, Steering, StopAction
from monitor.wire.orders import Act, Arm, Order, Steer

SendOrder = Callable[[str, Order], bool]
"""Sends an order to the engine of this id; false where it cannot be reached. Never blocks."""


def act_of(steering: Steering) -> Act:
    """Act on a projection as the steering says."""
    return Act(
        vector=steering.vector,
        add=steering.dose or 0.0,
        scale=0.0 if steering.operation == "ablate" else 1.0,
        low=steering.low,
        high=steering.high,
    )


def steer_order(
    engine_request_id: str, steering: Steering, id: str, *, max_dose: float | None, lease_seconds: float | None = None
) -> Steer:
    """Order to steer one request from its next step on.

    Args:
        engine_request_id: The engine's own, unique id of the request.
        steering: What is done; its gate, if it has one, is not asked.
        id: Of the order.
        max_dose: Cap on all that may be done to the request at once along the vector; ``None``: the bundle's.
        lease_seconds: The engine undoes it after so long; ``None``: when the request ends.
    """
    return Steer(engine_request_id, [act_of(steering)], steering.tokens, id, lease=lease_seconds, max_dose=max_dose)


def arm_order(
    id: str, probe: str, does: Steering | StopAction, *, max_dose: float | None, lease_seconds: float | None = None
) -> Arm:
    """Order to arm a gate for all requests.

    Args:
        id: Of the gate.
        probe: Name of the probe that it reads.
        does: What is done while it is open, or the end that it makes as it opens.
        max_dose: Cap on all that may be done to a request at once along the vector; ``None``: the bundle's.
        lease_seconds: The engine disarms it after so long; ``None``: it stays armed.
    """
    if isinstance(does, StopAction):
        return Arm(id, probe, [], lease=lease_seconds, stop=does.message)
    gate = does.gate or Gate()
    return Arm(
        id=id,
        probe=probe,
        acts=[act_of(does)],
        threshold=gate.threshold,
        release=gate.release,
        release_streak=gate.release_streak,
        hold=gate.hold,
        budget=does.tokens,
        max_dose=max_dose,
        lease=lease_seconds,
    )


def order_id(rule: str, steering: Steering, taken: Collection[str]) -> str:
    """Id of a rule's order to steer: all that the order says.

    An engine takes an id once a request, and another monitor that decides the same comes to the same id.

    Args:
        rule: Its name.
        steering: What is ordered.
        taken: Ids of the orders that the request has already.
    """
    match steering.operation:
        case "add":
            done = repr(steering.dose)
        case "clamp":
            low, high = -math.inf if steering.low is None else steering.low, steering.high
            done = f"clamp:{low!r}..{math.inf if high is None else high!r}"
        case "ablate":
            done = "ablate"
    tokens = "" if steering.tokens is None else f":{steering.tokens}"
    first = f"{rule}:{steering.vector}:{done}{tokens}"
    ids = (first if count == 1 else f"{first}#{count}" for count in itertools.count(1))
    return next(id for id in ids if id not in taken)
