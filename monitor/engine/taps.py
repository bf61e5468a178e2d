"""Taps: the fused op behind chosen decoder blocks, found by structure.

A block returns either the pair ``(hidden, residual)``, whose sum is the state, or the state itself
(:mod:`probes.models.blocks`). A tapped block gets a subclass of its own class whose ``forward`` calls the op on what
the block returns, so that Dynamo traces it like any other forward, parameters keep their names, and blocks that are not
tapped are not touched at all.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from monitor.engine.ops.gate_layout import Counter, Limit, Rule
from monitor.engine.ops.tap import NEUTRAL
from monitor.errors import EngineError
from probes.bundle import Bundle
from probes.models.blocks import adds_residual, find_blocks
from probes.scoring.roles import Role

Gating = Literal["steers", "judges"]
"""Its tap steers what gates say; gates read its probes, too."""


@dataclass(frozen=True, slots=True)
class LayerTap:
    """The buffers of one tapped layer; arguments of the op."""

    weights: Tensor
    bias: Tensor
    table: Tensor
    vectors: Tensor
    column: int
    states: Tensor
    """The last step's states, where the layer can be streamed; else without rows."""
    stream: Tensor
    gate_table: Tensor | None = None
    """Entries of each gate at this layer, ``(gates, V, 4)``; ``None`` where the engine has no gates."""
    gated: Tensor | None = None
    """``(1,)``, int32: not zero while a gate reads this layer; ``None`` where none can."""


