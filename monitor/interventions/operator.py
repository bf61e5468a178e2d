"""An operator's orders: checked, sent with a lease, and undone before its end where that is asked for.

A lease is what bounds an order, not a connection: the engine itself undoes it after so many seconds
(:mod:`monitor.engine.steering.leases`), whether or not whoever gave it, or this monitor, is still there, and its
requests' ends end it too. What is to be undone earlier on an engine that cannot be reached is asked for again until it
can be or is gone. A monitor that is started again knows no leases: it has engines disarm the gates of operators that it
hears of, and is told of the orders whose leases end.
"""

import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Literal

from monitor.errors import InvalidSteering
from monitor.events import Ordered, OrderKind, OrderResult, Request
from monitor.ingest import Link
from monitor.interventions.gate_facts import OPERATOR_PREFIX, GateFacts, facts_of
from monitor.interventions.leases import MAX_FINISHED, MAX_LEASE_SECONDS, MAX_ORDERS, MAX_UNDOING, Lease, LeaseError
from monitor.interventions.orders import SendOrder, arm_order, steer_order
from monitor.policy import Steering, require_valid
from monitor.sinks.recorder import Recorder
from monitor.telemetry.stats import Stats
from monitor.verdicts import VerdictTable
from monitor.wire.orders import Disarm, Release
from probes.bundle import Bundle


