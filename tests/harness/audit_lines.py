"""Lines of audit logs, and what is on the disk."""

from datetime import UTC, datetime

import msgspec

from monitor.events import EngineChanged
from monitor.sinks.audit.chain import START, seal
from monitor.sinks.audit.records import Context, EventRecord


def about_engine(state: str, detail: str, engine: str = "engine") -> EventRecord:
    return EventRecord(EngineChanged(engine, "tiny", state, detail), Context("policy.yaml", "d" * 64))


def lines_of(count: int) -> list[bytes]:
    """A valid log of ``count`` lines, with their ends."""
    head, made = START, []
    for number in range(count):
        record = about_engine("lost", f"silent “{number}”")
        line, head = seal(record, datetime(2026, 1, 2, 3, 4, number % 60, 5, UTC), head)
        made.append(line)
    return made


def kinds(path) -> list[str]:
    """The type of each record in a file; a line that is none counts as ``torn``."""
    found = []
    for raw in path.read_bytes().splitlines():
        try:
            found.append(msgspec.json.decode(raw)["record"]["type"])
        except msgspec.DecodeError:
            found.append("torn")
    return found
