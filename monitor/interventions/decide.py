"""From a policy's decisions to actions: alerts are recorded, interventions are ordered and recorded."""

import logging
from collections.abc import Callable, Iterable, Mapping

from monitor.events import Alert, Escalated, Intervention, Ordered, ProbeFired, Request
from monitor.interventions.fail_closed import UNREACHABLE, FailClosed
from monitor.interventions.orders import SendOrder, order_id, steer_order
from monitor.interventions.state import Case, RequestState, RequestStates
from monitor.policy import AlertAction, Decision, EscalateAction, SteerAction, Steering, StopAction
from monitor.sinks.recorder import Recorder
from monitor.telemetry.stats import Stats
from monitor.wire.orders import Order, Release, Stop

logger = logging.getLogger(__name__)


class Actions:
    """Carries out decisions, each rule at most once a request.

    Orders add up, so that a rule applied twice would steer at twice its dose. That a request is known again
    after its engine was lost is no reason to: what was applied is remembered until the request ends.

    Args:
        states: Of requests.
        recorder: Takes the events.
        stats: Where alerts and interventions are counted.
        send_order: Sends orders; not called in ``shadow``.
        agreement: A probe's name to how many of how many averages have to reach its threshold.
        gated: Tells whether an engine decides on a request by a gate itself: then it is not ordered what the gate does.
        max_dose: Cap on all that may be done to a request at once along one vector; ``None``: the policy sets none.

    Attributes:
        max_dose: May be replaced, as the policy is.
    """

    def __init__(
        self,
        states: RequestStates,
        recorder: Recorder,
        stats: Stats,
        send_order: SendOrder,
        *,
        agreement: Mapping[str, tuple[int, int]] | None = None,
        gated: Callable[[Request, str], bool] = lambda request, gate: False,
        max_dose: float | None = None,
    ) -> None:
        self._states, self._recorder, self._stats, self._send_order = states, recorder, stats, send_order
        self._agreement, self._gated, self.max_dose = agreement or {}, gated, max_dose
        self._fail_closed = FailClosed(states, send_order, self._record)

    def apply(self, fired: ProbeFired, decisions: Iterable[Decision], *, held: str = "", ended: bool = False) -> None:
        """Carry out what a policy decided about one firing.

        Args:
            fired: The firing.
            decisions: In the order of the policy.
            held: Why they are carried out in ``shadow``, whatever their mode; empty: they are not.
            ended: The request had ended when its probe fired: there is nothing left to change, but much to tell.
        """
        cases = [Case(fired, decision) for decision in decisions]
        cases = [case.held(held) for case in cases] if held else self._leave_to_gates(fired.request, cases, ended)
        if ended:
            changes = SteerAction | StopAction
            cases = [
                case.held("the request had ended") if isinstance(case.decision.action, changes) else case
                for case in cases
            ]
        if not cases:
            return
        state = self._state(fired.request)
        for case in cases:
            if case.decision.rule not in state.rules:
                self._carry_out(case, state)
            elif case.decision.rule in state.inherited:
                self._order_again(case, state)
        state.inherited -= {case.decision.rule for case in cases}
        # Only now: the decisions of one rule belong together.
        self._states.carried_out(fired.request, cases, ended=ended)

    def refused(self, request: Request, id: str, why: str) -> None:
        """Stop a generation that an engine does not steer as it was ordered, where the rule says so.

        Args:
            request: In flight.
            id: Of the order.
            why: In words.
        """
        state = self._states.find(request.engine, request.engine_request_id)
        if state is not None and (case := state.fail_closed.pop(id, None)) is not None:
            self._fail_closed.stop(case, why)

    def opened(self, request: Request, gate: str) -> None:
        """Undo what was ordered in the stead of a gate that steers a request in flight."""
        state = self._state(request)
        state.left_to_gates[gate] = None
        if (id := state.stand_ins.pop(gate, None)) is None:
            return
        state.fail_closed.pop(id, None)
        if self._order(request, Release(request.engine_request_id, id)):
            self._stats.orders["policy", "release", "sent"] += 1
            detail = f"release {id}: gate {gate} steers instead"
            self._recorder.record(
                Ordered(id, "release", "sent", request.engine, request.model, request, "policy", None, detail, "")
            )

    def follow(self, engine: str, gate: str) -> None:
        """Order what was left to a gate of an engine that decides on no request after all."""
        for state in self._states.on(engine):
            self._take_over(state, gate)

    def follow_one(self, request: Request, gate: str) -> None:
        """Order what was left to a gate that leaves one request out."""
        if (state := self._states.find(request.engine, request.engine_request_id)) is not None:
            self._take_over(state, gate)

    def tick(self) -> None:
        """Stop what could not be stopped before."""
        self._fail_closed.tick()

    def finish(self, request: Request, state: RequestState) -> None:
        """Let go of a request that has ended."""
        self._fail_closed.finish(request, state)

    def forget_engine(self, engine: str) -> None:
        """Let go of an engine that is gone."""
        self._fail_closed.forget_engine(engine)

    def _leave_to_gates(self, request: Request, cases: list[Case], ended: bool) -> list[Case]:
        """The cases that no gate decides.

        An engine decides the others, with an earlier or a later token than this; that is recorded as it arrives. Since
        the engine may still refuse the gate, they are kept until the request ends.
        """
        left = [case for case in cases if self._gated(request, case.decision.gate)]
        if left and not ended:
            waiting = self._state(request).left_to_gates
            for case in left:
                waiting.setdefault(case.decision.gate, case)
        return [case for case in cases if case not in left]

    def _take_over(self, state: RequestState, gate: str) -> None:
        if (case := state.left_to_gates.get(gate)) is not None:
            del state.left_to_gates[gate]
            self._carry_out(case, state)
            self._states.carried_out(case.fired.request, [case])

    def _state(self, request: Request) -> RequestState:
        return self._states.of(request.engine, request.engine_request_id)

    def _carry_out(self, case: Case, state: RequestState) -> None:
        fired, decision = case.fired, case.decision
        match decision.action:
            case AlertAction(severity):
                self._stats.alerts[fired.request.model, decision.rule, severity, decision.mode] += 1
                self._recorder.record(
                    Alert(
                        request=fired.request,
                        rule=decision.rule,
                        mode=decision.mode,
                        severity=severity,
                        probe=fired.probe,
                        aggregate=fired.aggregate,
                        threshold=fired.threshold,
                        position=fired.position,
                        reason=decision.reason,
                    )
                )
            case EscalateAction():
                self._stats.escalations[fired.request.model, decision.rule, decision.mode] += 1
                self._recorder.record(
                    Escalated(
                        request=fired.request,
                        rule=decision.rule,
                        mode=decision.mode,
                        probe=fired.probe,
                        aggregate=fired.aggregate,
                        threshold=fired.threshold,
                        position=fired.position,
                        reason=decision.reason,
                    )
                )
            case StopAction() as action:
                self._stop(case, action)
            case SteerAction() as action:
                self._steer(case, action, state)

    def _order_again(self, case: Case, state: RequestState) -> None:
        """Order once more what an earlier monitor ordered and recorded, where a refusal stops the generation.

        The engine takes an order's id once, so that nothing is steered twice; one that it refused it refuses again,
        which its earlier refusal may have told nobody who still lives.
        """
        action, decision = case.decision.action, case.decision
        if not isinstance(action, SteerAction) or decision.mode != "enforce" or action.on_refusal is None:
            return
        id = order_id(decision.rule, action.steering, state.orders)
        state.orders.add(id)
        state.fail_closed[id] = case
        request = case.fired.request
        self._order(request, steer_order(request.engine_request_id, action.steering, id, max_dose=self.max_dose))

    def _stop(self, case: Case, action: StopAction) -> None:
        request, enforced = case.fired.request, case.decision.mode == "enforce"
        stop = Stop(request.engine_request_id, action.message, f"{case.decision.rule}:stop")
        sent = enforced and self._order(request, stop)
        self._record(case, action, sent=sent, refusal=UNREACHABLE if enforced and not sent else "")

    def _steer(self, case: Case, action: SteerAction, state: RequestState) -> None:
        if case.decision.mode != "enforce":
            return self._record(case, action, sent=False, refusal="")
        request, gate = case.fired.request, case.decision.gate
        id = order_id(case.decision.rule, action.steering, state.orders)
        state.orders.add(id)
        order = steer_order(request.engine_request_id, action.steering, id, max_dose=self.max_dose)
        if self._order(request, order):
            if gate:
                state.stand_ins[gate] = id
            if action.on_refusal is not None:
                state.fail_closed[id] = case
            return self._record(case, action, sent=True, refusal="")
        self._record(case, action, sent=False, refusal=UNREACHABLE)
        if action.on_refusal is not None:
            self._fail_closed.stop(case, UNREACHABLE)
        return None

    def _record(self, case: Case, action: SteerAction | StopAction, *, sent: bool, refusal: str) -> None:
        fired, decision = case.fired, case.decision
        # A stop steers along no vector.
        steering = action.steering if isinstance(action, SteerAction) else Steering("")
        agree, agree_of = self._agreement.get(fired.probe, (1, 1))
        self._stats.interventions[fired.request.model, decision.rule, steering.vector, decision.mode, sent] += 1
        self._recorder.record(
            Intervention(
                request=fired.request,
                rule=decision.rule,
                mode=decision.mode,
                probe=fired.probe,
                aggregate=fired.aggregate,
                threshold=fired.threshold,
                position=fired.position,
                vector=steering.vector,
                dose=steering.dose or 0.0,
                tokens=steering.tokens,
                sent=sent,
                reason=decision.reason,
                operation=steering.operation if isinstance(action, SteerAction) else "stop",
                low=steering.low,
                high=steering.high,
                agree=agree,
                agree_of=agree_of,
                refusal=refusal,
            )
        )

    def _order(self, request: Request, order: Order) -> bool:
        sent = self._send_order(request.engine, order)
        if not sent:
            logger.error(
                "An order for request %s did not reach engine %s: %s.",
                request.request_id,
                request.engine,
                order,
            )
        return sent
