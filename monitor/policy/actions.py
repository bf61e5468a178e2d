"""Actions of a rule, as values; each says itself in words."""

from dataclasses import dataclass

from monitor.events import Severity, words
from monitor.policy.steering import Steering


@dataclass(frozen=True, slots=True)
class AlertAction:
    """Tell people."""

    severity: Severity

    def __str__(self) -> str:
        return f"alert with severity {self.severity}"


@dataclass(frozen=True, slots=True)
class StopAction:
    """End the generation with a message."""

    message: str
    gate: bool = False
    """The engine decides, and ends it before the token that follows leaves; otherwise the monitor orders it."""

    def __str__(self) -> str:
        return words.stop(self.message) + (", by the engine's gate" if self.gate else "")


@dataclass(frozen=True, slots=True)
class SteerAction:
    """Steer the rest of the response."""

    steering: Steering
    on_refusal: StopAction | None = None
    """Carried out where the generation cannot be steered so; ``None``: it goes on unsteered."""

    def __str__(self) -> str:
        return f"{self.steering}" + ("" if self.on_refusal is None else f"; where that is refused, {self.on_refusal}")


@dataclass(frozen=True, slots=True)
class EscalateAction:
    """Mark the request for review, and keep its trace."""

    def __str__(self) -> str:
        return "escalate to review"


Action = AlertAction | SteerAction | StopAction | EscalateAction
