"""Rules as values: a policy maps a firing to decisions, and nothing else."""

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from monitor.events import Mode, ProbeFired, words
from monitor.policy.actions import Action, SteerAction, StopAction
from monitor.policy.steering import Gate, Steering

GATE_PREFIX: Final = "policy:"
"""Prefix of the ids of gates that policies arm."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When a probe fires, on models of these names, do this."""

    name: str
    probe: str
    models: tuple[str, ...]
    """Name globs, of which one has to match; empty matches every model."""
    mode: Mode
    actions: tuple[Action, ...]

    def matches(self, fired: ProbeFired) -> bool:
        """True where the rule is about this firing."""
        return fired.probe == self.probe and self.covers(fired.request.model)

    def covers(self, model: str) -> bool:
        """True where the rule is about models of this name."""
        return not self.models or any(fnmatchcase(model, glob) for glob in self.models)


@dataclass(frozen=True, slots=True)
class Decision:
    """One action that one rule chose."""

    rule: str
    mode: Mode
    action: Action
    reason: str
    """Why, in words: the reading, the rule, and what it does."""
    gate: str = ""
    """Id of the gate that the engine decides this action by, if the rule enforces it so."""


@dataclass(frozen=True, slots=True)
class PolicyGate:
    """A gate that a rule has the engine decide by."""

    id: str
    rule: Rule
    does: Steering | StopAction


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules in the order of their file."""

    name: str
    """Path of the file, or what stands in for one."""
    digest: str
    """SHA-256 of the file; empty for a policy that comes from no file."""
    rules: tuple[Rule, ...]
    max_dose: float | None = None
    """Cap on the doses of rules and operators, either way; ``None``: the file sets no limit of its own."""

    @property
    def gates(self) -> dict[str, PolicyGate]:
        """Gates that engines are to have, by their ids: all are of rules that enforce."""
        return {
            gate: PolicyGate(gate, rule, action.steering if isinstance(action, SteerAction) else action)
            for rule in self.rules
            for index, action in enumerate(rule.actions)
            if isinstance(action, SteerAction | StopAction) and (gate := self._gate(rule, index))
        }

    def _gate(self, rule: Rule, index: int) -> str:
        """Id of the gate of a rule's action; empty where the engine does not decide it."""
        action = rule.actions[index]
        match action:
            case SteerAction(Steering(gate=Gate()) as does) | (StopAction(gate=True) as does) if rule.mode == "enforce":
                pass
            case _:
                return ""
        # What it does is part of the id: gates may outlive their policy and their monitor, and one that the next policy
        # has as well is to go on, with all that it has read. Which models it is for is seen to as engines are armed.
        own = hashlib.sha256(repr((rule.probe, does, self.max_dose)).encode()).hexdigest()
        return f"{GATE_PREFIX}{own[:12]}:{rule.name}:{index}"

    def decide(self, fired: ProbeFired) -> list[Decision]:
        """Decide what to do about a firing.

        Every rule that matches counts, in order, and each of its actions is one decision: steering orders add
        up. When no rule matches, the list is empty: the firing is recorded and counted, and nothing else
        happens.
        """
        return [
            Decision(rule.name, rule.mode, action, _reason(fired, rule, action), self._gate(rule, index))
            for rule in self.rules
            if rule.matches(fired)
            for index, action in enumerate(rule.actions)
        ]


def _reason(fired: ProbeFired, rule: Rule, action: Action) -> str:
    return f"{words.probe_reached(fired)}; {words.rule_decided(rule.name, rule.mode, action)}"
