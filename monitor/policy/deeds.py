"""What a rule may do, as values; each says itself in words."""

import math
from dataclasses import dataclass

from monitor.events import Operation, Severity


@dataclass(frozen=True, slots=True)
class AlertAction:
    """Tell people."""

    severity: Severity

    def __str__(self) -> str:
        return f"alert with severity {self.severity}"


@dataclass(frozen=True, slots=True)
class Gate:
    """How the engine itself decides, at the very token; ``None`` of a number: the probe's own."""

    hold: int | None = None
    """Tokens steered after the last one over the threshold, at least; ``None``: none where there is a release, else
    until the request ends."""
    release: float | None = None
    """Steering goes on until averages fall below this, in logits; ``None``: until the hold is over."""
    release_streak: int = 1
    """So many averages in a row."""
    streak: int | None = None
    """Averages in a row that must reach the threshold."""
    threshold: float | None = None
    """In logits."""
    half_life: float | None = None
    """Of the average, in tokens."""
    min_tokens: int | None = None
    """Tokens read before it may open."""

    @property
    def judges_as_the_probe(self) -> bool:
        """Whether it opens where the probe fires."""
        return (self.streak, self.threshold, self.half_life, self.min_tokens) == (None, None, None, None)

    def __str__(self) -> str:
        held = "" if self.hold is None else f" holding {self.hold} tokens"
        until = "" if self.release is None else f" until below {self.release:g}"
        return f"by the engine's gate{held}{until}"


@dataclass(frozen=True, slots=True)
class StopAction:
    """End the generation with a message."""

    message: str

    def __str__(self) -> str:
        return "stop with the policy's message" if self.message else "stop"


@dataclass(frozen=True, slots=True)
class SteerAction:
    """Change the projection of the rest of the response on a steering vector."""

    vector: str
    dose: float
    """Relative to the norm of the residual stream; negative steers away from the concept. 0 but for ``add``."""
    tokens: int | None
    """Release after this many tokens; ``None``: at the end of the request."""
    operation: Operation = "add"
    low: float = -math.inf
    """Of ``clamp``, in norms of the residual stream."""
    high: float = math.inf
    gate: Gate | None = None
    """``None``: the monitor orders it, from the request's next step on."""
    closed: StopAction | None = None
    """Done to a generation that cannot be steered so; ``None``: it goes on unsteered."""

    def __str__(self) -> str:
        until = "until the request ends" if self.tokens is None else f"for {self.tokens} tokens"
        match self.operation:
            case "ablate":
                what = f"ablate {self.vector}"
            case "clamp":
                what = f"clamp {self.vector} to {self.low:g}..{self.high:g}"
            case _:
                what = f"steer {self.vector} at dose {self.dose:g}"
        by = "" if self.gate is None else f", {self.gate}"
        return f"{what} {until}{by}" + ("" if self.closed is None else f"; where that is refused, {self.closed}")


@dataclass(frozen=True, slots=True)
class EscalateAction:
    """Mark the request for review, and keep its trace."""

    def __str__(self) -> str:
        return "escalate to review"


Action = AlertAction | SteerAction | StopAction | EscalateAction
