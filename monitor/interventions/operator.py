"""Operators' orders: checked, sent with a lease, and undone before its end where that is asked for.

A monitor that is started again knows no leases: it has engines disarm the gates of operators that it hears of, and
hears of the orders whose leases end.
"""

import secrets
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from monitor.errors import InvalidSteering
from monitor.events import Ordered, OrderKind, OrderResult, Request
from monitor.ingest import Link
from monitor.interventions.gate_facts import OPERATOR_PREFIX, GateFacts, facts_of
from monitor.interventions.leases import MAX_LEASE_SECONDS, MAX_ORDERS, Lease, LeaseError, Leases
from monitor.interventions.orders import SendOrder, arm_order, steer_order
from monitor.interventions.targets import Targets
from monitor.policy import Steering, require_valid
from monitor.sinks.recorder import Recorder
from monitor.telemetry.stats import Stats
from monitor.verdicts import VerdictTable
from monitor.wire.bounds import bounded_id
from probes.bundle import Bundle, Probe


@dataclass(slots=True)
class _Attempt:
    """An order that is being given, as far as it is known."""

    detail: str
    request: Request | None = None


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
        self._bundle, self.max_dose, self._links = bundle, max_dose, links
        self._recorder, self._stats, self._send, self._clock = recorder, stats, send_order, clock
        self._targets = Targets(verdicts, links, stats)
        self._leases = Leases(send_order, stats)

    @property
    def leases(self) -> list[tuple[Lease, float]]:
        """Orders and the seconds that their leases still run, oldest first."""
        now = self._clock()
        return [(lease, max(0.0, lease.ends - now)) for lease in self._leases.running]

    def keeps(self, gate: str) -> bool:
        """True for the gate of a lease that runs, or that an idle engine ends with its next step."""
        return self._leases.find(gate) is not None or self._leases.ended(gate)

    def facts(self, gate: str) -> GateFacts | None:
        """Facts of the gate of a lease that runs; ``None`` for any other."""
        lease = self._leases.find(gate)
        return None if lease is None else lease.facts

    def steer(self, who: str, request_id: str, steering: Steering, seconds: float) -> Lease:
        """Steer the answers of a request in flight, from their next step on.

        Raises:
            LeaseError: It is refused, and that is recorded.
        """
        asked = f"steer {steering.vector[:100]} in request '{request_id[:100]}'"
        with self._attempt("steer", who, asked, seconds) as attempt:
            self._check(seconds)
            self._require_valid(steering, "")
            attempt.detail = f"{steering}"
            requests = self._targets.requests(bounded_id(request_id))
            attempt.request = requests[0]
            lease = self._lease("steer", who, attempt.detail, seconds)
            for request in requests:
                order = steer_order(
                    request.engine_request_id, steering, lease.id, max_dose=self.max_dose, lease_seconds=seconds
                )
                if self._send(request.engine, order):
                    lease.requests.append(request)
            if not lease.requests:
                raise LeaseError("unreachable", f"Engine {requests[0].engine} cannot be reached.", "Try again.")
            self._leases.add(lease)
            for request in lease.requests:
                self._tell(lease, "sent", request.engine, request)
        return lease

    def arm(self, who: str, probe: str, steering: Steering, seconds: float) -> Lease:
        """Let all engines that are connected, and those that connect while the lease runs, steer by a gate.

        Raises:
            LeaseError: It is refused, and that is recorded.
        """
        asked = f"steer {steering.vector[:100]} by probe '{probe[:100]}'"
        with self._attempt("arm", who, asked, seconds) as attempt:
            self._check(seconds)
            reader = self._probe(probe)
            self._require_valid(steering, probe)
            attempt.detail = f"{steering}, when {probe} fires"
            lease = self._lease("arm", who, attempt.detail, seconds)
            lease.facts = facts_of(steering, reader, "", f"{who} ordered: {steering}")
            lease.max_dose = self.max_dose
            for link in list(self._links.values()):
                self._arm(lease, link)
            if not lease.engines:
                raise LeaseError(
                    "unreachable", "No engine is connected that has gates and is not held to shadow.", "See GetStatus."
                )
            self._leases.add(lease)
            for engine in lease.engines:
                self._tell(lease, "sent", engine)
        return lease

    def undo(self, who: str, kind: Literal["release", "disarm"], id: str) -> None:
        """Undo an order before its lease ends.

        Raises:
            LeaseError: No such lease runs.
        """
        begun: OrderKind = "steer" if kind == "release" else "arm"
        with self._attempt(kind, who, f"{kind} {id[:100]}", None) as attempt:
            lease = self._leases.find(id)
            if lease is None or lease.kind != begun:
                raise LeaseError(
                    "state" if id.startswith(OPERATOR_PREFIX) else "unknown",
                    f"No order '{id[:100]}' to {begun} has a lease that runs.",
                    "It has ended, or never was; ListOrders names those that run.",
                )
            attempt.detail = f"{kind} {id}: {lease.detail}"
            self._leases.undo(lease)
        for engine, request in lease.targets:
            self._record(id, kind, "sent", engine, request, who, None, f"{kind} {id}: {lease.detail}", "")

    def hello(self, link: Link) -> None:
        """Arm what is leased on an engine that says who it is."""
        for lease in self._leases.running:
            if link.engine not in lease.engines and link.engine not in lease.refused and self._arm(lease, link):
                self._tell(lease, "sent", link.engine)

    def lost(self, engine: str) -> None:
        """Take it that an engine that fell silent has nothing armed; when it is heard again, it is armed again."""
        self._leases.lost(engine)

    def refused(self, engine: str, id: str, engine_request_id: str) -> None:
        """Take it that an engine does not carry out an order."""
        self._leases.refused(engine, id, engine_request_id)

    def expired(self, engine: str, id: str, engine_request_id: str) -> bool:
        """Take it that an engine has ended a lease; true where that is not recorded yet."""
        if self._leases.ended(id):
            return False
        self._leases.refused(engine, id, engine_request_id)
        return True

    def finish(self, request: Request) -> None:
        """Let go of a request that has ended."""
        self._targets.finish(request)
        self._leases.finish(request)

    def tick(self) -> None:
        """Record which leases have ended, which engines see to, and undo what could not be undone before."""
        now = self._clock()
        for lease in [lease for lease in self._leases.running if lease.ends <= now]:
            self._leases.end(lease)
            for engine, request in lease.targets:
                self._tell(lease, "expired", engine, request, "its lease ended")
        self._leases.send_again(self._links)

    def _check(self, seconds: float) -> None:
        if not 0 < seconds <= MAX_LEASE_SECONDS:
            raise LeaseError(
                "invalid", f"A lease of {seconds:g} s cannot be had.", f"Ask for 1 to {MAX_LEASE_SECONDS:g} s."
            )
        if len(self._leases.running) >= MAX_ORDERS:
            raise LeaseError("full", f"{MAX_ORDERS} orders have leases that run.", "Release or disarm one.")

    def _require_valid(self, steering: Steering, probe: str) -> None:
        try:
            require_valid(steering, probe, self._bundle, self.max_dose)
        except InvalidSteering as error:
            why = "unknown" if error.field == ("vector",) else "invalid"
            place, said = ".".join(error.field), error.message.rstrip(".")
            raise LeaseError(why, f"the order: {place}: {said}.", error.fix) from error

    def _probe(self, name: str) -> Probe:
        for probe in self._bundle.probes:
            if probe.name == name:
                return probe
        known = ", ".join(probe.name for probe in self._bundle.probes) or "none"
        raise LeaseError("unknown", f"The engines read no probe '{name[:100]}'.", f"They read: {known}.")

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

    @contextmanager
    def _attempt(self, kind: OrderKind, who: str, detail: str, seconds: float | None) -> Generator[_Attempt]:
        """Record an order that is refused while it is given."""
        attempt = _Attempt(detail)
        try:
            yield attempt
        except LeaseError as error:
            engine = "" if attempt.request is None else attempt.request.engine
            self._record("", kind, "refused", engine, attempt.request, who, seconds, attempt.detail, str(error))
            raise

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
