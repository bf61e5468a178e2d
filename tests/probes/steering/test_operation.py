"""One meaning of steering: the reference in numpy, the hook of offline runs, and the engine's op."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.bundle import save_bundle
from probes.bundle.manifest import ModelIdentity, Vector
from probes.errors import BundleError, SteeringError
from probes.scoring.roles import Markers
from probes.steering import NOTHING, Operation, ablate, add, clamp, steer

RANDOM = np.random.default_rng(0)
HIDDEN, NORM = 16, 7.0

doses = st.floats(-2, 2)
operations = st.one_of(
    doses.map(add),
    st.just(ablate()),
    st.tuples(doses, doses).map(lambda ends: clamp(*sorted(ends))),
    st.builds(lambda dose, scale, ends: Operation(dose, scale, *sorted(ends)), doses, doses, st.tuples(doses, doses)),
)


def drawn(seed, count):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, HIDDEN))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return NORM * random.normal(size=(5, HIDDEN)) / math.sqrt(HIDDEN), vectors


def table(*chosen):
    return np.array([operation.entry(NORM) for operation in chosen])


@given(st.integers(0, 99), doses)
def test_a_dose_is_a_share_of_the_norm(seed, dose):
    states, vectors = drawn(seed, 1)
    moved = steer(states, vectors, table(add(dose))) - states
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), abs(dose) * NORM, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 99), doses, doses)
def test_a_clamped_projection_is_in_its_range_and_the_rest_untouched(seed, one, other):
    low, high = sorted((one, other))
    states, vectors = drawn(seed, 1)
    after = steer(states, vectors, table(clamp(low, high)))
    before, projection = states @ vectors[0] / NORM, after @ vectors[0] / NORM
    np.testing.assert_allclose(projection, np.clip(before, low, high), atol=1e-9)
    inside = (before >= low) & (before <= high)
    assert np.array_equal(after[inside], states[inside]), "exactly"
    beside = states - np.outer(states @ vectors[0], vectors[0])
    np.testing.assert_allclose(after - np.outer(after @ vectors[0], vectors[0]), beside, atol=1e-9)


@given(st.integers(0, 99))
def test_what_is_ablated_is_gone_and_stays_gone(seed):
    states, vectors = drawn(seed, 1)
    once = steer(states, vectors, table(ablate()))
    np.testing.assert_allclose(once @ vectors[0], 0, atol=1e-9)
    np.testing.assert_allclose(steer(once, vectors, table(ablate())), once, atol=1e-9)
    np.testing.assert_allclose(steer(states, vectors, table(clamp(0, 0))), once, atol=1e-9)


@given(st.integers(0, 99), doses, operations)
def test_metamorphic(seed, dose, other):
    states, vectors = drawn(seed, 2)
    assert np.array_equal(steer(states, vectors, table(NOTHING, add(0))), states)
    opposite = np.stack([vectors[0], -vectors[0]])
    assert np.array_equal(steer(states, opposite, table(add(dose), add(dose))), states), "v − v"
    forth = steer(steer(states, vectors[:1], table(add(dose))), vectors[:1], table(add(-dose)))
    np.testing.assert_allclose(forth, states, atol=1e-9)
    both = steer(states, vectors, table(add(dose), other))
    np.testing.assert_allclose(steer(states, vectors[::-1], table(other, add(dose))), both, atol=1e-12)
    np.testing.assert_allclose(
        steer(states, -vectors[:1], table(add(-dose))), steer(states, vectors[:1], table(add(dose))), atol=1e-12
    )


@settings(deadline=None)  # the first call loads torch
@given(st.integers(0, 99), st.lists(operations, min_size=1, max_size=4))
def test_the_hook_and_the_engines_op_do_the_same(seed, chosen):
    torch = pytest.importorskip("torch")
    from monitor.engine.ops.tap import tap
    from probes.steering.edit import Edit

    states, vectors = drawn(seed, len(chosen))
    numbers = table(*chosen)
    expected = steer(states, vectors, numbers)
    rows = np.array([True, False, True, True, False])
    expected[~rows] = states[~rows]
    given_rows = torch.tensor(states, dtype=torch.float32)
    hooked = Edit(0, vectors, numbers)(given_rows[None], torch.from_numpy(rows)[None])[0]
    np.testing.assert_allclose(hooked, expected, atol=2e-5)
    assert torch.equal(hooked[~rows], given_rows[~rows])
    hidden = given_rows.clone()
    directions = torch.tensor(vectors, dtype=torch.float32)
    tap(
        hidden,
        None,
        directions,
        torch.zeros(len(chosen)),
        torch.from_numpy(np.where(rows, 0, -1).astype(np.int32)),
        torch.tensor(numbers, dtype=torch.float32)[None],
        directions,
        torch.zeros(5, 0),
        0,
        torch.zeros(0, HIDDEN),
        torch.zeros(1, dtype=torch.int32),
    )
    np.testing.assert_allclose(hidden, expected, atol=2e-5)


@pytest.mark.parametrize(
    "numbers",
    [
        *[(math.nan,), (math.inf,), (0, math.nan), (0, math.inf), (0, 1, 2, 1), (0, 1, math.nan, 1)],
        *[(0, 1, 0, math.nan), (0, 1, math.inf, math.inf), (0, 1, -math.inf, -math.inf)],
    ],
)
def test_what_is_no_operation_is_refused(numbers):
    with pytest.raises(SteeringError):
        Operation(*numbers)


@pytest.mark.parametrize(
    ("operation", "strength"),
    [(add(-0.3), 0.3), (ablate(), 0), (NOTHING, 0), (clamp(-0.1, 0.2), 0.2), (clamp(high=-0.4), 0.4)],
)
def test_what_a_cap_is_compared_with(operation, strength):
    assert operation.strength == strength


def test_operations_of_a_bundle_become_an_edit_a_layer(tmp_path):
    from probes.steering.edit import edits_of

    bundle = save_bundle(
        tmp_path / "bundle",
        version="0",
        created="2026-01-01T00:00:00Z",
        model=ModelIdentity("tiny", HIDDEN, 4, {"weights": "w"}),
        markers=Markers(),
        probes=[],
        vectors=[
            (Vector("c", 2, 3.0), RANDOM.normal(size=HIDDEN)),
            (Vector("a", 1, 2.0, max_dose=0.5), RANDOM.normal(size=HIDDEN)),
            (Vector("b", 2, 3.0), RANDOM.normal(size=HIDDEN)),
        ],
    )
    one, two = edits_of(bundle, {"b": ablate(), "a": add(-0.5), "c": add(0.1)})
    assert (one.layer, two.layer) == (1, 2)
    assert one.table.tolist() == [[-1.0, 1.0, -math.inf, math.inf]]
    assert np.array_equal(two.vectors, bundle.vectors[[1, 2]])
    assert two.table[0].tolist() == pytest.approx([0.3, 1, -math.inf, math.inf])
    assert two.table[1].tolist() == [0, 0, -math.inf, math.inf]
    assert edits_of(bundle, {}) == []
    with pytest.raises(BundleError, match=r"no steering vector 'd'.*a, c, b"):
        edits_of(bundle, {"d": add(0.1)})
    for dose in (0.51, -0.51):
        with pytest.raises(BundleError, match=r"vector 'a' is over the bundle's cap of 0\.5"):
            edits_of(bundle, {"a": add(dose)})
    with pytest.raises(BundleError, match="cap"):
        bundle.vector("a").require_dose(math.nan)
    bundle.vector("b").require_dose(50.0)
