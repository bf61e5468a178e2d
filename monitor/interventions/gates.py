"""What a gate does: as the order that arms it, and as the facts that its decisions are told with."""

import math
from dataclasses import dataclass

from monitor.events import Operation
from monitor.policy import PolicyGate, SteerAction
from monitor.wire.frames import GuardEvent
from monitor.wire.orders import Act, Arm
from probes.bundle import Bundle, Probe

OPERATOR_PREFIX = "order:"
"""What the ids of operators' orders and of their gates begin with."""


@dataclass(frozen=True, slots=True)
class GateFacts:
    """What events say of a gate, beside what it decided."""

    rule: str
    """Empty: an operator armed it, or the monitor does not know it."""
    probe: str
    threshold: float
    """In logits."""
    agree: int
    """Averages in a row that must reach it."""
    vector: str
    dose: float
    operation: Operation
    low: float | None
    high: float | None
    tokens: int | None
    """The most that are steered of a request."""
    judges_as_the_probe: bool
    """Whether it opens where the probe fires."""
    what: str
    """Who lets it do what, in words."""


def act_of(action: SteerAction) -> Act:
    """What is done to a projection, as an order says it."""
    return Act(
        vector=action.vector,
        add=action.dose,
        scale=0.0 if action.operation == "ablate" else 1.0,
        low=finite(action.low),
        high=finite(action.high),
    )


def act_words(act: Act) -> str:
    """An act in words."""
    said = [f"add {act.add:g}"] if act.add else []
    said += [f"scale by {act.scale:g}"] if act.scale != 1.0 else []
    said += [f"at least {act.low:g}"] if act.low is not None else []
    said += [f"at most {act.high:g}"] if act.high is not None else []
    return f"{act.vector}: {', '.join(said) or 'nothing'}"


def guard_words(event: GuardEvent) -> str:
    """What an engine's guard found and did, in words."""
    found = (
        f"{event.repetition:.0%} of the sequences of three among the last {event.window} tokens repeat an earlier one "
        f"(allowed: under {event.threshold:.0%})"
    )
    gates = f"; steered up to there by {' and '.join(event.gates)}" if event.gates else ""
    return f"{found}; from token {event.position} on, it is steered no more{gates}"


def finite(bound: float) -> float | None:
    """A bound of a range; ``None`` where it is none."""
    return bound if math.isfinite(bound) else None


def arm_order(gate: PolicyGate, max_dose: float | None) -> Arm:
    """The order that arms a gate of the policy.

    Args:
        gate: What is wanted.
        max_dose: The policy's own cap.

    Raises:
        ValueError: Its action is not decided by the engine.
    """
    how = gate.action.gate
    if how is None:
        raise ValueError(f"{gate.id} is no gate")
    return Arm(
        id=gate.id,
        probe=gate.rule.probe,
        acts=[act_of(gate.action)],
        threshold=how.threshold,
        half_life=how.half_life,
        min_tokens=how.min_tokens,
        streak=how.streak,
        release=how.release,
        release_streak=how.release_streak,
        hold=how.hold,
        budget=gate.action.tokens,
        max_dose=max_dose,
    )


def facts_of(action: SteerAction, probe: Probe, rule: str, what: str) -> GateFacts:
    """What is known of a gate that this monitor armed."""
    how = action.gate
    threshold = None if how is None else how.threshold
    streak = None if how is None else how.streak
    return GateFacts(
        rule=rule,
        probe=probe.name,
        threshold=probe.threshold if threshold is None else threshold,
        agree=probe.aggregate.agree if streak is None else streak,
        vector=action.vector,
        dose=action.dose,
        operation=action.operation,
        low=finite(action.low),
        high=finite(action.high),
        tokens=action.tokens,
        judges_as_the_probe=how is not None and how.judges_as_the_probe,
        what=what,
    )


def policy_facts(gate: PolicyGate, bundle: Bundle) -> GateFacts:
    """The same, of a gate of the policy."""
    probe = next(probe for probe in bundle.probes if probe.name == gate.rule.probe)
    return facts_of(gate.action, probe, gate.rule.name, f"rule '{gate.rule.name}' enforces: {gate.action}")


def unknown_facts(gate: str) -> GateFacts:
    """What is known of a gate that a monitor before this one armed: what its id says."""
    return GateFacts(
        rule="",
        probe="",
        threshold=0.0,
        agree=1,
        vector="",
        dose=0.0,
        operation="add",
        low=None,
        high=None,
        tokens=None,
        judges_as_the_probe=False,
        what=f"it was not armed by this monitor; the record of whoever armed '{gate}' says what it does",
    )
