"""The fused op in torch, against the formula written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.tap_arguments import make, torch


def expected(arguments):
    """Row by row, in float64."""
    hidden = arguments["hidden"].double().numpy()
    state = hidden + (0 if arguments["residual"] is None else arguments["residual"].double().numpy())
    projected = state @ arguments["weights"].double().numpy().T + arguments["bias"].double().numpy()
    vectors = arguments["vectors"].double().numpy()
    probes = projected.shape[1] - len(vectors)
    out = hidden.copy()
    for row in range(len(hidden)):
        slot = int(arguments["row_entry"][row])
        if slot < 0:
            continue
        for index, vector in enumerate(vectors):
            add, scale, low, high = arguments["table"][slot, index].double().tolist()
            p = projected[row, probes + index]
            out[row] += (add + min(max(scale * p, low), high) - p) * vector
    return projected[:, :probes], out


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(0, 9),
    hidden=st.integers(1, 70),
    probes=st.integers(0, 5),
    vectors=st.integers(0, 3),
    split=st.booleans(),
    steer=st.lists(st.integers(-1, 2), max_size=9),
    entry=st.tuples(st.floats(-2, 2), st.floats(0, 1), st.floats(-3, 0), st.floats(0, 3)),
)
def test_scores_and_steers_as_the_formula_says(seed, tokens, hidden, probes, vectors, split, steer, entry):
    arguments = make(seed, tokens, hidden, probes, vectors, 3, torch.float32, split=split)
    arguments["row_entry"][: len(steer[:tokens])] = torch.tensor(steer[:tokens], dtype=torch.int32)
    arguments["table"][1] = torch.tensor(entry)
    scores, out = expected(arguments)
    torch.ops.plumbob.tap(*arguments.values())
    np.testing.assert_allclose(arguments["scores"][:tokens, 1 : 1 + probes], scores, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(arguments["hidden"], out, rtol=1e-4, atol=1e-3)
    # Nothing outside this layer's columns and rows is written.
    assert arguments["scores"][tokens:].isnan().all()
    assert arguments["scores"][:, [0, -1]].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_neutral_table_leaves_every_bit_as_it_was(dtype):
    arguments = make(0, 50, 64, 2, 3, 2, dtype, split=True)
    arguments["row_entry"].fill_(1)
    before = arguments["hidden"].clone()
    torch.ops.plumbob.tap(*arguments.values())
    assert torch.equal(arguments["hidden"], before)


def test_opposite_vectors_of_equal_amounts_cancel_exactly():
    arguments = make(0, 50, 64, 2, 2, 2, torch.float32, split=True)
    arguments["vectors"][1] = -arguments["vectors"][0]
    arguments["table"][1, :, 0] = 0.7
    arguments["row_entry"].fill_(1)
    before = arguments["hidden"].clone()
    torch.ops.plumbob.tap(*arguments.values())
    assert torch.equal(arguments["hidden"], before)


def test_scores_of_a_steered_row_are_those_before_steering():
    arguments = make(0, 5, 16, 2, 1, 1, torch.float32, split=False)
    scores, _ = expected(arguments)
    arguments["row_entry"].fill_(0)
    arguments["table"][0, :, 0] = 5.0
    torch.ops.plumbob.tap(*arguments.values())
    np.testing.assert_allclose(arguments["scores"][:5, 1:3], scores, rtol=1e-5, atol=1e-5)


def test_is_a_proper_operator_for_the_compiler():
    arguments = make(0, 5, 16, 2, 1, 1, torch.float32, split=True)
    torch.library.opcheck(
        torch.ops.plumbob.tap.default,
        tuple(arguments.values()),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streams_the_state_before_steering_and_only_while_told_to(dtype):
    arguments = make(3, 4, 16, 1, 1, 1, dtype, split=True)
    arguments["states"] = arguments["states"].to(dtype)
    arguments["row_entry"][2] = 0
    arguments["table"][0, 0, 0] = 5.0
    state = (arguments["hidden"].float() + arguments["residual"].float()).to(dtype)
    torch.ops.plumbob.tap(**{**arguments, "hidden": arguments["hidden"].clone()})
    assert arguments["states"].isnan().all()
    arguments["stream"].fill_(1)
    torch.ops.plumbob.tap(**arguments)
    assert torch.equal(arguments["states"][:4], state)
    assert arguments["states"][4:].isnan().all()


def test_a_layer_that_is_never_streamed_needs_no_room():
    arguments = make(3, 4, 16, 1, 0, 1, torch.float32, split=False)
    arguments["states"] = torch.empty(0, 16)
    arguments["stream"].fill_(1)
    torch.ops.plumbob.tap(**arguments)


def test_adding_nothing_keeps_the_sign_of_a_zero():
    arguments = make(0, 2, 16, 0, 1, 1, torch.bfloat16, split=False)
    arguments["hidden"].fill_(-0.0)
    arguments["row_entry"][:2] = 0
    torch.ops.plumbob.tap(**arguments)
    assert torch.signbit(arguments["hidden"]).all()
