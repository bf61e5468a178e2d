"""Bundles for a benchmark's tapped engine: random probes, and one that fires at once.

The cost of a probe does not depend on what it has learned, so random ones of unit weight stand in for any other. Their
thresholds are out of reach, except for the trigger's, which is below everything: the policy that steers every response
hangs on it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from monitor import __version__
from monitor.policy import Policy, Rule, SteerAction, Steering
from probes.bundle import (
    MAX_PROBES_PER_LAYER,
    Bundle,
    Calibration,
    Evaluation,
    ModelIdentity,
    Probe,
    Vector,
    save_bundle,
)
from probes.errors import BundleError
from probes.scoring.aggregate import Aggregate
from probes.scoring.roles import Markers, Role

_ALL_ROLES: Final = [role.name.lower() for role in Role]
_OUT_OF_REACH: Final = 1e9
_DOSE: Final = 1e-3
"""Too little to matter, and not nothing: a row that is steered by zero might cost less."""


def default_layers(layers: int) -> list[int]:
    """Choose the layers a quarter, half and three quarters into a model.

    Args:
        layers: How many blocks it has.
    """
    return sorted({layers * quarter // 4 for quarter in (1, 2, 3)})


def synthetic_bundle(
    path: Path, model: ModelIdentity, layers: Sequence[int], probes: int, *, trigger: bool = True
) -> Bundle:
    """Write a bundle of random probes, spread evenly over layers, and one steering vector at the last of these.

    Args:
        path: Its directory.
        model: That it is bound to.
        layers: To tap.
        probes: In all.
        trigger: Make the first one the trigger.

    Raises:
        BundleError: The model has no such layer, or there are more probes than a layer takes.
    """
    layers = sorted(set(layers))
    wrong = [layer for layer in layers if not 0 <= layer < model.layers]
    if wrong or not layers:
        raise BundleError(
            f"The model has layers 0 to {model.layers - 1}, not {', '.join(map(str, wrong)) or 'none'}.",
            "Change --layers.",
        )
    if not len(layers) <= probes <= MAX_PROBES_PER_LAYER * len(layers):
        raise BundleError(
            f"{probes} probes do not fit {len(layers)} layers, which take 1 to {MAX_PROBES_PER_LAYER} each.",
            "Change --probes or --layers.",
        )
    random = np.random.default_rng(0)
    spread = [layers[index * len(layers) // probes] for index in range(probes)]
    made = [(_probe(f"random-{index}", layer), _unit(random, model.hidden), 0.0) for index, layer in enumerate(spread)]
    vector = Vector("random", layers[-1], hidden_norm=float(np.sqrt(model.hidden)))
    return save_bundle(
        path,
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        model=model,
        markers=Markers(),
        probes=[(_trigger(made[0][0]), *made[0][1:]), *made[1:]] if trigger else made,
        vectors=[(vector, _unit(random, model.hidden))],
    )


def with_trigger(path: Path, bundle: Bundle) -> Bundle:
    """Write a copy of a bundle whose first probe is the trigger.

    Args:
        path: Of the copy.
        bundle: With a probe, at least.
    """
    manifest = bundle.manifest
    return save_bundle(
        path,
        version=__version__,
        created=manifest.created,
        model=manifest.model,
        markers=manifest.markers,
        probes=[
            (probe if column else _trigger(probe), bundle.weight[column], float(bundle.bias[column]))
            for column, probe in enumerate(bundle.probes)
        ],
        vectors=[(vector, bundle.vectors[row]) for row, vector in enumerate(manifest.vectors)],
        canaries=bundle.canaries,
        worker_probes=bundle.worker_probes,
    )


def steering_policy(bundle: Bundle) -> Policy:
    """Make the policy that steers every response, from the moment the trigger has fired.

    Raises:
        BundleError: There is no vector to steer with.
    """
    if not bundle.manifest.vectors:
        raise BundleError(f"Bundle {bundle.path} has no steering vector.", "Leave steering out with --arms.")
    action = SteerAction(Steering(bundle.manifest.vectors[0].name, dose=_DOSE))
    rule = Rule("steer-all", bundle.probes[0].name, models=(), mode="enforce", actions=(action,))
    return Policy(name="steer every response", digest="", rules=(rule,))


def streamed_layer(bundle: Bundle) -> int:
    """Choose the layer whose activations are streamed: in the middle of those that are tapped."""
    return bundle.layers[len(bundle.layers) // 2]


def idle_policy() -> Policy:
    """Make the policy that does nothing."""
    return Policy(name="do nothing", digest="", rules=())


def _probe(name: str, layer: int) -> Probe:
    return Probe(
        name=name,
        layer=layer,
        roles=_ALL_ROLES,
        threshold=_OUT_OF_REACH,
        aggregate=Aggregate(),
        calibration=Calibration(0.0, 0, 0, (0.0, 1.0)),
        evaluation=Evaluation(0, 0, 0.5, 0.5, 0.0),
    )


def _trigger(probe: Probe) -> Probe:
    return msgspec.structs.replace(
        probe, roles=_ALL_ROLES, threshold=-_OUT_OF_REACH, aggregate=Aggregate(half_life=1.0, min_tokens=1)
    )


def _unit(random: np.random.Generator, hidden: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    direction = random.normal(size=hidden)
    return direction / np.linalg.norm(direction)
