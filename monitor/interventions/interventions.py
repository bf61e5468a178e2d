"""Interventions as one part of the monitor: decisions carried out, gates kept armed, operators obeyed.

What an engine tells of them rides with its frames, in part before and in part behind the verdicts of the same frame::

    before_verdicts   decisions of gates on requests in flight, the guard, admissions
    (verdicts)        requests begin and end
    after_verdicts    decisions on requests that began or ended with the frame; refusals
    fire              firings of the frame's verdicts
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from monitor.events import ProbeFired, Request
from monitor.ingest import Link
from monitor.interventions.decide import Actions
from monitor.interventions.gate_decisions import GateDecisions
from monitor.interventions.gates import Gates
from monitor.interventions.operator import Operator
from monitor.interventions.orders import SendOrder
from monitor.interventions.refusals import Refusals
from monitor.interventions.reports import Reports
from monitor.interventions.state import RequestStates
from monitor.policy import Policy
from monitor.sinks.recorder import Recorder
from monitor.store import Store
from monitor.telemetry.stats import Stats
from monitor.verdicts import VerdictTable
from monitor.wire.frames import FrameHeader, GateEvent, Hello
from probes.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Decided:
    """Decisions of gates that a frame has, and that were not recorded before."""

    fresh: list[GateEvent]
    later: list[GateEvent]
    """Those of them on requests that were not followed before the frame's verdicts."""


class Interventions:
    """Carries out what policy and operators decide, and takes what engines say of it.

    Args:
        bundle: Has the probes and vectors.
        policy: Decides on firings, and has the gates.
        verdicts: Knows the requests in flight.
        links: The engines, by id.
        recorder: Takes events.
        stats: Where all is counted.
        send_order: Sends orders to engines.
        store: Knows what is recorded already, by this monitor or one before it.
        max_requests: Requests whose state is kept.
        max_engines: Engines whose numbers are kept.
        clock: Seconds of a monotonic clock.

    Attributes:
        operator: Takes orders of operators.
        states: Of requests.
    """

    def __init__(
        self,
        bundle: Bundle,
        policy: Policy,
        verdicts: VerdictTable,
        links: Mapping[str, Link],
        recorder: Recorder,
        stats: Stats,
        send_order: SendOrder,
        *,
        store: Store,
        max_requests: int,
        max_engines: int,
        clock: Callable[[], float],
    ) -> None:
        self._policy, self._verdicts = policy, verdicts
        self.states = states = RequestStates(max_requests, stats, store)
        self.operator = operator = Operator(
            bundle, policy.max_dose, verdicts, links, recorder, stats, send_order, clock
        )
        self._gates = gates = Gates(
            policy,
            bundle,
            recorder,
            stats,
            send_order,
            states=states,
            before=store.state.armed(),
            keep=operator.keeps,
            in_flight=verdicts.in_flight,
        )
        self._actions = actions = Actions(
            states,
            recorder,
            stats,
            send_order,
            agreement={probe.name: (probe.aggregate.agree, probe.aggregate.agree_of) for probe in bundle.all_probes},
            gated=gates.holds,
            max_dose=policy.max_dose,
        )
        self._decisions = GateDecisions(
            bundle,
            policy,
            recorder,
            stats,
            verdicts,
            states,
            gates,
            operator,
            actions,
            processed=store.state.processed("gate"),
            max_engines=max_engines,
        )
        self._refusals = Refusals(recorder, stats, verdicts, gates, operator, actions, store, max_engines)
        self._reports = Reports(
            recorder,
            stats,
            verdicts,
            states,
            guarded=store.state.processed("guard"),
            max_engines=max_engines,
        )

    def hello(self, link: Link, hello: Hello) -> None:
        """Arm an engine that says who it is."""
        self._gates.hello(hello, enforced=link.fits is True and not link.shadow)
        self.operator.hello(link)

    def before_verdicts(self, link: Link, header: FrameHeader) -> Decided:
        """Take what is to be part of the verdicts of requests that end with this frame."""
        fresh = self._decisions.fresh(link, header.gates) if header.gates else []
        decided = Decided(fresh, self._decisions.take(link, fresh))
        self._reports.guarded(link, header.guarded)
        self._reports.admitted(link, header.started)
        return decided

    def after_verdicts(self, link: Link, header: FrameHeader, decided: Decided) -> None:
        """Take the rest of the frame, now that its requests have begun and ended."""
        self._decisions.take_ended(link, self._decisions.take(link, decided.later))
        self._refusals.take(link, header.refused)

    def fire(self, fired: ProbeFired, *, held: str, ended: bool = False) -> None:
        """Carry out what the policy decides on a firing.

        Args:
            fired: The firing.
            held: Why nothing may be enforced on what its engine's scores say; empty: it may.
            ended: The request had ended when its probe fired.
        """
        self._actions.apply(fired, self._policy.decide(fired), held=held, ended=ended)

    def restore(self, link: Link, header: FrameHeader) -> None:
        """Have the verdicts of requests that are announced know what gates saw under an earlier monitor."""
        for started in header.started:
            for fired in self.states.by_gates(link.engine, started.engine_request_id):
                request = self._verdicts.find(link.engine, started.engine_request_id, link.model)
                if request is not None:
                    self._verdicts.note_fired(
                        ProbeFired(request, fired.probe, fired.aggregate, fired.aggregate, fired.position, "")
                    )

    def change_policy(self, policy: Policy) -> None:
        """Decide by another policy from here on, on requests in flight as well; gates of engines follow."""
        self._policy = self._decisions.policy = policy
        self.operator.max_dose = self._actions.max_dose = policy.max_dose
        self._gates.change_policy(policy)

    def finish(self, request: Request) -> None:
        """Let go of a request that has ended."""
        if (state := self.states.finish(request)) is not None:
            self._actions.finish(request, state)
        self.operator.finish(request)

    def lost(self, engine: str) -> None:
        """Take back what an engine that fell silent was thought to have; when it is heard again, it is armed again."""
        self._gates.lost(engine)
        self.operator.lost(engine)

    def forget(self, engine: str) -> None:
        """Let go of an engine that is gone."""
        self._gates.forget(engine)
        self._actions.forget_engine(engine)

    def tick(self) -> None:
        """Do what is due: leases that have ended, orders that could not be sent before."""
        self.operator.tick()
        self._actions.tick()
