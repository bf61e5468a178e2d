"""From a policy file to a policy that fits a bundle."""

import hashlib
from pathlib import Path
from typing import Final

from monitor.errors import PolicyError
from monitor.policy.document import ActionSpec, Place, PolicySpec, RuleSpec, SteerSpec, parse, suggest
from monitor.policy.rules import Action, AlertAction, Policy, Rule, SteerAction
from probes.bundle import Bundle

MAX_DOSE: Final = 1.0
"""The largest dose, either way. At 1 the vector is as long as the residual stream that it is added to: what
the model was about to say weighs no more than the correction, and beyond it the output is noise rather than a
safer answer."""


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
    rules = _rules(parse(text, name), Place(name, ("rules",)), bundle)
    return Policy(name=name, digest=hashlib.sha256(encoded).hexdigest(), rules=rules)


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
    return tuple(_rule(rule, place.at(index), bundle) for index, rule in enumerate(spec.rules))


def _rule(spec: RuleSpec, place: Place, bundle: Bundle) -> Rule:
    probe, probes = spec.when.probe, [probe.name for probe in bundle.all_probes]
    if probe not in probes:
        place.at("when", "probe").fail(f"the bundle has no probe '{probe}'", suggest(probe, probes))
    return Rule(
        name=spec.name,
        probe=probe,
        models=tuple(spec.when.models or ()),
        mode=spec.mode,
        actions=tuple(
            _action(action, place.at("actions", index), spec, bundle) for index, action in enumerate(spec.actions)
        ),
    )


def _action(spec: ActionSpec, place: Place, rule: RuleSpec, bundle: Bundle) -> Action:
    if spec.alert is not None and spec.steer is not None:
        place.fail("has two actions in one item", "Write each as an item of its own.")
    if spec.alert is not None:
        return AlertAction(spec.alert.severity)
    if spec.steer is None:
        place.fail("must be an alert or a steer action", "Write alert: {severity: warning}.")
    if rule.mode == "alert":
        place.at("steer").fail(
            f"rule '{rule.name}' has mode alert, which never changes a generation",
            "Write mode: enforce, or mode: shadow to see what it would do.",
        )
    return _steer(spec.steer, place.at("steer"), bundle)


def _steer(spec: SteerSpec, place: Place, bundle: Bundle) -> SteerAction:
    vectors = [vector.name for vector in bundle.manifest.vectors]
    if spec.vector not in vectors:
        place.at("vector").fail(f"the bundle has no steering vector '{spec.vector}'", suggest(spec.vector, vectors))
    if spec.dose == 0:
        place.at("dose").fail("0 changes nothing", "Remove the action, or give it a dose.")
    if abs(spec.dose) > MAX_DOSE:
        place.at("dose").fail(f"{spec.dose:g} is beyond the limit of {MAX_DOSE:g}", "Begin with 0.1 to 0.3.")
    return SteerAction(spec.vector, spec.dose, spec.tokens)
