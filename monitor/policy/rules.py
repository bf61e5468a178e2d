"""Rules as values: a policy maps a firing to decisions, and nothing else."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from monitor.events import Mode, ProbeFired, Severity


@dataclass(frozen=True, slots=True)
class AlertAction:
    """Tell people."""

    severity: Severity

    def __str__(self) -> str:
        return f"alert with severity {self.severity}"


@dataclass(frozen=True, slots=True)
class SteerAction:
    """Add a steering vector to the rest of the response."""

    vector: str
    dose: float
    """Relative to the norm of the residual stream; negative steers away from the concept."""
    tokens: int | None
    """Release after this many tokens; ``None``: at the end of the request."""

    def __str__(self) -> str:
        until = "until the request ends" if self.tokens is None else f"for {self.tokens} tokens"
        return f"steer {self.vector} at dose {self.dose:g} {until}"


Action = AlertAction | SteerAction


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
        """Whether the rule is about this firing."""
        if fired.probe != self.probe:
            return False
        return not self.models or any(fnmatchcase(fired.request.model, glob) for glob in self.models)


@dataclass(frozen=True, slots=True)
class Decision:
    """One action that one rule chose."""

    rule: str
    mode: Mode
    action: Action
    reason: str
    """Why, in words: the reading, the rule, and what it does."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules in the order of their file."""

    name: str
    """Path of the file, or what stands in for one."""
    digest: str
    """SHA-256 of the file; empty for a policy that comes from no file."""
    rules: tuple[Rule, ...]

    def decide(self, fired: ProbeFired) -> list[Decision]:
        """What to do about a firing.

        Every rule that matches counts, in order, and each of its actions is one decision: steering orders add
        up. When no rule matches, the list is empty: the firing is recorded and counted, and nothing else
        happens.
        """
        return [
            Decision(rule.name, rule.mode, action, _reason(fired, rule, action))
            for rule in self.rules
            if rule.matches(fired)
            for action in rule.actions
        ]


_VERBS: dict[Mode, str] = {"shadow": "shadows: would", "alert": "alerts:", "enforce": "enforces:"}


def _reason(fired: ProbeFired, rule: Rule, action: Action) -> str:
    return (
        f"probe {fired.probe} reached {fired.aggregate:.2f} (threshold {fired.threshold:.2f}) "
        f"at token {fired.position} ({fired.role}); rule '{rule.name}' {_VERBS[rule.mode]} {action}"
    )
