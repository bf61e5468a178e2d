"""Messages of a monitor to an engine, and the acts of steering that they and requests ask for."""

from typing import Annotated, Final, Literal

import msgspec

MESSAGE_CHARACTERS: Final = 4096
"""The longest message that a generation is stopped with."""


class Act(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Change of the projection of a row on a steering vector; see :class:`probes.steering.Operation`."""

    vector: str
    add: float = 0.0
    """Dose, relative to the residual stream's norm."""
    scale: float = 1.0
    """Factor of the projection; 0 takes it away."""
    low: float | None = None
    """It is at least this, before anything is added, in norms of the residual stream; ``None``: no bound."""
    high: float | None = None


class Admission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steering that a request asks for from its first token on: what ``vllm_xargs.plumbob`` says, as JSON."""

    acts: Annotated[list[Act], msgspec.Meta(min_length=1, max_length=8)]
    tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Release after this many tokens of the response; ``None``: at its end."""
    prompt: bool = False
    """The prompt's rows are steered as well, and the request shares none of the prefix cache."""


Selection = Literal["none", "last", "all"]
"""Rows of a step that are streamed: none, the last of each request, or all."""


class Steer(msgspec.Struct, frozen=True, tag="steer"):
    """Steer every response row of a request, from its next step on.

    Acts and orders compose, in no order, as in :func:`monitor.engine.steering.acts.compose`: doses add up, scales
    multiply, and ranges intersect. An engine refuses what goes beyond a vector's cap, or leaves a range empty.
    """

    engine_request_id: str
    acts: Annotated[list[Act], msgspec.Meta(min_length=1)]
    tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Release after this many tokens; ``None``: until the request ends."""
    id: str = ""
    """Of the rule's action: an engine applies an id once a request, so that a monitor that was started again and
    decides anew does not double the dose. Empty: applied each time."""
    lease: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Seconds after which the engine releases it by itself, from when the order arrived; ``None``: never."""
    max_dose: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Cap on all that may be done to the request at once along one of its vectors; ``None``: the bundle's alone."""


class Release(msgspec.Struct, frozen=True, tag="release"):
    """Stop steering a request."""

    engine_request_id: str
    id: str = ""
    """Of the order to undo; empty: all that were ordered for the request."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End a generation: the answer ends with the message and the end of sequence. From the engine's next step on, the
    model adds nothing to it.
    """

    engine_request_id: str
    message: str
    """Empty: nothing is said."""
    id: str = ""
    """Of the rule's action."""


class Stream(msgspec.Struct, frozen=True, tag="stream"):
    """Stream a layer's activations, from the next step on; the engine must have been started to allow it."""

    layer: int
    rows: Selection


class Arm(msgspec.Struct, frozen=True, tag="arm"):
    """Let the engine itself steer requests, from the very token at which a probe's running average crosses a threshold
    (:mod:`monitor.engine.ops.gate`), or stop them there; it needs no monitor for that. The engine must have been
    started with gates. A gate is for all requests; those in flight are judged from their next row on. It averages as
    its probe does, with the probe's half-life, least number of tokens, and averages in a row that must reach the
    threshold.

    A gate of the same id is tuned: averages go on. Where ``acts`` differ, it steers anew only when it opens again.
    """

    id: str
    probe: str
    acts: list[Act]
    """Empty where it stops."""
    threshold: float | None = None
    """In logits; ``None``: the probe's own."""
    release: float | None = None
    """It stays open until averages fall below this, in logits; ``None``: until the hold is over."""
    release_streak: Annotated[int, msgspec.Meta(ge=1)] = 1
    """So many averages in a row."""
    hold: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Rows steered after the last token over the threshold, at least; ``None``: none where there is a release, else
    until the request ends."""
    budget: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """The most rows steered of a request; ``None``: no limit."""
    lease: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Seconds after which the engine disarms it by itself, from when the order arrived; ``None``: never."""
    max_dose: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Cap on all that may be done to a request at once along one of its vectors; ``None``: the bundle's alone."""
    stop: str | None = None
    """It ends the generation with this message, before the token that follows leaves: where a token of the prompt opens
    the gate, nothing of the answer does. ``None``: it steers. Release, hold and budget mean nothing to it."""


class Disarm(msgspec.Struct, frozen=True, tag="disarm"):
    """Let a gate steer no more, from the next step on."""

    id: str


Order = Steer | Release | Stop | Stream | Arm | Disarm


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """The last frame that arrived."""

    sequence: int
