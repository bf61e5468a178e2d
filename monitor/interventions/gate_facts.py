"""Facts of a gate, as events of its decisions have them."""

from dataclasses import dataclass

from monitor.events import words
from monitor.policy import Gate, PolicyGate, Steering, StopAction
from probes.bundle import Bundle, Probe

OPERATOR_PREFIX = "order:"
"""Prefix of the ids of operators' orders, and of their gates."""


@dataclass(frozen=True, slots=True)
class GateFacts:
    """Facts that events have of a gate, beside what it decided."""

    rule: str
    """Empty: an operator armed it, or the monitor does not know it."""
    probe: str
    threshold: float
    """In logits."""
    agree: int
    """Averages in a row that must reach it."""
    steering: Steering
    """Of no vector, where it is not known, or the gate stops."""
    at_probe_threshold: bool
    """It opens where the probe fires, not at a threshold of its own."""
    what: str
    """Its rule or operator, and what it does, in words."""
    stops: bool = False
    """It ends the generation as it opens."""


def facts_of(does: Steering | StopAction, probe: Probe, rule: str, what: str) -> GateFacts:
    """Facts of a gate that this monitor armed."""
    stops = isinstance(does, StopAction)
    steering = Steering("") if stops else does
    gate = steering.gate or Gate()
    return GateFacts(
        rule=rule,
        probe=probe.name,
        threshold=probe.threshold if gate.threshold is None else gate.threshold,
        agree=probe.aggregate.agree,
        steering=steering,
        at_probe_threshold=gate.threshold is None,
        what=what,
        stops=stops,
    )


def policy_facts(gate: PolicyGate, bundle: Bundle) -> GateFacts:
    """Facts of a gate of the policy."""
    probe = next(probe for probe in bundle.probes if probe.name == gate.rule.probe)
    return facts_of(gate.does, probe, gate.rule.name, words.rule_decided(gate.rule.name, "enforce", gate.does))


def unknown_facts(gate: str) -> GateFacts:
    """Facts of a gate that a monitor before this one armed: what its id says."""
    return GateFacts(
        rule="",
        probe="",
        threshold=0.0,
        agree=1,
        steering=Steering(""),
        at_probe_threshold=False,
        what=f"it was not armed by this monitor; the record of the monitor that armed '{gate}' says what it does",
    )