class Operator:
    """Takes orders of operators. To be used from the monitor's event loop.

    Args:
        bundle: Has the probes and vectors, and their caps.
        max_dose: The policy's own cap; ``None``: it has none.
        verdicts: Knows the requests in flight.
        links: The engines, by id.
        recorder: Takes an event for every order.
        stats: Where orders are counted.
        send_order: Sends orders.
        clock: Seconds of a monotonic clock.

    Attributes:
        max_dose: May be replaced, as the policy is; orders that were given before stay.
    """

    def __init__(
        self,
        bundle: Bundle,
        max_dose: float | None,
        verdicts: VerdictTable,
        links: Mapping[str, Link],
        recorder: Recorder,
        stats: Stats,
        send_order: SendOrder,
        clock: Callable[[], float],
    ) -> None:
        self._bundle, self.max_dose, self._verdicts, self._links = bundle, max_dose, verdicts, links
        self._recorder, self._stats, self._send, self._clock = recorder, stats, send_order, clock
        self._leases: OrderedDict[str, Lease] = OrderedDict()
        self._finished: OrderedDict[str, None] = OrderedDict()
        self._expired: OrderedDict[str, None] = OrderedDict()
        """Orders whose end is told already: what an engine says of them is no news."""
        self._undoing: list[tuple[str, Release | Disarm]] = []
        """What could not be undone yet, with its engine."""

    @property
    def leases(self) -> list[tuple[Lease, float]]:
        """Orders and the seconds that their leases still run, oldest first."""
        now = self._clock()
        return [(lease, max(0.0, lease.ends - now)) for lease in self._leases.values()]

    def keeps(self, gate: str) -> bool:
        """Whether a gate is of a lease that runs, or that an idle engine ends with its next step."""
        return gate in self._leases or gate in self._expired

    def facts(self, gate: str) -> GateFacts | None:
        """What is known of such a gate."""
        lease = self._leases.get(gate)
        return None if lease is None else lease.facts

    def steer(self, who: str, request_id: str, steering: Steering, seconds: float) -> Lease:
        """Steer the answers of a request in flight, from their next step on.

        Raises:
            LeaseError: It is refused, and that is recorded.
        """
        with _Told(
            self, "steer", who, f"steer {steering.vector[:100]} in request '{request_id[:100]}'", seconds
        ) as told:
            self._check(seconds)
            self._require_valid(steering, "")
            told.detail = f"{steering}"
            requests = self._requests(request_id)
            told.request = requests[0]
            lease = self._lease("steer", who, told.detail, seconds)
            for request in requests:
                order = steer_order(
                    request.engine_request_id, steering, lease.id, max_dose=self.max_dose, lease_seconds=seconds
                )
                if self._send(request.engine, order):
                    lease.requests.append(request)
            if not lease.requests:
                raise LeaseError("unreachable", f"Engine {requests[0].engine} cannot be reached.", "Try again.")
            self._leases[lease.id] = lease
            for request in lease.requests:
                self._tell(lease, "sent", request.engine, request)
        return lease

    def arm(self, who: str, probe: str, steering: Steering, seconds: float) -> Lease:
        """Let all engines that are connected, and those that connect while the lease runs, steer by a gate.

        Raises:
            LeaseError: It is refused, and that is recorded.
        """
        with _Told(self, "arm", who, f"steer {steering.vector[:100]} by probe '{probe[:100]}'", seconds) as told:
            self._check(seconds)
            reader = next((known for known in self._bundle.probes if known.name == probe), None)
            if reader is None:
                known = ", ".join(known.name for known in self._bundle.probes) or "none"
                raise LeaseError("unknown", f"The engines read no probe '{probe[:100]}'.", f"They read: {known}.")
            self._require_valid(steering, probe)
            told.detail = f"{steering}, when {probe} fires"
            lease = self._lease("arm", who, told.detail, seconds)
            lease.facts = facts_of(steering, reader, "", f"{who} ordered: {steering}")
            lease.max_dose = self.max_dose
            for link in list(self._links.values()):
                self._arm(lease, link)
            if not lease.engines:
                raise LeaseError(
                    "unreachable", "No engine is connected that has gates and is not held to shadow.", "See GetStatus."
                )
            self._leases[lease.id] = lease
            for engine in lease.engines:
                self._tell(lease, "sent", engine)
        return lease

    def undo(self, who: str, kind: Literal["release", "disarm"], id: str) -> None:
        """Undo an order before its lease ends.

        Raises:
            LeaseError: No such lease runs.
        """
        begun: OrderKind = "steer" if kind == "release" else "arm"
        with _Told(self, kind, who, f"{kind} {id[:100]}", None) as told:
            lease = self._leases.get(id)
            if lease is None or lease.kind != begun:
                raise LeaseError(
                    "state" if id.startswith(OPERATOR_PREFIX) else "unknown",
                    f"No order '{id[:100]}' to {begun} has a lease that runs.",
                    "It has ended, or never was; ListOrders names those that run.",
                )
            told.detail = f"{kind} {id}: {lease.detail}"
            del self._leases[id]
            self._undo(lease)
        for engine, request in lease.targets:
            self._record(id, kind, "sent", engine, request, who, None, f"{kind} {id}: {lease.detail}", "")

    def hello(self, link: Link) -> None:
        """An engine said who it is: arm what is leased."""
        for lease in self._leases.values():
            if link.engine not in lease.engines and link.engine not in lease.refused and self._arm(lease, link):
                self._tell(lease, "sent", link.engine)

    def lost(self, engine: str) -> None:
        """An engine fell silent; when it is heard again, it is armed again."""
        for lease in self._leases.values():
            if engine in lease.engines:
                lease.engines.remove(engine)
            lease.refused.discard(engine)

    def refused(self, engine: str, id: str, key: str) -> None:
        """An engine does not carry out an order: there is nothing to undo there."""
        if (lease := self._leases.get(id)) is None:
            return
        if engine in lease.engines:
            lease.engines.remove(engine)
            lease.refused.add(engine)
        lease.requests = [
            request for request in lease.requests if (request.engine, request.engine_request_id) != (engine, key)
        ]
        if not lease.engines and not lease.requests:
            self._end(lease)

    def expired(self, engine: str, id: str, key: str) -> bool:
        """An engine has ended a lease; whether that is news, and not told already."""
        if id in self._expired:
            return False
        self.refused(engine, id, key)
        return True

    def finish(self, request: Request) -> None:
        """A request ended: its orders have nothing left to undo."""
        self._finished[request.request_id] = None
        if len(self._finished) > MAX_FINISHED:
            self._finished.popitem(last=False)
            self._stats.forgotten["ended_id",] += 1
        for lease in [lease for lease in self._leases.values() if request in lease.requests]:
            lease.requests.remove(request)
            if not lease.requests:
                del self._leases[lease.id]

    def tick(self) -> None:
        """Tell which leases have ended, which engines see to, and undo what could not be undone before."""
        now = self._clock()
        for lease in [lease for lease in self._leases.values() if lease.ends <= now]:
            self._end(lease)
            for engine, request in lease.targets:
                self._tell(lease, "expired", engine, request, "its lease ended")
        self._undoing = [
            (engine, order)
            for engine, order in self._undoing
            if engine in self._links and not self._send(engine, order)
        ]

    def _check(self, seconds: float) -> None:
        if not 0 < seconds <= MAX_LEASE_SECONDS:
            raise LeaseError(
                "invalid", f"A lease of {seconds:g} s cannot be had.", f"Ask for 1 to {MAX_LEASE_SECONDS:g} s."
            )
        if len(self._leases) >= MAX_ORDERS:
            raise LeaseError("full", f"{MAX_ORDERS} orders have leases that run.", "Release or disarm one.")

    def _require_valid(self, steering: Steering, probe: str) -> None:
        try:
            require_valid(steering, probe, self._bundle, self.max_dose)
        except InvalidSteering as error:
            why = "unknown" if error.field == ("vector",) else "invalid"
            place, said = ".".join(error.field), error.message.rstrip(".")
            raise LeaseError(why, f"the order: {place}: {said}.", error.fix) from error

    def _requests(self, request_id: str) -> list[Request]:
        """The answers of a request in flight, of engines that may be ordered."""
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

    def _lease(self, kind: OrderKind, who: str, detail: str, seconds: float) -> Lease:
        return Lease(OPERATOR_PREFIX + secrets.token_hex(4), kind, who, detail, self._clock() + seconds, seconds)

    def _arm(self, lease: Lease, link: Link) -> bool:
        if lease.facts is None or link.state != "connected" or link.gates == 0:
            return False
        if (left := lease.ends - self._clock()) <= 0:
            return False
        facts, max_dose = lease.facts, lease.max_dose
        if not self._send(
            link.engine, arm_order(lease.id, facts.probe, facts.steering, max_dose=max_dose, lease_seconds=left)
        ):
            return False
        lease.engines.append(link.engine)
        return True

    def _end(self, lease: Lease) -> None:
        """A lease has ended, and nothing more is to be heard of it."""
        del self._leases[lease.id]
        self._expired[lease.id] = None
        if len(self._expired) > MAX_FINISHED:
            self._expired.popitem(last=False)
            self._stats.forgotten["ended_order",] += 1

    def _undo(self, lease: Lease) -> None:
        orders = [(request.engine, Release(request.engine_request_id, lease.id)) for request in lease.requests]
        orders += [(engine, Disarm(lease.id)) for engine in lease.engines]
        self._undoing += [(engine, order) for engine, order in orders if not self._send(engine, order)]
        if (excess := len(self._undoing) - MAX_UNDOING) > 0:
            del self._undoing[:excess]
            self._stats.forgotten["undo",] += excess

    def refuse(
        self, kind: OrderKind, who: str, detail: str, seconds: float | None, request: Request | None, why: str
    ) -> None:
        """Record an order that is refused."""
        engine = "" if request is None else request.engine
        self._record("", kind, "refused", engine, request, who, seconds, detail, why)

    def _tell(
        self, lease: Lease, result: OrderResult, engine: str, request: Request | None = None, why: str = ""
    ) -> None:
        self._record(lease.id, lease.kind, result, engine, request, lease.who, lease.seconds, lease.detail, why)

    def _record(
        self,
        id: str,
        kind: OrderKind,
        result: OrderResult,
        engine: str,
        request: Request | None,
        who: str,
        seconds: float | None,
        detail: str,
        why: str,
    ) -> None:
        link = self._links.get(engine)
        self._stats.orders["operator", kind, result] += 1
        model = "" if link is None else link.model
        self._recorder.record(Ordered(id, kind, result, engine, model, request, who, seconds, detail, why))


class _Told:
    """Has a refusal recorded, and lets it go on to whoever asked."""

    def __init__(self, operator: Operator, kind: OrderKind, who: str, detail: str, seconds: float | None) -> None:
        self._operator, self._who, self._seconds = operator, who, seconds
        self._kind: OrderKind = kind
        self.detail = detail
        self.request: Request | None = None

    def __enter__(self) -> "_Told":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, LeaseError):
            self._operator.refuse(self._kind, self._who, self.detail, self._seconds, self.request, str(error))
