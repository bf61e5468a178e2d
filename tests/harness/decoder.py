"""Modules of the shapes that decoders have."""

import pytest

torch = pytest.importorskip("torch")
import pytest
from torch import nn

HIDDEN, LAYERS = 8, 4


class Split(nn.Module):
    """Returns the pair (hidden, residual), whose sum is the state."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden, residual):
        residual = hidden if residual is None else hidden + residual
        return self.self_attn(residual), residual


class Leftover(Split):
    """Returns the state, and a residual from its inside that nobody adds."""

    def forward(self, hidden, residual):
        residual = hidden
        return residual + self.self_attn(hidden), residual


class Decoder(nn.Module):
    def __init__(self, block: type[nn.Module] = Split) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(3, HIDDEN)
        self.layers = nn.ModuleList(block() for _ in range(LAYERS))

    def forward(self, hidden):
        residual, states = None, []
        for layer in self.layers:
            output = layer(hidden, residual)
            hidden, residual = output if isinstance(output, tuple) else (output, None)
            if residual is None or isinstance(layer, Leftover):
                states.append(hidden.reshape(-1, HIDDEN))
            else:
                states.append(hidden + residual)
        return states
