"""Why something was done to a request, as a chain in plain words: from the monitor's events or from its audit log."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from monitor.errors import AuditError, PlumbobError, PrerequisiteError
from monitor.events import (
    Alert,
    Escalated,
    Event,
    Guarded,
    Intervention,
    InterventionEnded,
    Mode,
    ProbeFired,
    RequestEvent,
    RequestFinished,
    type_name,
    words,
)

ANSWER_SECONDS: Final = 5.0
"""Seconds to wait for a monitor to answer."""

Explained = ProbeFired | Alert | Intervention | Guarded | Escalated
"""Something was read and decided for these: by a probe and a rule, or by the engine's guard."""

_NAMES: Final = ", ".join(map(type_name, (ProbeFired, Alert, Intervention, Guarded, Escalated)))

_MODES: Final[dict[Mode, str]] = {
    "shadow": "shadow: everything is computed, nothing is sent",
    "alert": "alert: alerts are sent, no generation is changed",
    "enforce": "enforce: generations are changed",
}

Chain = list[tuple[str, str]]
"""Labels and sentences."""


@dataclass(frozen=True, slots=True)
class Found:
    """A decision, and what is known of what became of it."""

    place: str
    """``event 12``, or ``record 12 of FILE``."""
    event: Explained
    policy: str
    """Its path and digest."""
    later: Sequence[Event]
    """Events after it, oldest first."""


def chain(found: Found) -> Chain:
    """The chain from the score to what became of it."""
    event = found.event
    if isinstance(event, Guarded):
        return [
            ("request", event.request.name),
            (
                "repetition",
                f"{event.repetition:.0%} of the answer's last tokens, by sequences of three, at token {event.position}",
            ),
            ("threshold", f"{event.threshold:.0%}"),
            ("decided by", "the engine's guard, which needs no rule and no monitor"),
            ("result", "the request is steered no more, for good"),
            ("in words", event.reason),
        ]
    if isinstance(event, ProbeFired):
        return [*_reading(event), ("rule", "none: no rule of this policy is behind it"), ("policy", found.policy)]
    lines = _reading(event)
    if isinstance(event, Intervention):
        lines.append(("streak", _streak(event)))
    lines += [
        ("rule", f"'{event.rule}'" if event.rule else "none: no rule of this policy is behind it"),
        ("mode", _MODES[event.mode]),
        ("policy", found.policy),
    ]
    if isinstance(event, Intervention):
        lines += _outcome(event, [later for later in found.later if _is_about(later, event)])
    return [*lines, ("in words", event.reason)]


def _reading(event: ProbeFired | Alert | Intervention | Escalated) -> Chain:
    lines = [("request", event.request.name)]
    if not event.probe:
        return [*lines, ("score", "a gate that this monitor did not arm")]
    return [
        *lines,
        ("score", f"probe {event.probe} was at {event.aggregate:.2f} at token {event.position}"),
        ("threshold", f"{event.threshold:.2f}; the score is {event.aggregate - event.threshold:.2f} above it"),
    ]


def _streak(event: Intervention) -> str:
    if event.agree_of == 1:
        return "one average that reaches it is enough"
    if event.agree == event.agree_of:
        return f"{event.agree} averages in a row had to reach it"
    return f"{event.agree} of the last {event.agree_of} averages had to reach it"


def _outcome(event: Intervention, later: Sequence[Event]) -> Chain:
    """Action and result, and how later events about the request say that it went on."""
    gate = f"the engine itself, by gate {event.gate}"
    lines = [
        ("action", words.done(event)),
        ("decided by", gate if event.gate else "the monitor, from the next step on"),
        ("result", _result(event)),
        ("steered", _steered(event, later) if event.sent else "nothing"),
    ]
    released = [f"released from token {one.position} on" for one in later if isinstance(one, Guarded)]
    if released:
        lines.append(("guard", f"{', '.join(released)}, since the answer repeated itself"))
    return lines


