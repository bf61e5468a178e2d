"""Taps: the fused op behind chosen decoder blocks, found by structure.

A block returns either the pair ``(hidden, residual)``, whose sum is the state, or the state itself
(:mod:`probes.blocks`). A tapped block gets a subclass of its own class whose ``forward`` calls the op on what the
block returns, so that Dynamo traces it like any other forward, parameters keep their names, and blocks that are not
tapped are not touched at all.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monitor.engine.op import NEUTRAL
from monitor.errors import EngineError
from probes.blocks import adds_residual, find_blocks
from probes.bundle import Bundle


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


class Taps:
    """The taps of one model, with the buffers that they share.

    Args:
        model: The model, weights loaded, not yet compiled.
        bundle: What to read and how to steer.
        max_tokens: The most rows of a step.
        entries: Entries of the steering table.
        stream: Layers that can be streamed, beside those of the bundle or among them.
        dtype: Of streamed states.

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
            )
            self.layers[layer] = tap
            self._install(blocks[layer], tap)

    def _install(self, block: nn.Module, tap: LayerTap) -> None:
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
        block.__class__ = _tapped(type(block), adds_residual(block))


@cache
def _tapped(block_class: type[nn.Module], adds: bool) -> type[nn.Module]:
    """The block's class, with the op behind its forward.

    Args:
        block_class: The class.
        adds: The state is the sum of what a block returns as ``(hidden, residual)``.
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
        )
        return output

    return type(f"Tapped{block_class.__name__}", (block_class,), {"forward": forward})
