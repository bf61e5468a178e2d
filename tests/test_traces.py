"""Traces of escalated requests: what is in them, and that nothing of them grows without end."""

import itertools
from datetime import UTC, datetime

import pytest

from monitor.events import Alert, Escalated, EventLog, FramesLost, ProbeFired, Recorded, Request, RequestFinished
from monitor.traces import MAX_EVENTS, MAX_POINTS, MAX_TRACES, SHARE, Traces


def request(key="a"):
    return Request("engine", "tiny", f"user-{key}", key, 4)


def escalated(key="a", mode="alert"):
    return Escalated(request(key), "rule", mode, "probe", 2.0, 1.0, 7, "why")


class House:
    """A log, the traces, and a reading that a test sets."""

    def __init__(self):
        self.log, self.read = EventLog(), (0, (0.0,))
        self.traces = Traces(self.log, lambda request: self.read, ("probe",))

    def record(self, event):
        self.traces.emit(self.log.publish(event))

    def observe(self, position):
        self.read = (position, (float(position),))
        self.traces.observe("engine")


@pytest.fixture
def house():
    return House()


def test_a_trace_has_what_came_before_and_after(house):
    fired = ProbeFired(request(), "probe", 2.0, 1.0, 7, "user")
    house.record(ProbeFired(request("b"), "probe", 2.0, 1.0, 7, "user"))
    house.record(fired)
    house.observe(6)
    house.read = (7, (None,))
    house.record(escalated())
    house.record(FramesLost("engine", "tiny", 1))
    house.record(Alert(request("b"), "rule", "alert", "info", "probe", 2.0, 1.0, 7, "why"))
    for position in (8, 8, 9):
        house.observe(position)
    house.traces.observe("another")
    house.record(RequestFinished(request(), 9, 0, 0, ()))
    house.observe(10)
    (trace,) = house.traces.find()
    assert [type(recorded.event) for recorded in trace.events] == [ProbeFired, Escalated, RequestFinished]
    assert [(point.position, point.averages) for point in trace.points] == [(7, (None,)), (8, (8.0,)), (9, (9.0,))]
    assert trace.finished and trace.events_dropped == 0
    assert house.traces.find("user-a") == [trace] and house.traces.find("user-b") == []


def test_nothing_is_kept_in_shadow(house):
    house.record(escalated(mode="shadow"))
    house.observe(8)
    assert house.traces.find() == []


def test_a_request_that_is_escalated_twice_has_one_trace(house):
    house.record(escalated())
    house.record(escalated())
    (trace,) = house.traces.find()
    assert len(trace.events) == 2


def test_points_are_thinned_and_span_the_whole_request(house):
    house.record(escalated())
    last = 10 * MAX_POINTS
    for position in range(1, last + 1):
        house.observe(position)
    (trace,) = house.traces.find()
    positions = [point.position for point in trace.points]
    assert MAX_POINTS / 2 <= len(positions) <= MAX_POINTS
    assert positions == sorted(set(positions)) and positions[0] == 0
    gaps = [after - before for before, after in itertools.pairwise(positions)]
    assert max(gaps) <= 2 * trace.stride and last - positions[-1] <= trace.stride


def test_events_and_traces_are_bounded(house):
    house.record(escalated())
    for number in range(MAX_EVENTS + 5):
        house.record(ProbeFired(request(), f"probe-{number}", 2.0, 1.0, 7, "user"))
    (trace,) = house.traces.find()
    assert len(trace.events) == MAX_EVENTS and trace.events_dropped == 6
    for number in range(MAX_TRACES):
        house.record(escalated(f"k{number}"))
    found = house.traces.find()
    assert len(found) == MAX_TRACES and trace not in found
    # What was forgotten is not observed any more, nor begun again by what is said of it.
    house.record(ProbeFired(request(), "probe", 2.0, 1.0, 7, "user"))
    assert house.traces.find("user-a") == []


def test_a_request_of_many_parts_pushes_out_no_trace_of_another(house):
    house.record(escalated("small"))
    for part in range(2 * MAX_TRACES):
        parts = Request("engine", "tiny", "user-large", f"{part}_large", 4)
        house.record(Escalated(parts, "rule", "alert", "probe", 2.0, 1.0, 7, "why"))
    assert len(house.traces.find()) == MAX_TRACES
    assert len(house.traces.find("user-small")) == 1
    # Among themselves, the oldest go.
    assert house.traces.find("user-large")[-1].request.engine_request_id == f"{2 * MAX_TRACES - 1}_large"
    # As it is without such a one.
    for number in range(MAX_TRACES):
        house.record(escalated(f"k{number}"))
    assert len(house.traces.find("user-large")) <= SHARE


def test_an_event_that_the_log_no_longer_has_is_not_needed(house):
    log = EventLog(keep=1)
    traces = Traces(log, lambda request: None, ("probe",))
    traces.emit(Recorded(9, datetime.now(UTC), escalated()))
    (trace,) = traces.find()
    assert trace.points == [] and trace.events == []
