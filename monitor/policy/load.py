"""From a policy file to a policy that fits a bundle."""

import hashlib
from pathlib import Path
from typing import Final

from monitor.configuration.yaml_mapping import suggest
from monitor.errors import InvalidSteering, PolicyError
from monitor.policy.actions import Action, AlertAction, EscalateAction, SteerAction, StopAction
from monitor.policy.document import ActionSpec, Place, PolicySpec, ReleaseSpec, RuleSpec, SteerSpec, StopSpec, parse
from monitor.policy.rules import Policy, Rule
from monitor.policy.steering import MAX_DOSE, Gate, Steering, require_gate, require_valid
from probes.bundle import Bundle

_OF_GATES: Final = ("hold", "release", "threshold")
"""Keys of ``steer`` that only mean something with ``gate: true``."""


def load_policy(path: Path | str, bundle: Bundle) -> Policy:
    """Read a policy file and check it against a bundle.

    Args:
        path: The YAML file; :mod:`monitor.policy.document` shows its shape.
        bundle: What has the probes and vectors that the rules name.

    Raises:
        PolicyError: One line with the file, the place in it, what is wrong, and the nearest known name.
    """
    try:
        encoded = Path(path).read_bytes()
        text = encoded.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: cannot be read: {error}.", "Name a policy file with --policy.") from error
    name = str(path)
    spec = parse(text, name)
    if spec.max_dose is not None and spec.max_dose > MAX_DOSE:
        Place(name, ("max_dose",)).fail(f"{spec.max_dose:g} is beyond the limit of {MAX_DOSE:g}", "Lower it.")
    rules = _rules(spec, Place(name, ("rules",)), bundle)
    return Policy(name=name, digest=hashlib.sha256(encoded).hexdigest(), rules=rules, max_dose=spec.max_dose)


def default_policy(bundle: Bundle) -> Policy:
    """The policy where none is given: alert on every probe, change nothing."""
    return Policy(
        name="default",
        digest="",
        rules=tuple(
            Rule(
                name=f"default-{probe.name}",
                probe=probe.name,
                models=(),
                mode="alert",
                actions=(AlertAction(severity="warning"),),
            )
            for probe in bundle.all_probes
        ),
    )


def _rules(spec: PolicySpec, place: Place, bundle: Bundle) -> tuple[Rule, ...]:
    names = [rule.name for rule in spec.rules]
    for index, name in enumerate(names):
        if (first := names.index(name)) != index:
            place.at(index, "name").fail(f"'{name}' is already the name of rules[{first}]")
    return tuple(_rule(rule, place.at(index), bundle, spec.max_dose) for index, rule in enumerate(spec.rules))


def _rule(spec: RuleSpec, place: Place, bundle: Bundle, max_dose: float | None) -> Rule:
    probe, probes = spec.when.probe, [probe.name for probe in bundle.all_probes]
    if probe not in probes:
        place.at("when", "probe").fail(f"the bundle has no probe '{probe}'", suggest(probe, probes))
    return Rule(
        name=spec.name,
        probe=probe,
        models=tuple(spec.when.models or ()),
        mode=spec.mode,
        actions=tuple(
            _action(action, place.at("actions", index), spec, bundle, max_dose)
            for index, action in enumerate(spec.actions)
        ),
    )


def _action(spec: ActionSpec, place: Place, rule: RuleSpec, bundle: Bundle, max_dose: float | None) -> Action:
    chosen = [name for name in type(spec).model_fields if getattr(spec, name) is not None]
    if len(chosen) > 1:
        place.fail("has two actions in one item", "Write each as an item of its own.")
    if spec.alert is not None:
        return AlertAction(spec.alert.severity)
    if spec.escalate is not None:
        return EscalateAction()
    steer, stop = spec.steer, spec.stop
    if steer is None and stop is None:
        place.fail("must be an alert, steer, stop or escalate action", "Write alert: {severity: warning}.")
    if rule.mode == "alert":
        place.at(*chosen).fail(
            f"rule '{rule.name}' has mode alert, which never changes a generation",
            "Write mode: enforce, or mode: shadow to see what it would do.",
        )
    if steer is None:
        return _stop(stop or StopSpec(message=""), place.at("stop"), rule.when.probe, bundle)
    return _steer(steer, place.at("steer"), rule.when.probe, bundle, max_dose)


def _stop(spec: StopSpec, place: Place, probe: str, bundle: Bundle) -> StopAction:
    if spec.gate:
        try:
            require_gate(Gate(), probe, bundle)
        except InvalidSteering as error:
            place.at(*error.field).fail(error.message.rstrip("."), error.fix)
    return StopAction(spec.message, spec.gate)


def _steer(spec: SteerSpec, place: Place, probe: str, bundle: Bundle, max_dose: float | None) -> SteerAction:
    if (spec.dose is not None) + spec.ablate + (spec.clamp is not None) > 1:
        place.fail("has more than one of dose, ablate and clamp", "Write each as an action of its own.")
    low, high = spec.clamp or (None, None)
    steering = Steering(
        spec.vector,
        "ablate" if spec.ablate else "add" if spec.clamp is None else "clamp",
        dose=spec.dose,
        low=low,
        high=high,
        tokens=spec.tokens,
        gate=_gate(spec, place, probe, bundle),
    )
    try:
        require_valid(steering, probe, bundle, max_dose)
    except InvalidSteering as error:
        place.at(*error.field).fail(error.message.rstrip("."), error.fix)
    return SteerAction(steering, _on_refusal(spec, place))


def _gate(spec: SteerSpec, place: Place, probe: str, bundle: Bundle) -> Gate | None:
    if not spec.gate:
        for key in _OF_GATES:
            if getattr(spec, key) is not None:
                place.at(key).fail("is what a gate does", "Write gate: true beside it.")
        return None
    return Gate(
        hold=spec.hold,
        release=None if spec.release is None else _release(spec, spec.release, place.at("release"), probe, bundle),
        release_streak=1 if spec.release is None else spec.release.streak,
        threshold=spec.threshold,
    )


def _release(spec: SteerSpec, release: ReleaseSpec, place: Place, probe: str, bundle: Bundle) -> float | None:
    """In logits."""
    if (release.margin is None) == (release.logits is None):
        place.fail("must have one of margin and logits", "Write release: {margin: 1.0}.")
    if release.margin is None:
        return release.logits
    thresholds = {known.name: known.threshold for known in bundle.all_probes}
    return (thresholds[probe] if spec.threshold is None else spec.threshold) - release.margin


def _on_refusal(spec: SteerSpec, place: Place) -> StopAction | None:
    if spec.fail == "closed":
        return StopAction(spec.message or "")
    if spec.message is not None:
        place.at("message").fail(
            "is said where steering is refused and fail is closed", "Write fail: closed beside it."
        )
    return None
