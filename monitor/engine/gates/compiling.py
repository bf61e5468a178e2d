"""Orders to arm a gate, compiled to the numbers that the op reads, and refused where that cannot be done."""

import math

import numpy as np
from numpy.typing import NDArray

from monitor.engine.ops.gate_layout import FOREVER
from monitor.engine.ops.tap import NEUTRAL
from monitor.engine.steering.acts import entry_of
from monitor.errors import OrderError
from monitor.wire.orders import MESSAGE_CHARACTERS, Arm
from probes.bundle import Bundle, Probe
from probes.scoring.roles import Role


def gate_entries(bundle: Bundle, order: Arm) -> dict[int, NDArray[np.float32]]:
    """Compile the acts of a gate, for each layer that has vectors.

    Returns:
        Entries of the steering table, ``(V, 4)``, by layer.

    Raises:
        OrderError: The bundle has no such vector, its cap is below the dose, a vector is named twice, or what is to be
            done makes no sense.
    """
    if bool(order.acts) == (order.stop is not None):
        raise OrderError("gate", f"Gate '{order.id}' has to do one thing.", "Have it steer, or have it stop.")
    if order.stop is not None and len(order.stop) > MESSAGE_CHARACTERS:
        raise OrderError(
            "stop", f"A message of {len(order.stop)} characters is too long.", f"Use at most {MESSAGE_CHARACTERS}."
        )
    if len({act.vector for act in order.acts}) < len(order.acts):
        raise OrderError("gate", f"Gate '{order.id}' names a vector twice.", "Say once what to do to its projection.")
    rows = {layer: bundle.vector_rows(layer) for layer in bundle.layers}
    neutral = np.asarray(NEUTRAL, np.float32)
    entries = {layer: np.tile(neutral, (len(vectors), 1)) for layer, vectors in rows.items() if vectors}
    for act in order.acts:
        row, entry = entry_of(bundle, act)
        layer = bundle.manifest.vectors[row].layer
        entries[layer][rows[layer].index(row)] = entry
    return entries


def judgement(bundle: Bundle, order: Arm) -> tuple[list[int], list[float]]:
    """The gate's row of ``rules`` and of ``limits`` (:mod:`monitor.engine.ops.gate`).

    Raises:
        OrderError: The bundle has no such probe, or a gate cannot read it so.
    """
    column, probe = _probe(bundle, order.probe)
    own = probe.aggregate
    if own.window != 1:
        raise OrderError(
            "gate",
            f"Probe '{probe.name}' averages means of {own.window} scores, which no gate does.",
            "Let the monitor steer by it, without a gate.",
        )
    if own.agree != own.agree_of:
        raise OrderError(
            "gate",
            f"Probe '{probe.name}' wants {own.agree} of {own.agree_of} averages to agree, which no gate does.",
            "Let the monitor steer by it, without a gate.",
        )
    threshold = probe.threshold if order.threshold is None else order.threshold
    release = -math.inf if order.release is None else order.release
    if not math.isfinite(threshold) or math.isnan(release) or release > threshold:
        raise OrderError(
            "gate",
            f"Gate '{order.id}' has threshold {threshold:g} and release {release:g}.",
            "Give a finite threshold, and a release that is not above it.",
        )
    if order.release is not None and not probe.reads(Role.ASSISTANT):
        raise OrderError(
            "gate",
            f"Gate '{order.id}' has a release, but probe '{probe.name}' reads no response.",
            "Give it a hold instead.",
        )
    hold = order.hold if order.hold is not None else FOREVER if order.release is None else 0
    roles = sum(1 << role for role in Role if probe.reads(role))
    return (
        [
            probe.layer,
            column,
            roles,
            own.min_tokens,
            own.agree,
            0 if order.release is None else order.release_streak,
            min(hold, FOREVER),
            min(order.budget or FOREVER, FOREVER),
        ],
        [own.decay, threshold, release],
    )


def _probe(bundle: Bundle, name: str) -> tuple[int, Probe]:
    for column, probe in enumerate(bundle.probes):
        if probe.name == name:
            return column, probe
    known = ", ".join(probe.name for probe in bundle.probes) or "none"
    raise OrderError("gate", f"The engine reads no probe '{name}'.", f"It reads: {known}.")
