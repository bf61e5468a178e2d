"""The log of the process: one line of JSON an event, at the level that its words say."""

import json
import logging

import pytest

from monitor.events import Alert, EventLog, Intervention, Request
from monitor.sinks import LogSink, Recorder
from monitor.store import MemoryStore
from monitor.telemetry.stats import Stats
from tests.events.samples import KINDS, sample

REQUEST = Request("engine", "tiny", "user-a", "a", 4)


@pytest.fixture
def lines(caplog):
    """``lines(event, …)``: the records that these events leave in the log."""
    caplog.set_level(logging.DEBUG, "plumbob.events")
    recorder = Recorder(EventLog(), [LogSink()], Stats([]), MemoryStore())

    def log(*events):
        for event in events:
            recorder.record(event)
        return list(caplog.records)

    return log


def test_one_line_of_json(lines):
    (record,) = lines(Alert(REQUEST, "rule", "alert", "warning", "toxicity", 3.0, 2.0, 7, "because\nof it"))
    assert record.levelno == logging.WARNING and "\n" not in record.getMessage()
    line = json.loads(record.getMessage())
    assert (line["sequence"], line["event"]["type"]) == (1, "alert")
    assert line["event"]["request"]["request_id"] == "user-a" and line["event"]["reason"] == "because\nof it"
    assert line["message"] == "ALERT user-a rule warning: because\nof it"


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_every_kind_that_is_logged(lines, kind):
    event = sample(kind)
    found = [json.loads(record.getMessage()) for record in lines(event)]
    assert len(found) == kind.logged
    for line in found:
        assert set(line["event"]) == {"type", *kind.__struct_fields__}


@pytest.mark.parametrize(
    ("mode", "severity", "level"),
    [
        ("alert", "info", logging.INFO),
        ("alert", "warning", logging.WARNING),
        ("enforce", "critical", logging.ERROR),
        ("shadow", "critical", logging.INFO),
    ],
)
def test_an_alert_has_the_level_of_its_severity(lines, mode, severity, level):
    (record,) = lines(Alert(REQUEST, "rule", mode, severity, "toxicity", 3.0, 2.0, 7, "why"))
    assert record.levelno == level


@pytest.mark.parametrize(
    ("mode", "sent", "level"),
    [("enforce", True, logging.WARNING), ("enforce", False, logging.ERROR), ("shadow", False, logging.INFO)],
)
def test_a_rule_that_enforces_and_changes_nothing_is_an_error(lines, mode, sent, level):
    (record,) = lines(Intervention(REQUEST, "r", mode, "toxicity", 3.0, 2.0, 7, "v", 0.1, None, sent, "why"))
    assert record.levelno == level
