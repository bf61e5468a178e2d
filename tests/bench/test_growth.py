"""How the cost grows: what is run for it, and the line through it."""

import msgspec
import pytest

from monitor.bench.engines import Subject
from monitor.bench.growth import Growth, Point, fit_line, grown, read_by
from probes.bundle import MAX_PROBES_PER_LAYER
from probes.errors import PlumbobError
from tests.bench.results import growth


def point(value: int, *costs: float, where: str = "step") -> Point:
    microseconds = {name: [0.0] * len(costs) for name in ("step", "beside", "device")} | {where: list(costs)}
    return Point(value, value, [1], 8, microseconds, [1000.0] * len(costs))


def test_the_line_goes_through_points_that_lie_on_one():
    line = fit_line([point(value, 20.0 + 1.5 * value) for value in (1, 16, 64)], "step")
    assert line is not None
    assert (line.microseconds, line.microseconds_each, line.r_squared) == pytest.approx((20.0, 1.5, 1.0))


def test_growth_that_is_not_linear_shows():
    line = fit_line([point(1, 10.0), point(3, 30.0), point(10, 31.0), point(30, 32.0)], "step")
    assert line is not None and line.r_squared < 0.6


def test_a_trace_that_went_wrong_does_not_bend_the_line():
    line = fit_line([point(value, 10.0 * value, 10.0 * value, 9e9) for value in (1, 3, 10)], "step")
    assert line is not None and line.microseconds_each == pytest.approx(10.0)


def test_where_nothing_is_ours_there_is_no_line():
    assert fit_line([point(1, 5.0), point(2, 6.0)], "device") is None


@pytest.mark.parametrize("layers", [1, 2, 4, 30, 32])
def test_layers_grow_to_all_of_them(layers):
    subjects = grown(Subject(), "layers", layers)
    counts = [len(subject.layers) for subject in subjects]
    assert counts == sorted(set(counts)) and counts[-1] == layers
    for subject in subjects:
        assert len(set(subject.layers)) == len(subject.layers)
        assert all(0 <= layer < layers for layer in subject.layers)
        # As many probes a layer, whatever their number.
        assert subject.probes == 16 * len(subject.layers)


def test_layers_are_taken_from_all_of_the_model():
    assert [subject.layers for subject in grown(Subject(), "layers", 30)][:2] == [[15], [5, 15, 25]]


def test_probes_grow_at_one_layer_to_as_many_as_it_takes():
    subjects = grown(Subject(), "probes", 30)
    assert [subject.probes for subject in subjects][-1] == MAX_PROBES_PER_LAYER
    assert {tuple(subject.layers) for subject in subjects} == {(15,)}


def test_what_can_grow():
    assert [read_by(by) for by in ("probes", "layers", "batch")] == ["probes", "layers", "batch"]
    with pytest.raises(PlumbobError, match=r"'size'.*probes, layers, batch"):
        read_by("size")


def test_a_result_is_read_back_from_its_file():
    assert msgspec.json.decode(growth().to_json(), type=Growth) == growth()
