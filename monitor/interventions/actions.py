"""What a decision does: alerts are recorded, interventions are ordered and recorded."""

import itertools
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from monitor.events import Alert, Escalated, Intervention, Ordered, ProbeFired, Request
from monitor.interventions.orders import steer_order
from monitor.policy import AlertAction, Decision, EscalateAction, SteerAction, Steering, StopAction
from monitor.sinks.recorder import Recorder
from monitor.telemetry.stats import Stats
from monitor.wire.orders import Order, Release, Stop

UNREACHABLE: Final = "the engine could not be reached"

logger = logging.getLogger(__name__)

SendOrder = Callable[[str, Order], bool]
"""Sends an order to the engine of this id; false where it cannot be reached. Never blocks."""


@dataclass(slots=True)
class _Applied:
    """What was done to one request."""

    rules: set[str] = field(default_factory=set[str])
    """Those that were applied."""
    orders: set[str] = field(default_factory=set[str])
    """Ids of the orders to steer."""
    closed: dict[str, tuple[ProbeFired, Decision]] = field(default_factory=dict[str, tuple[ProbeFired, Decision]])
    """Orders to steer, by their id, that the generation is stopped for should the engine refuse them."""
    left: dict[str, tuple[ProbeFired, Decision] | None] = field(
        default_factory=dict[str, tuple[ProbeFired, Decision] | None]
    )
    """What was left to gates, by their id; ``None``: the gate has opened."""
    instead: dict[str, str] = field(default_factory=dict[str, str])
    """Ids of orders to steer, by the gate that does the same where it can."""
    failed: tuple[ProbeFired, Decision, str] | None = None
    """One of these that was refused, and why: the generation is stopped for it, or will be."""


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
        gated: Tells whether an engine decides on a request by a gate itself: then it is not ordered what the gate does.
        max_dose: What all that may be done to a request at once along one vector may come to; ``None``: the policy sets
            no limit of its own.

    Attributes:
        max_dose: May be replaced, as the policy is.
    """

    def __init__(
        self,
        recorder: Recorder,
        stats: Stats,
        send_order: SendOrder,
        max_requests: int = 65_536,
        *,
        agreement: Mapping[str, tuple[int, int]] | None = None,
        gated: Callable[[Request, str], bool] = lambda request, gate: False,
        max_dose: float | None = None,
    ) -> None:
        self._recorder = recorder
        self._stats = stats
        self._send_order = send_order
        self._agreement = agreement or {}
        self._gated = gated
        self.max_dose = max_dose
        self._max_requests = max_requests
        self._applied: OrderedDict[tuple[str, str], _Applied] = OrderedDict()
        self._unstopped: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Requests whose generation is to be stopped, and whose engine could not be reached."""

    def apply(self, fired: ProbeFired, decisions: Iterable[Decision], *, held: str = "", ended: bool = False) -> None:
        """Carry out what a policy decided about one firing.

        Args:
            fired: The firing.
            decisions: In the order of the policy.
            held: Why they are carried out in ``shadow``, whatever their mode; empty: they are not.
            ended: The request had ended when its probe fired: there is nothing left to change, but much to tell.
        """
        decisions = list(decisions)
        if not held:
            decisions = self._leave_to_gates(fired, decisions, ended)
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
            if decision.rule not in applied.rules:
                self._carry_out(fired, decision)
        # Only now: the decisions of one rule belong together.
        applied.rules.update(decision.rule for decision in decisions)

    def refused(self, request: Request, id: str, why: str) -> None:
        """An engine does not steer a request as it was ordered: where the rule says so, the generation is stopped.

        Args:
            request: In flight.
            id: Of the order.
            why: In words.
        """
        applied = self._applied.get((request.engine, request.engine_request_id))
        if applied is not None and (found := applied.closed.pop(id, None)) is not None:
            self._fail_closed(*found, why)

    def opened(self, request: Request, gate: str) -> None:
        """An engine's gate steers a request in flight: what was ordered in its stead is undone."""
        applied = self._remember(request)
        applied.left[gate] = None
        if (id := applied.instead.pop(gate, None)) is None:
            return
        applied.closed.pop(id, None)
        if self._order(request, Release(request.engine_request_id, id)):
            self._stats.orders["policy", "release", "sent"] += 1
            detail = f"release {id}: gate {gate} steers instead"
            self._recorder.record(
                Ordered(id, "release", "sent", request.engine, request.model, request, "policy", None, detail, "")
            )

    def follow(self, engine: str, gate: str, key: str | None = None) -> None:
        """Order what was left to a gate that does not decide it after all.

        Args:
            engine: Whose gate it is.
            gate: Its id.
            key: Of the one request that it leaves out; ``None``: it decides on none.
        """
        for identity in [
            identity for identity in self._applied if identity[0] == engine and key in (None, identity[1])
        ]:
            applied = self._applied[identity]
            if (found := applied.left.get(gate)) is not None:
                del applied.left[gate]
                self._carry_out(*found)
                applied.rules.add(found[1].rule)

    def tick(self) -> None:
        """Stop what could not be stopped before."""
        for engine, key in list(self._unstopped):
            self._stop_failed(engine, key)

    def forget(self, request: Request) -> None:
        """A request ended."""
        identity = (request.engine, request.engine_request_id)
        applied = self._applied.pop(identity, None)
        if identity in self._unstopped and applied is not None and applied.failed is not None:
            del self._unstopped[identity]
            self._tell_failed(*applied.failed, refusal=f"{UNREACHABLE} before the request ended")

    def forget_engine(self, engine: str) -> None:
        """An engine is gone."""
        for identity in [identity for identity in self._unstopped if identity[0] == engine]:
            del self._unstopped[identity]

    def _leave_to_gates(self, fired: ProbeFired, decisions: list[Decision], ended: bool) -> list[Decision]:
        """The decisions that no gate takes.

        What an engine decides by a gate it has decided already, or will with a later token; it is told as it arrives.
        Since the engine may still refuse the gate, the rest is kept until the request ends.
        """
        left = [decision for decision in decisions if self._gated(fired.request, decision.gate)]
        if left and not ended:
            waiting = self._remember(fired.request).left
            for decision in left:
                waiting.setdefault(decision.gate, (fired, decision))
        return [decision for decision in decisions if decision not in left]

    def _remember(self, request: Request) -> _Applied:
        identity = (request.engine, request.engine_request_id)
        applied = self._applied.setdefault(identity, _Applied())
        self._applied.move_to_end(identity)
        if len(self._applied) > self._max_requests:
            oldest, _ = self._applied.popitem(last=False)
            self._unstopped.pop(oldest, None)
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
            sent = enforced and self._order(
                request, Stop(request.engine_request_id, action.message, f"{decision.rule}:stop")
            )
        elif enforced:
            applied = self._applied[request.engine, request.engine_request_id]
            id = _order_id(decision.rule, action.steering, applied.orders)
            applied.orders.add(id)
            order = steer_order(request.engine_request_id, action.steering, id, max_dose=self.max_dose)
            sent = self._order(request, order)
            if decision.gate and sent:
                applied.instead[decision.gate] = id
            if action.on_refusal is not None and sent:
                applied.closed[id] = fired, decision
        self._tell(fired, decision, action, sent=sent, refusal=UNREACHABLE if enforced and not sent else "")
        if isinstance(action, SteerAction) and action.on_refusal is not None and enforced and not sent:
            self._fail_closed(fired, decision, UNREACHABLE)

    def _fail_closed(self, fired: ProbeFired, decision: Decision, why: str) -> None:
        """Stop a generation that is not steered as it was to be; once, whatever else is refused."""
        identity = (fired.request.engine, fired.request.engine_request_id)
        applied = self._applied[identity]
        if applied.failed is None:
            applied.failed = fired, decision, why
            self._unstopped[identity] = None
            self._stop_failed(*identity)

    def _stop_failed(self, engine: str, key: str) -> None:
        applied = self._applied[engine, key]
        if applied.failed is None:
            return
        action = applied.failed[1].action
        message = action.on_refusal.message if isinstance(action, SteerAction) and action.on_refusal is not None else ""
        if self._send_order(engine, Stop(key, message, f"{applied.failed[1].rule}:closed")):
            del self._unstopped[engine, key]
            self._tell_failed(*applied.failed)

    def _tell_failed(self, fired: ProbeFired, decision: Decision, why: str, refusal: str = "") -> None:
        reason = f"{decision.reason}; that was refused ({why.rstrip('.')}), and the rule fails closed: stop"
        stop = StopAction("")
        self._tell(fired, replace(decision, reason=reason), stop, sent=not refusal, refusal=refusal)

    def _tell(
        self, fired: ProbeFired, decision: Decision, action: SteerAction | StopAction, *, sent: bool, refusal: str
    ) -> None:
        request, steering = fired.request, action.steering if isinstance(action, SteerAction) else None
        vector = "" if steering is None else steering.vector
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
                dose=0.0 if steering is None else steering.dose or 0.0,
                tokens=None if steering is None else steering.tokens,
                sent=sent,
                reason=decision.reason,
                operation="stop" if steering is None else steering.operation,
                low=None if steering is None else steering.low,
                high=None if steering is None else steering.high,
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


def _hold(decision: Decision, why: str) -> Decision:
    if decision.mode == "shadow":
        return decision
    return replace(decision, mode="shadow", reason=f"{decision.reason}; held to shadow: {why}")


def _order_id(rule: str, steering: Steering, taken: Collection[str]) -> str:
    """All that an order says, since an engine takes an id once a request, and the same when another monitor decides."""
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
