"""What a decision does: alerts are recorded, interventions are ordered and recorded."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

from monitor.actions.recorder import Recorder
from monitor.events import Alert, Intervention, ProbeFired, Request
from monitor.frames import Order, Steer
from monitor.policy import AlertAction, Decision, SteerAction
from monitor.stats import Stats

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
    """

    def __init__(self, recorder: Recorder, stats: Stats, send_order: SendOrder, max_requests: int = 65_536) -> None:
        self._recorder = recorder
        self._stats = stats
        self._send_order = send_order
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
        decisions = [_hold(decision, held) if held else decision for decision in decisions]
        if ended:
            decisions = [
                decision if isinstance(decision.action, AlertAction) else _hold(decision, "the request had ended")
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
            case SteerAction(vector, dose, tokens):
                sent = decision.mode == "enforce" and self._order(
                    fired.request,
                    Steer(
                        key=fired.request.key,
                        vector=vector,
                        dose=dose,
                        tokens=tokens,
                        id=f"{decision.rule}:{vector}:{dose:g}",
                    ),
                )
                self._stats.interventions[fired.request.model, decision.rule, vector, decision.mode, sent] += 1
                self._recorder.record(
                    Intervention(
                        request=fired.request,
                        rule=decision.rule,
                        mode=decision.mode,
                        probe=fired.probe,
                        aggregate=fired.aggregate,
                        threshold=fired.threshold,
                        position=fired.position,
                        vector=vector,
                        dose=dose,
                        tokens=tokens,
                        sent=sent,
                        reason=decision.reason,
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
