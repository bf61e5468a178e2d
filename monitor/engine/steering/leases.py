"""Orders that end by themselves: the engine keeps their leases, so that none outlives a monitor that was killed.

A lease begins when its order arrives, on the core's own clock, and ends with the first step from then on: what undoes
the order rides with that step as any other order, so that all ranks agree. An engine that is idle steers nobody
meanwhile. Such an end is reported as a :class:`monitor.wire.frames.Refusal` of cause ``expired``.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from monitor.engine.steering.refusals import refusal
from monitor.errors import OrderError
from monitor.wire.frames import Refusal
from monitor.wire.orders import Arm, Disarm, Order, Release, Steer

_ARMED: Final = ""
"""In the place of a request's id: the lease is a gate's."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """An order, and when it came, in seconds of the monotonic clock."""

    order: Order
    at: float


class Leases:
    """The leases that run in one engine core."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], tuple[float, Arm | Steer]] = {}
        """Key of the request and id of the order, to when it ends, and the order."""

    def take(self, arrived: Iterable[Arrived], now: float, keys: Collection[str]) -> tuple[list[Order], list[Refusal]]:
        """The orders of a step: those that have arrived, and what undoes those whose lease has ended.

        Args:
            arrived: In the order of arrival.
            now: Seconds of the monotonic clock.
            keys: Of the requests in flight; a lease ends with its request.

        Returns:
            The orders, and what of them is not carried out, or no more.
        """
        orders, refusals = list[Order](), list[Refusal]()
        for one in arrived:
            try:
                self._note(one, now)
            except OrderError as error:
                refusals.append(refusal(one.order, error))
            else:
                orders.append(one.order)
        for place, (ends, order) in list(self._running.items()):
            if place[0] != _ARMED and place[0] not in keys:
                del self._running[place]
            elif ends <= now:
                del self._running[place]
                orders.append(
                    Disarm(order.id) if isinstance(order, Arm) else Release(order.engine_request_id, order.id)
                )
                refusals.append(refusal(order, OrderError("expired", f"Its lease of {order.lease:g} s has ended.")))
        return orders, refusals

    def forget(self, order: Arm) -> None:
        """Let go of a gate that cannot be armed."""
        self._running.pop((_ARMED, order.id), None)

    def _note(self, arrived: Arrived, now: float) -> None:
        order = arrived.order
        match order:
            case Arm() | Steer():
                place = (_ARMED if isinstance(order, Arm) else order.engine_request_id, order.id)
                if order.lease is None:
                    self._running.pop(place, None)
                    return
                ends = arrived.at + order.lease
                if not order.id:
                    raise OrderError("lease", "An order with a lease has no id to be undone by.", "Give it one.")
                if ends <= now:
                    raise OrderError(
                        "lease",
                        f"Its lease of {order.lease:g} s ended before it could take effect.",
                        "Order it again; an engine that is idle takes no orders.",
                    )
                self._running[place] = ends, order
            case Disarm(id):
                self._running.pop((_ARMED, id), None)
            case Release(engine_request_id, id):
                for place in (
                    [(engine_request_id, id)]
                    if id
                    else [place for place in self._running if place[0] == engine_request_id]
                ):
                    self._running.pop(place, None)
            case _:
                pass
