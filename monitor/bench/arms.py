"""Arms of a benchmark, and the model that all of them run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from monitor.bench.monitor_process import Mode
from monitor.bench.result import STOCK

EngineKind = Literal["stock", "idle", "tapped"]
"""Without the plugin; with the plugin, but not the flag; tapped."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One arm: an engine, and the mode of the monitor beside it."""

    name: str
    engine: EngineKind
    mode: Mode | None = None
    """``None`` where the engine is not tapped."""
    killed: bool = False
    """The monitor is killed in the middle of each run."""


SETUPS: Final = {
    setup.name: setup
    for setup in (
        Setup(STOCK, "stock"),
        Setup("stock-again", "stock"),
        Setup("loaded-idle", "idle"),
        Setup("scoring", "tapped", Mode()),
        Setup("monitor-off", "tapped", Mode(listen=False)),
        Setup("steering", "tapped", Mode(steer=True)),
        Setup("streaming", "tapped", Mode(stream=True)),
        Setup("monitor-slow", "tapped", Mode(delay=0.5)),
        Setup("monitor-killed", "tapped", Mode(), killed=True),
    )
}
"""Arms that can be compared, by name."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is measured, and the probes that read it."""

    model: str = "demo"
    """A Hugging Face id, a local directory, or ``demo``."""
    shape: str | None = None
    """Instead of the model: a name of :data:`monitor.bench.shapes.SHAPES`."""
    dummy_weights: bool = False
    """Take only the configuration of the model."""
    bundle: Path | None = None
    """Probes to read it with; ``None``: random ones."""
    probes: int = 48
    """Number of random probes."""
    layers: Sequence[int] | None = None
    """Layers that they read; ``None``: at a quarter, half and three quarters."""
    allow_untested: bool = False
    """Take a vLLM that the tap was not tested on."""

    @property
    def name(self) -> str:
        """For people."""
        return self.shape or self.model

    @property
    def is_dummy(self) -> bool:
        """Say whether the weights are noise."""
        return self.dummy_weights or self.shape is not None
