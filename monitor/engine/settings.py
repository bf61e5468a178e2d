"""Settings under ``additional_config.plumbob``, split in two.

vLLM hashes ``additional_config`` into the key of its compiled artefacts. What shapes the graph has to be in that key
(a bundle refitted at the same path must not meet the old artefact), and what changes with every start must not be (or
every start would recompile). So the front process replaces what the operator wrote by a :class:`GraphKey`, and hands
the rest down to the engine's processes in an environment variable, as :class:`Settings`.
"""

import os
import uuid
from typing import Annotated, Any, Final, Literal

import msgspec

from monitor.engine.ops.gate_layout import MAX_GATES
from monitor.engine.ops.tap import OP_VERSION
from monitor.errors import EngineError
from probes.bundle import Bundle

KEY: Final = "plumbob"
ENVIRONMENT: Final = "PLUMBOB_ENGINE"


OnDrift = Literal["refuse", "shadow"]
"""Do not start, or start and let the monitor enforce nothing on what this engine's scores say."""


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings as the operator writes them under ``additional_config.plumbob``."""

    bundle: str
    """Directory of the bundle."""
    endpoint: str | None = None
    """Address on which the monitor listens, ``ipc://…``; ``None``: score, but send nothing."""
    allow_untested: bool = False
    """Start on a vLLM version that the tap was not tested on."""
    drift: OnDrift = "refuse"
    """Done when the self-test at start finds scores that are not the bundle's."""
    stream: list[int] = []
    """Layers whose activations may be streamed, beside those that the bundle's worker probes read."""
    stream_rows: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Rows that wait for a reader that falls behind, a layer; never fewer than two of the largest steps."""
    gates: Annotated[int, msgspec.Meta(ge=0, le=MAX_GATES)] = 0
    """Gates that may be armed at once; 0: the graph has none."""
    admission: list[str] = []
    """Vectors that a request may itself ask to be steered by, within the bundle's cap."""
    guard: bool = True
    """Release requests that steering makes repeat themselves (:mod:`monitor.engine.steering.guard`)."""
    engine: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{12}$")] | None = None
    """Id of this start, from whoever starts it and would know it again; never used twice. ``None``: one is made up."""


class Settings(msgspec.Struct, frozen=True):
    """Settings that an engine process needs, beside those that shape the graph."""

    bundle: str
    endpoint: str | None
    engine: str
    """Unique for each start."""
    drift: OnDrift
    stream: list[int]
    stream_rows: int
    gates: int = 0
    admission: list[str] = []
    guard: bool = True


class GraphKey(msgspec.Struct, frozen=True):
    """Settings that shape the compiled graph."""

    bundle: str
    """Digest of the bundle."""
    layers: list[int]
    probes: list[int]
    """Probes at each tapped layer."""
    vectors: list[int]
    """Steering vectors at each tapped layer."""
    stream: list[int]
    """Layers whose activations may be streamed."""
    gates: int = 0
    """Gates that may be armed at once."""
    op: int = OP_VERSION


def read_wanted(additional_config: Any) -> Wanted | None:
    """Read the settings that the operator wrote; ``None`` where Plumbob is not switched on, or was already taken over.

    Raises:
        EngineError: It is malformed.
    """
    if not isinstance(additional_config, dict) or KEY not in additional_config:
        return None
    written = additional_config[KEY]
    if isinstance(written, dict) and "op" in written:
        return None
    try:
        return msgspec.convert(written, Wanted)
    except msgspec.ValidationError as error:
        raise EngineError(
            f"additional_config.plumbob is malformed: {error}.",
            'Write it as {"plumbob": {"bundle": "DIRECTORY", "endpoint": "ipc://SOCKET"}}.',
        ) from error


def take_over(wanted: Wanted, bundle: Bundle) -> dict[str, Any]:
    """Hand the settings to the engine's processes, and return what stays in ``additional_config.plumbob``.

    Raises:
        BundleError: The bundle has no vector of a name that requests may choose, or no cap for it.
    """
    for name in wanted.admission:
        bundle.vector(name).require_cap()
    settings = Settings(
        bundle=str(bundle.path),
        endpoint=wanted.endpoint,
        engine=wanted.engine or uuid.uuid4().hex[:12],
        drift=wanted.drift,
        stream=sorted({*wanted.stream, *(probe.layer for probe in bundle.manifest.worker_probes)}),
        stream_rows=wanted.stream_rows,
        gates=wanted.gates,
        admission=wanted.admission,
        guard=wanted.guard,
    )
    os.environ[ENVIRONMENT] = msgspec.json.encode(settings).decode()
    key = GraphKey(
        bundle=bundle.digest,
        layers=bundle.layers,
        probes=[len(bundle.probe_columns(layer)) for layer in bundle.layers],
        vectors=[len(bundle.vector_rows(layer)) for layer in bundle.layers],
        stream=settings.stream,
        gates=settings.gates,
    )
    return msgspec.to_builtins(key)


def switched_on(vllm_config: Any) -> bool:
    """Return True for an engine that is to be tapped."""
    additional = vllm_config.additional_config
    return isinstance(additional, dict) and KEY in additional


def inherited() -> Settings:
    """The settings that the front process handed down.

    Raises:
        EngineError: There are none: this process was started without the front process.
    """
    encoded = os.environ.get(ENVIRONMENT)
    if encoded is None:
        raise EngineError(
            f"{ENVIRONMENT} is not set in an engine process.", "Start the engine with vllm serve or LLM()."
        )
    return msgspec.json.decode(encoded, type=Settings)