def _result(event: Intervention) -> str:
    if event.sent and event.gate and event.operation == "stop":
        return "the engine ended it there: no token that follows was sent"
    if event.sent:
        return "the engine steered from that very token on" if event.gate else "the order went to the engine"
    if event.mode != "enforce":
        return "nothing was sent: this is what would have been done"
    return f"refused: {event.refusal}" if event.refusal else "refused"


def _steered(event: Intervention, later: Sequence[Event]) -> str:
    for one in later:
        if isinstance(one, InterventionEnded) and one.gate == event.gate:
            return f"{one.steered} tokens, until the gate closed"
        if isinstance(one, RequestFinished):
            return f"{one.steered} tokens of the request, by all that was ordered for it"
    return "not known yet: neither the steering nor the request has ended, or it was not recorded"


def _is_about(later: Event, event: Intervention) -> bool:
    if not isinstance(later, RequestEvent):
        return False
    one, other = later.request, event.request
    return (one.engine, one.engine_request_id) == (other.engine, other.engine_request_id)


def from_monitor(number: int, address: str) -> Found:
    """Find an event that a monitor still keeps.

    Args:
        number: Its sequence.
        address: ``host:port`` of the monitor.

    Raises:
        PrerequisiteError: No monitor answers.
        PlumbobError: It does not keep the event, or nothing was decided by it.
    """
    import grpc

    from monitor.api.client import channel_to
    from monitor.api.convert import event_of
    from monitor.v1.monitor_service_pb2 import GetStatusRequest, WatchEventsRequest
    from monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub

    kept: dict[int, Event] = {}
    try:
        with channel_to(address) as channel:
            stub = MonitorServiceStub(channel)
            status = stub.GetStatus(GetStatusRequest(), timeout=ANSWER_SECONDS)
            if number <= status.last_sequence:
                call = stub.WatchEvents(WatchEventsRequest(after_sequence=number - 1), timeout=ANSWER_SECONDS)
                for response in call:
                    if (recorded := event_of(response.event)) is not None:
                        kept[recorded.sequence] = recorded.event
                    if response.event.sequence >= status.last_sequence:
                        break
                call.cancel()
    except grpc.RpcError as error:
        raise PrerequisiteError(
            f"No monitor answers at {address}.", "Start one with plumbob monitor, or name its --address."
        ) from error
    if number not in kept:
        raise PlumbobError(
            f"The monitor at {address} does not keep event {number}.",
            "Explain it from the audit log: plumbob policy explain RECORD --audit FILE.",
        )
    event = kept.pop(number)
    if not isinstance(event, Explained):
        raise PlumbobError(
            f"Event {number} is of kind {type_name(event)}: no rule decided it.", f"Name one of {_NAMES}."
        )
    policy = _policy(status.status.policy_name, status.status.policy_digest)
    return Found(f"event {number}", event, policy, [kept[later] for later in sorted(kept)])


def from_audit(number: int, path: Path) -> Found:
    """Find a record of an audit log.

    Args:
        number: Of the record; the log's lines say it.
        path: The log.

    Raises:
        AuditError: It cannot be read, or is not what was written.
        PlumbobError: It has no such record, or nothing was decided by it.
    """
    from monitor.sinks.audit import read_records, verify

    records = {line.sequence: line for line in read_records(path, verify(path)) if line.counted}
    if number not in records:
        first, last = min(records, default=0), max(records, default=0)
        raise AuditError(f"{path} has no record {number}.", f"It has {first} to {last}.")
    line = records[number]
    event = line.event()
    if line.context is None or not isinstance(event, Explained):
        raise PlumbobError(
            f"Record {number} of {path} is of kind {line.type_name()}: no rule decided it.", f"Name one of {_NAMES}."
        )
    after = [later for at in sorted(records) if at > number and (later := records[at].event()) is not None]
    policy = _policy(line.context.policy, line.context.policy_digest)
    return Found(f"record {number} of {path}", event, policy, after)


def _policy(name: str, digest: str) -> str:
    return f"{name} ({digest[:12] or 'no file'})"
