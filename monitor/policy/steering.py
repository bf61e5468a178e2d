"""What a rule's steering says, checked against the bundle that has its probe and its vector."""

import math
from typing import Final

from monitor.configuration.yaml_mapping import suggest
from monitor.policy.deeds import Gate, SteerAction, StopAction
from monitor.policy.document import Place, ReleaseSpec, SteerSpec
from probes.bundle import Bundle, Probe
from probes.errors import BundleError
from probes.scoring.roles import Role

MAX_DOSE: Final = 1.0
"""The largest dose, either way. At 1 the vector is as long as the residual stream that it is added to: what
the model was about to say weighs no more than the correction, and beyond it the output is noise rather than a
safer answer."""

_OF_GATES: Final = ("hold", "release", "streak", "threshold", "half_life", "min_tokens")
"""Keys that only mean something with ``gate: true``."""


def steer_action(
    spec: SteerSpec, place: Place, probe: str, bundle: Bundle, max_dose: float | None = None
) -> SteerAction:
    """Check a steer action.

    Args:
        spec: What the file says.
        place: Where it does.
        probe: Of its rule.
        bundle: What has the probe and the vector.
        max_dose: The file's own limit; ``None``: it has none.

    Raises:
        PolicyError: It cannot be done.
    """
    vectors = [vector.name for vector in bundle.manifest.vectors]
    if spec.vector not in vectors:
        place.at("vector").fail(f"the bundle has no steering vector '{spec.vector}'", suggest(spec.vector, vectors))
    gate, closed = _gate(spec, place, bundle, probe), _closed(spec, place)
    if (spec.dose is not None) + spec.ablate + (spec.clamp is not None) != 1:
        if spec.dose is None and not spec.ablate and spec.clamp is None:
            place.at("dose").fail("is missing", "Write dose: -0.2, or ablate: true, or clamp: [low, high].")
        place.fail("has more than one of dose, ablate and clamp", "Write each as an action of its own.")
    if spec.dose is not None:
        if spec.dose == 0:
            place.at("dose").fail("0 changes nothing", "Remove the action, or give it a dose.")
        _require_dose(spec.vector, spec.dose, place.at("dose"), bundle, max_dose)
        return SteerAction(spec.vector, spec.dose, spec.tokens, gate=gate, closed=closed)
    if spec.clamp is None:
        return SteerAction(spec.vector, 0.0, spec.tokens, "ablate", gate=gate, closed=closed)
    low = -math.inf if spec.clamp[0] is None else spec.clamp[0]
    high = math.inf if spec.clamp[1] is None else spec.clamp[1]
    if low > high or not (math.isfinite(low) or math.isfinite(high)):
        place.at("clamp").fail(f"the range from {low:g} to {high:g} clamps nothing", "Give the lower bound first.")
    bound = max(abs(value) for value in (low, high) if math.isfinite(value))
    if bound:
        _require_dose(spec.vector, bound, place.at("clamp"), bundle, max_dose)
    return SteerAction(spec.vector, 0.0, spec.tokens, "clamp", low, high, gate, closed)


def _closed(spec: SteerSpec, place: Place) -> StopAction | None:
    """What is done instead of steering that is refused."""
    if spec.fail == "closed":
        return StopAction(spec.message or "")
    if spec.message is not None:
        place.at("message").fail(
            "is said where steering is refused and fail is closed", "Write fail: closed beside it."
        )
    return None


def _require_dose(vector: str, dose: float, place: Place, bundle: Bundle, max_dose: float | None) -> None:
    if abs(dose) > MAX_DOSE:
        place.fail(f"{dose:g} is beyond the limit of {MAX_DOSE:g}", "Begin with 0.1 to 0.3.")
    if max_dose is not None and abs(dose) > max_dose:
        place.fail(f"{dose:g} is beyond max_dose of this file, {max_dose:g}", "Lower one or raise the other.")
    try:
        bundle.vector(vector).require_dose(dose)
    except BundleError as error:
        place.fail(error.message.rstrip("."), error.fix)


def _gate(spec: SteerSpec, place: Place, bundle: Bundle, name: str) -> Gate | None:
    """How the engine is to decide, if it is."""
    if not spec.gate:
        for key in _OF_GATES:
            if getattr(spec, key) is not None:
                place.at(key).fail("is what a gate does", "Write gate: true beside it.")
        return None
    place = place.at("gate")
    probe = next((probe for probe in bundle.probes if probe.name == name), None)
    if probe is None:
        place.fail(f"probe '{name}' is read by a worker, and no gate of the engine reads it", "Remove gate: true.")
    own = probe.aggregate
    if own.window != 1 and spec.half_life is None:
        place.fail(
            f"probe '{name}' averages means of {own.window} scores, which no gate does",
            "Give it a half_life, and a threshold for that.",
        )
    if own.agree != own.agree_of and spec.streak is None:
        place.fail(
            f"probe '{name}' wants {own.agree} of {own.agree_of} averages to agree, which no gate does",
            "Give it a streak.",
        )
    threshold = probe.threshold if spec.threshold is None else spec.threshold
    return Gate(
        hold=spec.hold,
        release=None if spec.release is None else _release(spec.release, place, probe, threshold),
        release_streak=1 if spec.release is None else spec.release.streak,
        streak=spec.streak,
        threshold=spec.threshold,
        half_life=spec.half_life,
        min_tokens=spec.min_tokens,
    )


def _release(spec: ReleaseSpec, gate: Place, probe: Probe, threshold: float) -> float:
    """In logits."""
    place = Place(gate.file, (*gate.path[:-1], "release"))
    if (spec.margin is None) == (spec.logits is None):
        place.fail("must have one of margin and logits", "Write release: {margin: 1.0}.")
    if not probe.reads(Role.ASSISTANT):
        place.fail(f"probe '{probe.name}' reads no response, so that its average never falls", "Give a hold instead.")
    release = threshold - spec.margin if spec.margin is not None else spec.logits
    if release is None or release > threshold:
        place.at("logits").fail(f"{release:g} is above the threshold of {threshold:g}", "Release below it.")
    return release
