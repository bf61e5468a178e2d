"""Taps on modules of the shapes that decoders have."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from monitor.engine.taps import Taps, find_blocks  # noqa: E402
from monitor.errors import EngineError  # noqa: E402

HIDDEN, LAYERS = 8, 4


class Block(nn.Module):
    """Returns the pair (hidden, residual), or their sum."""

    def __init__(self, *, split: bool) -> None:
        super().__init__()
        self.self_attn = nn.Linear(HIDDEN, HIDDEN)
        self.split = split

    def forward(self, hidden, residual):
        if not self.split:
            return hidden + self.self_attn(hidden)
        residual = hidden if residual is None else hidden + residual
        return self.self_attn(residual), residual


class Decoder(nn.Module):
    def __init__(self, *, split: bool = True, layers: int = LAYERS) -> None:
        super().__init__()
        self.split = split
        self.layers = nn.ModuleList(Block(split=split) for _ in range(layers))

    def forward(self, hidden):
        residual, states = None, []
        for layer in self.layers:
            if self.split:
                hidden, residual = layer(hidden, residual)
                states.append(hidden + residual)
            else:
                hidden = layer(hidden, residual)
                states.append(hidden)
        return states


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("compiled", [False, True])
def test_reads_the_output_of_the_tapped_blocks(tiny_bundle, split, compiled):
    bundle = tiny_bundle()
    torch.manual_seed(0)
    model = Decoder(split=split)
    taps = Taps(model, bundle, max_tokens=16, entries=2)
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    with torch.no_grad():
        states = run(torch.randn(5, HIDDEN))
    for column, probe in enumerate(bundle.probes):
        reference = states[probe.layer].numpy() @ bundle.weight[column] + bundle.bias[column]
        np.testing.assert_allclose(taps.scores[:5, column], reference, rtol=1e-4, atol=1e-4)


def test_steers_what_later_blocks_read(tiny_bundle):
    bundle = tiny_bundle()
    torch.manual_seed(0)
    model, rows = Decoder(), torch.randn(3, HIDDEN)
    with torch.no_grad():
        plain = model(rows.clone())
        taps = Taps(model, bundle, max_tokens=16, entries=2)
        taps.row_entry[1] = 0
        taps.layers[1].table[0, 0, 0] = 2.0
        steered = model(rows.clone())
    change = (steered[1] - plain[1]).numpy()
    np.testing.assert_allclose(change[1], 2.0 * bundle.vectors[0], rtol=1e-4, atol=1e-5)
    assert not change[[0, 2]].any()
    assert not torch.equal(steered[2][1], plain[2][1])


def test_leaves_names_of_parameters_and_other_blocks_alone(tiny_bundle):
    model = Decoder()
    names = set(model.state_dict())
    Taps(model, tiny_bundle(), max_tokens=16, entries=2)
    assert set(model.state_dict()) == names
    assert [type(block).__name__ for block in model.layers] == ["Block", "TappedBlock", "TappedBlock", "Block"]


def test_refuses_a_model_without_the_blocks_that_the_bundle_knows():
    with pytest.raises(EngineError, match="Decoder has 0 lists of 7 decoder blocks"):
        find_blocks(Decoder(), 7)
    with pytest.raises(EngineError, match="2 lists"):
        find_blocks(nn.ModuleList([Decoder(), Decoder()]), LAYERS)
