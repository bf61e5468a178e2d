"""Requests that an operator may order to be steered, found by the id that the user of the API sees."""

from collections import OrderedDict
from collections.abc import Mapping

from monitor.events import Request
from monitor.ingest import Link
from monitor.interventions.leases import MAX_FINISHED, LeaseError
from monitor.telemetry.stats import Stats
from monitor.verdicts import VerdictTable


class Targets:
    """Finds the answers of requests in flight.

    Args:
        verdicts: Knows the requests in flight.
        links: The engines, by id.
        stats: Where ids that are forgotten for want of room are counted.
    """

    def __init__(self, verdicts: VerdictTable, links: Mapping[str, Link], stats: Stats) -> None:
        self._verdicts, self._links, self._stats = verdicts, links, stats
        self._finished: OrderedDict[str, None] = OrderedDict()
        """Ids of requests that have ended, to tell them from those that never were."""

    def requests(self, request_id: str) -> list[Request]:
        """The answers of a request in flight.

        Raises:
            LeaseError: There is none, or an engine of theirs takes no orders.
        """
        found = [
            holder.request(link.model)
            for holder in self._verdicts.named(request_id)
            if (link := self._links.get(holder.engine)) is not None
        ]
        if not found:
            if request_id in self._finished:
                raise LeaseError("state", f"Request '{request_id[:100]}' has ended.", "There is nothing left to steer.")
            raise LeaseError(
                "unknown", f"No request '{request_id[:100]}' is in flight.", "Its id is that of its answer."
            )
        held = [link for request in found if (link := self._links[request.engine]).state != "connected"]
        if held:
            why = held[0].held or f"it is {held[0].state}"
            raise LeaseError("state", f"Engine {held[0].engine} takes no orders: {why}.", "See GetStatus.")
        return found

    def finish(self, request: Request) -> None:
        """Note that a request has ended."""
        self._finished[request.request_id] = None
        if len(self._finished) > MAX_FINISHED:
            self._finished.popitem(last=False)
            self._stats.forgotten["ended_id",] += 1
