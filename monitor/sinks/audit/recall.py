"""What the end of an audit log says of engines that may still run: for the monitor that goes on where one ended."""

from dataclasses import dataclass, field
from pathlib import Path

from monitor.errors import AuditError
from monitor.events import Guarded, Intervention, InterventionEnded, Ordered, Request
from monitor.sinks.audit.chain import unseal
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


def _read(raw: bytes, engines: dict[str, Recalled]) -> None:
    try:
        event = unseal(raw.removesuffix(b"\n")).event()
    except ValueError:
        return
    match event:
        case Guarded(request, number=number):
            _of(request.engine, engines).guarded.add(number)
        case Intervention(request, number=int(number)) | InterventionEnded(request, number=int(number)):
            _of(request.engine, engines).decisions.add(number)
        case Ordered(kind="admission", request=Request(engine, engine_request_id=admitted)):
            _of(engine, engines).admitted.add(admitted)
        case Ordered(kind="arm", result="sent", engine=engine, request=None):
            _of(engine, engines).armed.add(event.order)
        case (
            Ordered(kind="disarm", engine=engine, request=None) | Ordered(result="expired", engine=engine, request=None)
        ):
            _of(engine, engines).armed.discard(event.order)
        case _:
            pass


def _of(engine: str, engines: dict[str, Recalled]) -> Recalled:
    return engines.setdefault(engine, Recalled())
