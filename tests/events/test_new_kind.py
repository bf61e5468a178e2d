"""A new kind of event is three edits: its type, its message, and its words. What shows events is machinery."""

import ast
import json
import subprocess
import sys

import pytest

from monitor import events
from tests.events.samples import KINDS
from tests.harness.house import ROOT, copy_house, edit

TYPE = '''
class Renamed(RequestEvent, frozen=True):
    """A kind that a test makes up."""

    reason: str
    severity: Severity
    doses: tuple[float, ...]
    left: int | None


'''
MESSAGE = """
message Renamed {
  Request request = 1;
  string reason = 2;
  Severity severity = 3;
  repeated double doses = 4;
  optional uint32 left = 5;
}
"""
WORDS = """        case Renamed(request):
            return Wording("RENAME", request.request_id, event.reason, event.severity)
"""

SHOWN = """
import json, logging, sys
from datetime import UTC, datetime
from pathlib import Path
from monitor.api.convert import KINDS, event_message, event_of
from monitor.cli.watch import format_event, format_json
from monitor.events import Recorded, Renamed, Request
from monitor.sinks import LogSink
from monitor.sinks.audit import AuditLog, read_records, verify
from monitor.sinks.audit.records import Context, EventRecord

logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stderr, level=logging.INFO)
event = Renamed(Request("engine", "tiny", "chat-1", "chat-1-a", 4), "why", "critical", (0.5, -1.0), None)
recorded = Recorded(7, datetime(2026, 1, 2, tzinfo=UTC), event)
message = event_message(recorded)
assert event_of(message) == recorded
LogSink().emit(recorded)
log = AuditLog(Path(sys.argv[1]))
log.append(EventRecord(event, Context("policy.yaml", "")))
log.close()
verify(Path(sys.argv[1]))
assert [line.event() for line in read_records(Path(sys.argv[1]))] == [event]
print(json.dumps([
    format_event(message).plain.partition(" ")[2], json.loads(format_json(message))["renamed"], KINDS["renamed"]
]))
"""


@pytest.fixture
def house(tmp_path):
    """A copy of the monitor with one kind of event more."""
    copied = copy_house(tmp_path)
    edit(
        copied / "monitor/events/types.py",
        ('    "RequestFinished",\n', '    "Renamed",\n    "RequestFinished",\n'),
        ("\nEvent = (\n", f"{TYPE}\nEvent = (\n    Renamed\n    | "),
    )
    edit(
        copied / "proto/monitor/v1/event.proto",
        (
            "    AuditChanged audit_changed = 15;\n",
            "    AuditChanged audit_changed = 15;\n    Renamed renamed = 16;\n",
        ),
        ("  EVENT_KIND_AUDIT_CHANGED = 13;\n", "  EVENT_KIND_AUDIT_CHANGED = 13;\n  EVENT_KIND_RENAMED = 14;\n"),
        ("// A gap in an engine's sequence numbers.\n", f"{MESSAGE}// A gap in an engine's sequence numbers.\n"),
    )
    edit(
        copied / "monitor/events/words.py",
        ("    ProbeFired,\n    RequestFinished,\n", "    ProbeFired,\n    Renamed,\n    RequestFinished,\n"),
        (
            "        case _:\n            assert_never(event)\n",
            f"{WORDS}        case _:\n            assert_never(event)\n",
        ),
    )
    generate = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I",
        "proto",
        "--python_out=.",
        "proto/monitor/v1/event.proto",
    ]
    subprocess.run(generate, cwd=copied, check=True)
    return copied


def test_three_edits_have_it_told_everywhere(house, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", SHOWN, tmp_path / "audit.jsonl"],
        env={"PYTHONPATH": f"{house}:{ROOT}", "PATH": "", "HOME": str(tmp_path)},
        cwd=house,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    line, fields, number = json.loads(result.stdout)
    assert (line, number) == ("RENAME chat-1 why", 14)
    assert fields["request"]["engine_request_id"] == "chat-1-a"
    assert (fields["severity"], fields["doses"], "left" in fields) == ("SEVERITY_CRITICAL", [0.5, -1.0], False)
    level, _, logged = result.stderr.strip().partition(" ")
    assert level == "ERROR" and json.loads(logged)["event"]["type"] == "renamed"


RENDERERS = [
    *sorted((ROOT / "monitor/api").glob("*.py")),
    *(ROOT / "monitor/sinks" / name for name in ("base.py", "log.py", "memory.py", "recorder.py")),
    *(
        ROOT / "monitor/sinks/audit" / name
        for name in ("chain.py", "log.py", "records.py", "sink.py", "verification.py")
    ),
    ROOT / "monitor/cli/watch.py",
]
DECIDES = {"monitor/sinks/audit/sink.py": {"Intervention", "RequestFinished"}}
"""Of requests that end, the audit log has those that were ordered to be steered, or were."""


@pytest.mark.parametrize("path", RENDERERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_shows_events_names_no_kind_of_them(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    named = {node.id for node in nodes if isinstance(node, ast.Name)}
    named |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    kinds = {kind.__name__ for kind in KINDS}
    assert named & kinds <= DECIDES.get(str(path.relative_to(ROOT)), set())


def test_every_kind_is_exported_and_no_two_have_one_name():
    assert {kind.__name__ for kind in KINDS} <= set(events.__all__)
    assert len({events.type_name(kind) for kind in KINDS}) == len(KINDS)
