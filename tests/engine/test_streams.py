"""Streaming for the self-test: what is read is what was written, and what was selected before is selected again."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from monitor.engine.streams import Streams

ROWS, HIDDEN = 4, 3
LAYERS = (2, 5)


@pytest.fixture
def layers():
    """The buffers of two layers that can be streamed, and of one that cannot."""
    return {
        layer: SimpleNamespace(
            states=torch.zeros(ROWS if layer in LAYERS else 0, HIDDEN, dtype=torch.bfloat16),
            stream=torch.zeros(1, dtype=torch.int32),
        )
        for layer in (*LAYERS, 7)
    }


@pytest.fixture
def streams(layers, request):
    made = Streams(
        SimpleNamespace(layers=layers), f"test{os.getpid()}", None, rows=0, exports=getattr(request, "param", True)
    )
    yield made
    made.close()


def on(layers) -> dict[int, bool]:
    """Whether the op copies each layer's states."""
    return {layer: bool(tap.stream) for layer, tap in layers.items()}


def test_every_row_of_every_layer_is_read_back_as_it_was_written(streams, layers):
    random = np.random.default_rng(0)
    with streams.sampled() as read:
        assert on(layers) == {2: True, 5: True, 7: False}
        # More steps than the ring holds rows, of all sizes.
        for rows in (4, 1, 3, 2, 4, 1, 1):
            written = {layer: torch.from_numpy(random.normal(size=(rows, HIDDEN))).bfloat16() for layer in LAYERS}
            for layer, states in written.items():
                layers[layer].states[:rows] = states
            found = read(rows)
            assert sorted(found) == list(LAYERS)
            for layer, states in written.items():
                assert found[layer].dtype == np.float32
                np.testing.assert_array_equal(found[layer], states.float().numpy())


@pytest.mark.parametrize("selected", [{}, {2: "all"}, {2: "last", 5: "all"}])
def test_what_was_selected_before_is_selected_again(streams, layers, selected):
    for layer, rows in selected.items():
        streams.select(layer, rows)
    with pytest.raises(RuntimeError, match="in the middle"), streams.sampled() as read:
        read(ROWS)
        raise RuntimeError("in the middle")
    assert on(layers) == {layer: layer in selected for layer in layers}
    blocks, of_row, _ = streams.copy(ROWS, np.array([1, 3]))
    assert {block.layer: block.rows for block in blocks} == {
        layer: {"all": ROWS, "last": 2}[rows] for layer, rows in selected.items()
    }
    assert len(of_row) == sum(block.rows for block in blocks)


@pytest.mark.parametrize("streams", [False], indirect=True)
def test_a_rank_that_does_not_export_streams_nothing(streams, layers):
    with streams.sampled() as read:
        assert read(ROWS) == {}
    assert on(layers) == {2: False, 5: False, 7: False}


def test_what_is_closed_meanwhile_reads_nothing_more(streams, layers):
    """Taps that fail are switched off in the middle of a step."""
    with streams.sampled() as read:
        streams.close()
        assert read(ROWS) == {}
    assert on(layers) == {2: False, 5: False, 7: False}
