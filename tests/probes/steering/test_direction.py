"""Directions as values: what holds of vectors holds of them, and what does not belong together is refused."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from probes.bundle.manifest import ModelIdentity
from probes.errors import SteeringError
from probes.steering import Direction, combine, fingerprint

MODEL = fingerprint(ModelIdentity("m", 6, 4, {"weights": "w", "config": "c"}))
numbers = st.floats(-100, 100, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)
factors = st.floats(-8, 8).filter(lambda value: abs(value) > 1e-2)
directions = arrays(np.float64, 6, elements=numbers).map(lambda values: Direction(MODEL, 2, values))


def close(found, expected):
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-9, atol=1e-9)


@given(directions, directions, directions, factors)
def test_the_algebra_of_vectors(a, b, c, k):
    close(a + b, b + a)
    close((a + b) + c, a + (b + c))
    close(k * (a + b), k * a + k * b)
    close((a * k) / k, a)
    close(a - b, a + -b)
    assert not (a - a).values.any(), "exactly nothing"
    assert not (0 * a).values.any()
    opposite = -a
    assert np.array_equal((-opposite).values, a.values)


@given(directions, directions, factors)
def test_orthogonal_to_another(a, b, k):
    assume(a.norm > 1e-3 and b.norm > 1e-3 and abs(a.cosine(b)) < 0.999)
    left = a.orthogonal_to(b)
    assert abs(left.cosine(b)) < 1e-9
    close(left.orthogonal_to(b), left)
    close(a.orthogonal_to(k * b), left)
    close((a + k * b).orthogonal_to(b), left)
    assert left.norm <= a.norm * (1 + 1e-12)


@given(directions, factors)
def test_a_unit_is_as_the_direction_points(a, k):
    assume(a.norm > 1e-3)
    unit = a.unit()
    assert unit.norm == pytest.approx(1)
    close((abs(k) * a).unit(), unit)
    close((-abs(k) * a).unit(), -unit)
    assert a.cosine(k * a) == pytest.approx(np.sign(k))


@pytest.mark.parametrize("length", [1e-300, 1e300])
def test_very_short_and_very_long_ones_have_a_unit(length):
    unit = Direction(MODEL, 0, np.array([3.0, 4.0]) * length).unit()
    np.testing.assert_allclose(unit.values, [0.6, 0.8])


def test_it_cannot_be_changed_from_outside():
    values = np.ones(3)
    direction = Direction(MODEL, 0, values)
    values[:] = 5
    assert direction.values.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        direction.values[0] = 2


def test_what_does_not_belong_together_is_refused():
    one = Direction(MODEL, 0, np.ones(3))
    elsewhere, other = Direction(MODEL, 1, np.ones(3)), Direction("another", 0, np.ones(3))
    for combined in (one.__add__, one.__sub__, one.orthogonal_to, one.cosine):
        with pytest.raises(SteeringError, match="layers 0 and 1"):
            combined(elsewhere)
        with pytest.raises(SteeringError, match="different models"):
            combined(other)
        with pytest.raises(SteeringError, match="3 and 2 dimensions"):
            combined(Direction(MODEL, 0, np.ones(2)))


@pytest.mark.parametrize(
    "values", [np.ones((2, 2)), np.zeros(0), np.array([1.0, np.nan]), np.array([np.inf, 0.0])], ids=str
)
def test_what_is_no_direction_is_refused(values):
    with pytest.raises(SteeringError):
        Direction(MODEL, 0, values)


def test_what_points_nowhere_is_refused_where_a_length_is_needed():
    nothing, one = Direction(MODEL, 0, np.zeros(3)), Direction(MODEL, 0, np.ones(3))
    for wrong in (nothing.unit, lambda: one.orthogonal_to(nothing), lambda: one.orthogonal_to(-3 * one)):
        with pytest.raises(SteeringError):
            wrong()
    for wrong in (lambda: one / 0, lambda: one * float("nan"), lambda: one / float("inf")):
        with pytest.raises(SteeringError, match="cannot be"):
            wrong()


def test_models_are_told_apart_by_their_parts_not_by_their_name():
    parts = {"weights": "w", "config": "c"}
    assert fingerprint(ModelIdentity("other", 6, 4, dict(reversed(parts.items())))) == MODEL
    for changed in ({"weights": "x", "config": "c"}, {"weights": "w"}, {**parts, "tokenizer": ""}):
        assert fingerprint(ModelIdentity("m", 6, 4, changed)) != MODEL


A, B = Direction(MODEL, 1, np.array([1.0, 2.0, 0.0])), Direction(MODEL, 1, np.array([0.0, 1.0, -1.0]))
KNOWN = {"a": A, "b": B}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a", A.values),
        ("-a", -A.values),
        ("a - 0.5*b", A.values - 0.5 * B.values),
        (" 2 * (a + b) / 4 - -a ", 0.5 * (A.values + B.values) + A.values),
        ("(1 - 3) * a", -2 * A.values),
        ("orthogonal(a, b)", A.values - (A.values @ B.values) / 2 * B.values),
        ("a - a", np.zeros(3)),
    ],
)
def test_expressions(text, values):
    np.testing.assert_allclose(combine(text, KNOWN).values, values, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("c", "no vector 'c'.*a, b"),
        ("a * b", "Vectors are added"),
        ("a + 1", "Vectors are added"),
        ("1 / a", "Vectors are added"),
        ("a ** 2", "Vectors are added"),
        ("3", "names no vector"),
        ("", "no combination"),
        ("a +", "no combination"),
        ("a.values", "no combination"),
        ("True * a", "no combination"),
        ("__import__('os')", "no combination"),
        ("orthogonal(a, 2)", "two vectors"),
        ("orthogonal(a)", "no combination"),
        ("a / 0", "divided by 0"),
        ("1 / 0 * a", "cannot be calculated"),
        ("1e999 * a", "scaled by inf"),
        ("(" * 240 + "a" + ")" * 240, "no combination"),
        ("a" + " + a" * 300, "characters"),
        ("a\0", "no combination"),
    ],
)
def test_what_is_no_expression_is_refused(text, match):
    with pytest.raises(SteeringError, match=match):
        combine(text, KNOWN)
