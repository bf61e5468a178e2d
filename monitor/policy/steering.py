"""Steering as one value, whether a policy file or an operator asks for it, and its check against the bundle.

A :class:`Steering` is made as it was written, by the parser of policy files and by the gRPC handler alike;
:func:`require_valid` says what is wrong with it. What it becomes on the wire is :mod:`monitor.interventions.orders`.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

from monitor.configuration.yaml_mapping import suggest
from monitor.errors import InvalidSteering
from monitor.events import words
from probes.bundle import Bundle, Probe
from probes.errors import BundleError
from probes.scoring.roles import Role

MAX_DOSE: Final = 1.0
"""The largest dose, either way. At 1 the vector is as long as the residual stream that it is added to: what
the model was about to say weighs no more than the correction, and beyond it the output is noise rather than a
safer answer."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Decision by the engine itself, at the very token, on the probe's own running average."""

    hold: int | None = None
    """Tokens steered after the last one over the threshold, at least; ``None``: none where there is a release, else
    until the request ends."""
    release: float | None = None
    """Steering goes on until averages fall below this, in logits; ``None``: until the hold is over."""
    release_streak: int = 1
    """So many averages in a row."""
    threshold: float | None = None
    """In logits; ``None``: the probe's, so that the gate opens where the probe fires."""

    def __str__(self) -> str:
        held = "" if self.hold is None else f" holding {self.hold} tokens"
        until = "" if self.release is None else f" until below {self.release:g}"
        return f"by the engine's gate{held}{until}"


@dataclass(frozen=True, slots=True)
class Steering:
    """Change the projection of the rest of a response on a steering vector.

    Doses and bounds are relative to the median norm of the residual stream at the vector's layer.
    """

    vector: str
    operation: Literal["add", "ablate", "clamp"] = "add"
    dose: float | None = None
    """Of ``add``; negative steers away from the concept."""
    low: float | None = None
    """Of ``clamp``; ``None``: no bound."""
    high: float | None = None
    """Of ``clamp``; ``None``: no bound."""
    tokens: int | None = None
    """Release after this many tokens; ``None``: at the end of the request."""
    gate: Gate | None = None
    """``None``: the monitor orders it, from the request's next step on."""

    def __str__(self) -> str:
        scale = 0.0 if self.operation == "ablate" else 1.0
        what = words.steering(self.vector, add=self.dose or 0.0, scale=scale, low=self.low, high=self.high)
        return f"{what} {words.span(self.tokens)}" + ("" if self.gate is None else f", {self.gate}")


def require_valid(steering: Steering, probe: str, bundle: Bundle, max_dose: float | None = None) -> None:
    """Check steering against the bundle that has its vector.

    Args:
        steering: As it was written.
        probe: Name of the probe that its gate reads; of no meaning without a gate.
        bundle: Has the probe and the vector, and caps its dose.
        max_dose: The policy's own limit; ``None``: it has none.

    Raises:
        InvalidSteering: It cannot be done; the error names the field.
    """
    vectors = [vector.name for vector in bundle.manifest.vectors]
    if steering.vector not in vectors:
        name = steering.vector[:100]
        raise InvalidSteering(("vector",), f"the bundle has no steering vector '{name}'", suggest(name, vectors))
    _require_at_least(1, steering.tokens, "tokens")
    if steering.gate is not None:
        require_gate(steering.gate, probe, bundle)
    if steering.operation == "add":
        _require_dose(steering, bundle, max_dose)
    elif steering.operation == "clamp":
        _require_range(steering, bundle, max_dose)


def _require_dose(steering: Steering, bundle: Bundle, max_dose: float | None) -> None:
    if steering.dose is None:
        raise InvalidSteering(("dose",), "is missing", "Write dose: -0.2, or ablate: true, or clamp: [low, high].")
    _require_finite(steering.dose, "dose")
    if steering.dose == 0:
        raise InvalidSteering(("dose",), "0 changes nothing", "Remove the action, or give it a dose.")
    _require_within_caps(steering.vector, steering.dose, "dose", bundle, max_dose)


def _require_range(steering: Steering, bundle: Bundle, max_dose: float | None) -> None:
    bounds = [bound for bound in (steering.low, steering.high) if bound is not None]
    for bound in bounds:
        _require_finite(bound, "clamp")
    low = -math.inf if steering.low is None else steering.low
    high = math.inf if steering.high is None else steering.high
    if not bounds or low > high:
        said = f"the range from {low:g} to {high:g} clamps nothing"
        raise InvalidSteering(("clamp",), said, "Give the lower bound first.")
    if farthest := max(map(abs, bounds)):
        _require_within_caps(steering.vector, farthest, "clamp", bundle, max_dose)


def _require_within_caps(vector: str, dose: float, field: str, bundle: Bundle, max_dose: float | None) -> None:
    if abs(dose) > MAX_DOSE:
        raise InvalidSteering((field,), f"{dose:g} is beyond the limit of {MAX_DOSE:g}", "Begin with 0.1 to 0.3.")
    if max_dose is not None and abs(dose) > max_dose:
        raise InvalidSteering(
            (field,), f"{dose:g} is beyond max_dose of this file, {max_dose:g}", "Lower one or raise the other."
        )
    try:
        bundle.vector(vector).require_dose(dose)
    except BundleError as error:
        raise InvalidSteering((field,), error.message, error.fix) from error


def require_gate(gate: Gate, name: str, bundle: Bundle) -> None:
    """Check that an engine can judge by a gate.

    Args:
        gate: As it was written.
        name: Of the probe that it reads.
        bundle: Has the probe.

    Raises:
        InvalidSteering: It cannot; the error names the field.
    """
    probe = next((probe for probe in bundle.probes if probe.name == name), None)
    if probe is None:
        raise InvalidSteering(
            ("gate",), f"probe '{name}' is read by a worker, and no gate of the engine reads it", "Remove gate: true."
        )
    _require_at_least(0, gate.hold, "hold")
    _require_at_least(1, gate.release_streak, "release", "streak")
    if gate.threshold is not None:
        _require_finite(gate.threshold, "threshold")
    own = probe.aggregate
    if own.window != 1:
        raise InvalidSteering(
            ("gate",),
            f"probe '{name}' averages means of {own.window} scores, which no gate does",
            "Remove gate: true, and the monitor acts from the next step on.",
        )
    if own.agree != own.agree_of:
        raise InvalidSteering(
            ("gate",),
            f"probe '{name}' wants {own.agree} of {own.agree_of} averages to agree, which no gate does",
            "Remove gate: true, and the monitor acts from the next step on.",
        )
    if gate.release is not None:
        _require_release(gate.release, probe, probe.threshold if gate.threshold is None else gate.threshold)


def _require_release(release: float, probe: Probe, threshold: float) -> None:
    if not probe.reads(Role.ASSISTANT):
        raise InvalidSteering(
            ("release",),
            f"probe '{probe.name}' reads no response, so that its average never falls",
            "Give a hold instead.",
        )
    _require_finite(release, "release", "logits")
    if release > threshold:
        raise InvalidSteering(
            ("release", "logits"), f"{release:g} is above the threshold of {threshold:g}", "Release below it."
        )


def _require_at_least(least: int, number: int | None, *field: str) -> None:
    if number is not None and number < least:
        raise InvalidSteering(field, f"must be greater than or equal to {least}, not {number}")


def _require_finite(number: float, *field: str) -> None:
    if not math.isfinite(number):
        raise InvalidSteering(field, "must be a finite number")
