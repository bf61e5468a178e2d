"""What the end of an audit log says of engines that may still run: for the monitor that goes on where one ended."""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from monitor.errors import AuditError
from monitor.sinks.audit.file import END_BYTES, read_lines


@dataclass(slots=True)
class Recalled:
    """One engine, as the records near the end of a log tell of it."""

    decisions: set[int] = field(default_factory=set[int])
    """Numbers of those decisions of its gates that are on record."""
    guarded: set[int] = field(default_factory=set[int])
    """Numbers of what its guard did, as far as it is on record."""
    armed: set[str] = field(default_factory=set[str])
    """Gates that it was ordered to arm, and not to disarm."""
    admitted: set[str] = field(default_factory=set[str])
    """Keys of requests whose admission is on record."""


class _Record(msgspec.Struct):
    """What matters here of any record."""

    kind: str
    engine: str = ""
    number: int | None = None
    order: str = ""
    action: str = ""
    result: str = ""
    request_id: str | None = None
    key: str | None = None


class _Line(msgspec.Struct):
    record: _Record


def recall(path: Path) -> dict[str, Recalled]:
    """Read the end of a log; lines that are none are passed over, since whoever opens the log judges them.

    Args:
        path: Of the file; where there is none, nothing is recalled.

    Returns:
        By engine.

    Raises:
        AuditError: It cannot be read.
    """
    engines: dict[str, Recalled] = {}
    try:
        with path.open("rb") as file:
            if path.stat().st_size > END_BYTES:
                file.seek(-END_BYTES, 2)
                file.readline(END_BYTES)
            for raw in read_lines(file):
                _read(raw, engines)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise AuditError(f"The audit log {path} cannot be read: {error.strerror}.", "Check its owner.") from error
    return engines


_decoder = msgspec.json.Decoder(_Line)


def _read(raw: bytes, engines: dict[str, Recalled]) -> None:
    try:
        record = _decoder.decode(raw).record
    except (msgspec.MsgspecError, RecursionError):
        return
    engine = engines.setdefault(record.engine, Recalled()) if record.engine else Recalled()
    if record.number is not None and record.kind == "guarded":
        engine.guarded.add(record.number)
    elif record.number is not None:
        engine.decisions.add(record.number)
    if record.kind == "order" and record.action == "admission" and record.key is not None:
        engine.admitted.add(record.key)
    if record.kind != "order" or record.request_id is not None:
        return
    if record.action == "arm" and record.result == "sent":
        engine.armed.add(record.order)
    elif record.action == "disarm" or record.result == "expired":
        engine.armed.discard(record.order)
