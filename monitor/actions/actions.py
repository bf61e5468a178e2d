"""What a decision does: alerts are recorded, interventions are ordered and recorded."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from monitor.actions.gates import act_of, finite
from monitor.actions.recorder import Recorder
from monitor.events import Alert, Escalated, Intervention, ProbeFired, Request
from monitor.frames import Order, Steer, Stop
from monitor.policy import AlertAction, Decision, EscalateAction, SteerAction, StopAction
from monitor.stats import Stats

UNREACHABLE: Final = "the engine could not be reached"

logger = logging.getLogger(__name__)

SendOrder = Callable[[str, Order], bool]
"""Sends an order to the engine of this id; false where it cannot be reached. Never blocks."""


class Actions:
    """Carries out decisions, each rule at most once a request.

    Orders add up, so that a rule applied twice would steer at twice its dose. That a request is known again
    after its engine was lost is no reason to: what was applied is remembered until the request ends.

    Args:
        recorder: Takes the events.
        stats: Where alerts and interventions are counted.
        send_order: Sends orders; not called in ``shadow``.
        max_requests: Requests to remember; beyond it the one acted on longest ago is forgotten.
        agreement: A probe's name to how many of how many averages have to reach its threshold.
        gated: Tells whether an engine decides by a gate itself: then it is not ordered what the gate does.
    """

    def __init__(
        self,
        recorder: Recorder,
        stats: Stats,
        send_order: SendOrder,
        max_requests: int = 65_536,
        *,
        agreement: Mapping[str, tuple[int, int]] | None = None,
        gated: Callable[[str, str], bool] = lambda engine, gate: False,
    ) -> None:
        self._recorder = recorder
        self._stats = stats
        self._send_order = send_order
        self._agreement = agreement or {}
        self._gated = gated
        self._max_requests = max_requests
        self._applied: OrderedDict[tuple[str, str], set[str]] = OrderedDict()

    def apply(self, fired: ProbeFired, decisions: Iterable[Decision], *, held: str = "", ended: bool = False) -> None:
        """Carry out what a policy decided about one firing.

        Args:
            fired: The firing.
            decisions: In the order of the policy.
            held: Why they are carried out in ``shadow``, whatever their mode; empty: they are not.
            ended: The request had ended when its probe fired: there is nothing left to change, but much to tell.
        """
        # What an engine decides by a gate it has decided already, or will with a later token; it is told as it arrives.
        decisions = [d for d in decisions if held or not self._gated(fired.request.engine, d.gate)]
        decisions = [_hold(decision, held) if held else decision for decision in decisions]
        if ended:
            decisions = [
                _hold(decision, "the request had ended")
                if isinstance(decision.action, SteerAction | StopAction)
                else decision
                for decision in decisions
            ]
        if not decisions:
            return
        applied = self._remember(fired.request)
        for decision in decisions:
            if decision.rule not in applied:
                self._carry_out(fired, decision)
        # Only now: the decisions of one rule belong together.
        applied.update(decision.rule for decision in decisions)

    def forget(self, request: Request) -> None:
        """A request ended."""
        self._applied.pop((request.engine, request.key), None)

    def _remember(self, request: Request) -> set[str]:
        identity = (request.engine, request.key)
        applied = self._applied.setdefault(identity, set())
        self._applied.move_to_end(identity)
        if len(self._applied) > self._max_requests:
            self._applied.popitem(last=False)
        return applied

    def _carry_out(self, fired: ProbeFired, decision: Decision) -> None:
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
            case StopAction() | SteerAction():
                self._intervene(fired, decision, decision.action)

    def _intervene(self, fired: ProbeFired, decision: Decision, action: SteerAction | StopAction) -> None:
        request, enforced, sent = fired.request, decision.mode == "enforce", False
        if isinstance(action, StopAction):
            steer = None
            sent = enforced and self._order(request, Stop(request.key, action.message, f"{decision.rule}:stop"))
        else:
            steer = action
            if enforced:
                # The id stays the same when another monitor decides anew.
                done = f"{action.dose:g}" if action.operation == "add" else action.operation
                id = f"{decision.rule}:{action.vector}:{done}"
                sent = self._order(request, Steer(request.key, [act_of(action)], action.tokens, id))
        vector = "" if steer is None else steer.vector
        agree, agree_of = self._agreement.get(fired.probe, (1, 1))
        self._stats.interventions[request.model, decision.rule, vector, decision.mode, sent] += 1
        self._recorder.record(
            Intervention(
                request=request,
                rule=decision.rule,
                mode=decision.mode,
                probe=fired.probe,
                aggregate=fired.aggregate,
                threshold=fired.threshold,
                position=fired.position,
                vector=vector,
                dose=0.0 if steer is None else steer.dose,
                tokens=None if steer is None else steer.tokens,
                sent=sent,
                reason=decision.reason,
                operation="stop" if steer is None else steer.operation,
                low=None if steer is None else finite(steer.low),
                high=None if steer is None else finite(steer.high),
                agree=agree,
                agree_of=agree_of,
                refusal=UNREACHABLE if enforced and not sent else "",
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


def _hold(decision: Decision, why: str) -> Decision:
    if decision.mode == "shadow":
        return decision
    return replace(decision, mode="shadow", reason=f"{decision.reason}; held to shadow: {why}")
