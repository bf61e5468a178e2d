"""Taps on modules of the shapes that decoders have."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")


from monitor.engine.taps import Taps
from monitor.errors import EngineError
from tests.harness.decoder import HIDDEN, Decoder, Leftover, Split


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Begin anew: TorchDynamo compiles the same code for only so many models."""
    torch._dynamo.reset()


class Summed(Split):
    """Returns the state."""

    def forward(self, hidden, _):
        return hidden + self.self_attn(hidden)


class Batched(Split):
    """Returns the states as a batch of one, as transformers' blocks do inside vLLM."""

    def forward(self, hidden, _):
        return hidden + self.self_attn(hidden if hidden.ndim == 3 else hidden[None])


class Streams(Split):
    """Keeps several residual streams."""

    def forward(self, hidden, _):
        return torch.stack([hidden, self.self_attn(hidden)])


class Triple(Split):
    """Leaves more than one addition to the next block."""

    def forward(self, hidden, residual):
        residual = hidden if residual is None else hidden + residual
        return self.self_attn(residual), residual, hidden


@pytest.mark.parametrize("block", [Split, Summed, Leftover, Batched])
@pytest.mark.parametrize("compiled", [False, True])
def test_reads_the_output_of_the_tapped_blocks(tiny_bundle, block, compiled):
    bundle = tiny_bundle()
    torch.manual_seed(0)
    model = Decoder(block)
    taps = Taps(model, bundle, max_tokens=16, entries=2)
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    with torch.no_grad():
        states = run(torch.randn(5, HIDDEN))
    for column, probe in enumerate(bundle.probes):
        reference = states[probe.layer].numpy() @ bundle.weight[column] + bundle.bias[column]
        np.testing.assert_allclose(taps.scores[:5, column], reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [Split, Summed, Leftover, Batched])
@pytest.mark.parametrize("compiled", [False, True])
def test_steers_what_later_blocks_read(tiny_bundle, block, compiled):
    bundle = tiny_bundle()
    torch.manual_seed(0)
    model, rows = Decoder(block), torch.randn(3, HIDDEN)
    with torch.no_grad():
        plain = model(rows.clone())
        taps = Taps(model, bundle, max_tokens=16, entries=2)
        taps.row_entry[1] = 0
        taps.layers[1].table[0, 0, 0] = 2.0
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        steered = run(rows.clone())
    change = (steered[1] - plain[1]).numpy()
    np.testing.assert_allclose(change[1], 2.0 * bundle.vectors[0], rtol=1e-4, atol=1e-5)
    assert not change[[0, 2]].any()
    assert not torch.equal(steered[2][1], plain[2][1])


def test_leaves_names_of_parameters_and_other_blocks_alone(tiny_bundle):
    model = Decoder()
    names = set(model.state_dict())
    Taps(model, tiny_bundle(), max_tokens=16, entries=2)
    assert set(model.state_dict()) == names
    assert [type(block).__name__ for block in model.layers] == ["Split", "TappedSplit", "TappedSplit", "Split"]


def test_a_layer_of_its_own_is_streamed_beside_the_bundle_s(tiny_bundle):
    torch.manual_seed(0)
    model = Decoder()
    taps = Taps(model, tiny_bundle(), max_tokens=16, entries=2, stream=[3])
    taps.layers[3].stream.fill_(1)
    with torch.no_grad():
        states = model(torch.randn(5, HIDDEN))
    assert torch.equal(taps.layers[3].states[:5], states[3])
    assert [len(taps.layers[layer].states) for layer in (1, 2, 3)] == [0, 0, 16]


def test_a_layer_that_the_model_does_not_have_cannot_be_streamed(tiny_bundle):
    with pytest.raises(EngineError, match=r"Layers \[4\] cannot be streamed: the model has 4"):
        Taps(Decoder(), tiny_bundle(), max_tokens=16, entries=2, stream=[3, 4])


@pytest.mark.parametrize("block", [Streams, Triple])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_block_without_one_state_a_token_is_refused(tiny_bundle, block, compiled):
    model = Decoder(block)
    Taps(model, tiny_bundle(), max_tokens=16, entries=2)
    tapped = model.layers[1]
    run = torch.compile(tapped, backend="aot_eager", fullgraph=True) if compiled else tapped
    with pytest.raises(RuntimeError, match=f"{block.__name__} does not return one state a token"):
        run(torch.randn(5, HIDDEN), None)


def test_a_block_with_a_forward_of_its_own_is_refused(tiny_bundle):
    model = Decoder()
    model.layers[1].forward = model.layers[1].forward
    with pytest.raises(EngineError, match="Split has a forward of its own"):
        Taps(model, tiny_bundle(), max_tokens=16, entries=2)