@dataclass(frozen=True, slots=True)
class GateBuffers:
    """Buffers that the gates of all layers share; :func:`monitor.engine.ops.gate.gate` tells their shapes."""

    row_slot: Tensor
    row_position: Tensor
    row_role: Tensor
    row_gates: Tensor
    row_average: Tensor
    limits: Tensor
    rules: Tensor
    averages: Tensor
    counters: Tensor

    @classmethod
    def allocate(cls, gates: int, slots: int, max_tokens: int, device: torch.device) -> Self:
        """Buffers of gates that are all free.

        Args:
            gates: How many.
            slots: Requests at once.
            max_tokens: The most rows of a step.
            device: Where they are.
        """

        def filled(value: float, dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        rules = filled(0, torch.int32, gates, len(Rule))
        rules[:, Rule.LAYER] = -1
        return cls(
            row_slot=filled(-1, torch.int32, max_tokens),
            row_position=filled(0, torch.int32, max_tokens),
            row_role=filled(Role.ASSISTANT, torch.int8, max_tokens),
            row_gates=filled(0, torch.int8, max_tokens, gates),
            row_average=filled(0.0, torch.float32, max_tokens, gates),
            limits=filled(0.0, torch.float64, gates, len(Limit)),
            rules=rules,
            averages=filled(0.0, torch.float64, slots, gates, 2),
            counters=filled(0, torch.int32, slots, gates, len(Counter)),
        )


class Taps:
    """The taps of one model, with the buffers that they share.

    Args:
        model: The model, weights loaded, not yet compiled.
        bundle: What to read and how to steer.
        max_tokens: The most rows of a step.
        entries: Entries of the steering table.
        stream: Layers that can be streamed, beside those of the bundle or among them.
        dtype: Of streamed states.
        gates: The most gates that are armed at once; with none, their op is not in the graph.
        slots: Requests that gates may judge at once.

    Raises:
        ModelError: The model has no decoder of the bundle's shape.
        EngineError: It has no layer that is to be streamed, or a block that cannot be tapped.
    """

    def __init__(
        self,
        model: nn.Module,
        bundle: Bundle,
        max_tokens: int,
        entries: int,
        *,
        stream: Collection[int] = (),
        dtype: torch.dtype = torch.float32,
        gates: int = 0,
        slots: int = 0,
    ) -> None:
        blocks = find_blocks(model, bundle.manifest.model.layers)
        if beyond := sorted(set(stream) - set(range(len(blocks)))):
            raise EngineError(
                f"Layers {beyond} cannot be streamed: the model has {len(blocks)}.", f"Name 0 to {len(blocks) - 1}."
            )
        hidden = bundle.manifest.model.hidden
        device = next(model.parameters()).device
        self.row_entry = torch.full((max_tokens,), -1, dtype=torch.int32, device=device)
        """The steering table's entry for each row of the step, −1 for none."""
        self.scores = torch.zeros(max_tokens, len(bundle.probes), device=device)
        """Token-major and contiguous, all layers in one: ``(max_tokens, probes)``."""
        self.gates = GateBuffers.allocate(gates, slots, max_tokens, device) if gates else None
        """``None``: the engine has no gates."""
        self.layers: dict[int, LayerTap] = {}
        for layer in sorted({*bundle.layers, *stream}):
            columns, rows = bundle.probe_columns(layer), bundle.vector_rows(layer)
            tap = LayerTap(
                # A unit vector's own direction reads its projection, without a bias.
                weights=torch.from_numpy(np.concatenate([bundle.weight[columns], bundle.vectors[rows]])).to(device),
                bias=torch.from_numpy(np.append(bundle.bias[columns], np.zeros(len(rows), np.float32))).to(device),
                table=torch.tensor(NEUTRAL, device=device).repeat(entries, len(rows), 1),
                vectors=torch.from_numpy(bundle.vectors[rows]).to(device),
                column=columns[0] if columns else 0,
                states=torch.zeros(max_tokens if layer in stream else 0, hidden, dtype=dtype, device=device),
                stream=torch.zeros(1, dtype=torch.int32, device=device),
                gate_table=torch.tensor(NEUTRAL, device=device).repeat(gates, len(rows), 1) if gates else None,
                gated=torch.zeros(1, dtype=torch.int32, device=device) if gates and columns else None,
            )
            self.layers[layer] = tap
            self._install(blocks[layer], layer, tap)

    def _install(self, block: nn.Module, layer: int, tap: LayerTap) -> None:
        if "forward" in vars(block):
            # It would be called instead of the class's, and the tap never.
            raise EngineError(
                f"{type(block).__name__} has a forward of its own, as CPU offloading gives it.", "Switch that off."
            )
        # Buffers, so that the compiler sees inputs and not constants; not persistent, so that no checkpoint has them.
        for name in ("weights", "bias", "table", "vectors", "states", "stream"):
            block.register_buffer(f"plumbob_{name}", getattr(tap, name), persistent=False)
        block.register_buffer("plumbob_row_entry", self.row_entry, persistent=False)
        block.register_buffer("plumbob_scores", self.scores, persistent=False)
        block.plumbob_column = tap.column  # type: ignore[assignment]
        block.plumbob_layer = layer  # type: ignore[assignment]
        for name in ("gate_table", "gated"):
            if (buffer := getattr(tap, name)) is not None:
                block.register_buffer(f"plumbob_{name}", buffer, persistent=False)
        if self.gates is not None:
            for field in fields(self.gates):
                block.register_buffer(f"plumbob_{field.name}", getattr(self.gates, field.name), persistent=False)
        gating = "judges" if tap.gated is not None else "steers" if self.gates is not None else None
        block.__class__ = _tapped(type(block), adds_residual(block), gating)


@cache
def _tapped(block_class: type[nn.Module], adds: bool, gating: Gating | None) -> type[nn.Module]:
    """The block's class, with the op behind its forward.

    Args:
        block_class: The class.
        adds: The state is the sum of what a block returns as ``(hidden, residual)``.
        gating: What gates have to do with it; ``None``: the engine has none.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = block_class.forward(self, *args, **kwargs)
        parts = output if isinstance(output, tuple) else (output,)
        hidden, residual = parts[0], parts[1] if adds and len(parts) == 2 else None
        if hidden.ndim == 3 and hidden.shape[0] == 1:
            # Blocks of transformers, which vLLM runs where it has none of its own, see the rows as a batch of one.
            hidden = hidden[0]
        if hidden.ndim != 2 or len(parts) > 2:
            raise RuntimeError(f"{block_class.__name__} does not return one state a token; it cannot be tapped")
        torch.ops.plumbob.tap(
            hidden,
            residual,
            self.plumbob_weights,
            self.plumbob_bias,
            self.plumbob_row_entry,
            self.plumbob_table,
            self.plumbob_vectors,
            self.plumbob_scores,
            self.plumbob_column,
            self.plumbob_states,
            self.plumbob_stream,
            *(() if gating is None else (self.plumbob_row_gates, self.plumbob_gate_table)),
        )
        if gating == "judges":
            torch.ops.plumbob.gate(
                self.plumbob_scores,
                self.plumbob_row_slot,
                self.plumbob_row_position,
                self.plumbob_row_role,
                self.plumbob_gated,
                self.plumbob_limits,
                self.plumbob_rules,
                self.plumbob_averages,
                self.plumbob_counters,
                self.plumbob_row_gates,
                self.plumbob_row_average,
                hidden.shape[0],
                self.plumbob_layer,
            )
        return output

    return type(f"Tapped{block_class.__name__}", (block_class,), {"forward": forward})
