"""Why something was done to a request, as a chain in plain words: from the monitor's events or from its audit log."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from monitor.errors import AuditError, PrerequisiteError
from probes.errors import PlumbobError

ANSWER_SECONDS: Final = 5.0
"""How long to wait for a monitor to answer."""

EXPLAINED: Final = ("probe_fired", "alert", "intervention", "guarded", "escalated")
"""Kinds of event that something was read and decided for: by a probe and a rule, or by the engine's guard."""


@dataclass(frozen=True, slots=True)
class Why:
    """One decision, and what became of it; ``None`` and empty: not said."""

    what: str
    """``event 12``, or ``record 12 of FILE``."""
    kind: str
    """Of :data:`EXPLAINED`."""
    request_id: str
    probe: str
    score: float
    threshold: float
    position: int
    rule: str = ""
    mode: str = ""
    policy: str = ""
    agree: int = 0
    """0: not said."""
    agree_of: int = 0
    action: str = ""
    gate: str = ""
    result: str = ""
    steered: str = ""
    guard: str = ""
    """What the engine's guard did about it."""
    reason: str = ""


def chain(why: Why) -> list[tuple[str, str]]:
    """The chain, as labels and sentences, from the score to what became of it."""
    if why.kind == "guarded":
        return _guarded_chain(why)
    read = f"probe {why.probe} was at {why.score:.2f} at token {why.position}"
    lines = [("request", why.request_id), ("score", read if why.probe else "a gate that this monitor did not arm")]
    if why.probe:
        over = why.score - why.threshold
        lines.append(("threshold", f"{why.threshold:.2f}; the score is {over:.2f} above it"))
    if why.agree:
        alone = "one average that reaches it is enough"
        row = f"{why.agree} averages in a row had to reach it"
        some = f"{why.agree} of the last {why.agree_of} averages had to reach it"
        lines.append(("streak", alone if why.agree_of == 1 else row if why.agree == why.agree_of else some))
    lines += [("rule", f"'{why.rule}'" if why.rule else "none: no rule of this policy is behind it")]
    lines += [("mode", _MODES[why.mode])] if why.mode else []
    lines += [("policy", why.policy)] if why.policy else []
    lines += [("action", why.action)] if why.action else []
    by = f"the engine itself, by gate {why.gate}" if why.gate else "the monitor, from the next step on"
    lines += [("decided by", by)] if why.kind == "intervention" else []
    lines += [("result", why.result)] if why.result else []
    lines += [("steered", why.steered)] if why.steered else []
    lines += [("guard", why.guard)] if why.guard else []
    lines += [("in words", why.reason)] if why.reason else []
    return lines


def _guarded_chain(why: Why) -> list[tuple[str, str]]:
    return [
        ("request", why.request_id),
        ("repetition", f"{why.score:.0%} of the answer's last tokens, by sequences of three, at token {why.position}"),
        ("threshold", f"{why.threshold:.0%}"),
        ("decided by", "the engine's guard, which needs no rule and no monitor"),
        ("result", why.result),
        ("in words", why.reason),
    ]


_MODES: Final = {
    "shadow": "shadow: everything is computed, nothing is sent",
    "alert": "alert: people are told, no generation is changed",
    "enforce": "enforce: generations are changed",
}


def deed(operation: str, vector: str, dose: float, low: float | None, high: float | None, tokens: int | None) -> str:
    """What was done, in words."""
    if operation == "stop":
        return "end the generation with the policy's message"
    until = "until the request ends" if tokens is None else f"for {tokens} tokens at most"
    match operation:
        case "ablate":
            what = f"take the projection on {vector} away"
        case "clamp":
            bounds = [f"at least {low:g}"] if low is not None else []
            bounds += [f"at most {high:g}"] if high is not None else []
            what = f"keep the projection on {vector} {' and '.join(bounds)} norms of the residual stream"
        case _:
            what = f"add {vector} at dose {dose:g}"
    return f"{what}, {until}"


def from_monitor(number: int, address: str) -> Why:
    """Explain an event that a monitor still keeps.

    Args:
        number: Its sequence.
        address: ``host:port`` of the monitor.

    Raises:
        PrerequisiteError: No monitor answers.
        PlumbobError: It does not keep the event, or nothing was decided by it.
    """
    events, policy = _events(number, address)
    first = next(events, None)
    if first is None or first.sequence != number:
        raise PlumbobError(
            f"The monitor at {address} does not keep event {number}.",
            "Explain it from the audit log: plumbob policy explain RECORD --audit FILE.",
        )
    kind = first.WhichOneof("payload")
    if kind not in EXPLAINED:
        raise PlumbobError(f"Event {number} is of kind {kind}: no rule decided it.", f"Name one of {_listed()}.")
    event = getattr(first, kind)
    if kind == "guarded":
        read = (event.repetition, event.threshold, event.position)
        return _of_guard(f"event {number}", event.request.request_id, *read, event.reason)
    why = Why(
        what=f"event {number}",
        kind=kind,
        request_id=event.request.request_id,
        probe=event.probe,
        score=event.aggregate,
        threshold=event.threshold,
        position=event.position,
        policy=policy,
    )
    return why if kind == "probe_fired" else _of_event(why, event, list(events))


def _of_event(why: Why, event: Any, later: list[Any]) -> Why:
    from monitor.v1 import event_pb2

    mode = event_pb2.Mode.Name(event.mode).removeprefix("MODE_").lower()
    said: dict[str, Any] = {"rule": event.rule, "mode": mode, "reason": event.reason}
    if why.kind == "intervention":
        given = {name: getattr(event, name) if event.HasField(name) else None for name in ("low", "high", "tokens")}
        operation = event_pb2.Operation.Name(event.operation).removeprefix("OPERATION_").lower()
        said |= {
            "agree": event.agree,
            "agree_of": event.agree_of,
            "gate": event.gate,
            "action": deed(operation, event.vector, event.dose, given["low"], given["high"], given["tokens"]),
            "result": _result(event.sent, mode, event.gate, event.refusal),
            "steered": _steered(_endings(event, later)) if event.sent else "nothing",
            "guard": _guard(
                other.guarded.position
                for other in later
                if other.WhichOneof("payload") == "guarded"
                and other.guarded.request.engine_request_id == event.request.engine_request_id
            ),
        }
    return replace(why, **said)


def _endings(event: Any, later: list[Any]) -> Iterator[tuple[str, int]]:
    """What later events say of the tokens steered."""
    for other in later:
        kind = other.WhichOneof("payload")
        about = getattr(other, kind)
        if (
            kind == "intervention_ended"
            and about.request.engine_request_id == event.request.engine_request_id
            and about.gate == event.gate
        ):
            yield "gate", about.steered
        elif kind == "request_finished" and about.request.engine_request_id == event.request.engine_request_id:
            yield "request", about.steered


def _of_guard(what: str, request_id: str, repetition: float, threshold: float, position: int, reason: str) -> Why:
    result = "the request is steered no more, for good"
    return Why(what, "guarded", request_id, "", repetition, threshold, position, result=result, reason=reason)


def _guard(positions: Iterable[int]) -> str:
    """Say from which token on the guard released a steered request; empty: it did not."""
    position = next(iter(positions), None)
    return "" if position is None else f"released from token {position} on, since the answer repeated itself"


def _events(number: int, address: str) -> tuple[Iterator[Any], str]:
    """The kept events from one on, and the policy in force."""
    import grpc

    from monitor.v1.monitor_service_pb2 import GetStatusRequest, WatchEventsRequest
    from monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub

    try:
        with grpc.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            stub = MonitorServiceStub(channel)
            status = stub.GetStatus(GetStatusRequest(), timeout=ANSWER_SECONDS)
            found: list[Any] = []
            if number <= status.last_sequence:
                call = stub.WatchEvents(WatchEventsRequest(after_sequence=number - 1), timeout=ANSWER_SECONDS)
                for response in call:
                    found.append(response.event)
                    if response.event.sequence >= status.last_sequence:
                        break
                call.cancel()
    except grpc.RpcError as error:
        raise PrerequisiteError(
            f"No monitor answers at {address}.", "Start one with plumbob monitor, or name its --address."
        ) from error
    digest = status.status.policy_digest[:12]
    return iter(found), f"{status.status.policy_name} ({digest or 'no file'})"


def from_audit(number: int, path: Path) -> Why:
    """Explain a record of an audit log.

    Args:
        number: Of the record; the log's lines say it.
        path: The log.

    Raises:
        AuditError: It cannot be read, or is not what was written.
        PlumbobError: It has no such record, or nothing was decided by it.
    """
    from monitor.sinks.audit import verify

    verify(path)
    lines = [msgspec.json.decode(raw) for raw in path.read_bytes().splitlines() if raw.endswith(b"}")]
    records = {line["sequence"]: line["record"] for line in lines if "sequence" in line}
    if number not in records:
        raise AuditError(f"{path} has no record {number}.", f"It has 1 to {max(records, default=0)}.")
    record = records[number]
    if record["kind"] not in ("intervention", "guarded", "escalated"):
        raise PlumbobError(
            f"Record {number} of {path} is of kind {record['kind']}: no rule decided it.",
            "Name one of kind intervention, guarded or escalated.",
        )
    if record["kind"] == "guarded":
        read = (record["repetition"], record["threshold"], record["position"])
        return _of_guard(f"record {number} of {path}", record["request_id"], *read, record["reason"])
    why = Why(
        what=f"record {number} of {path}",
        kind=record["kind"],
        request_id=record["request_id"],
        probe=record["probe"],
        score=record["score"],
        threshold=record["threshold"],
        position=record["position"],
        rule=record["rule"],
        mode=record["mode"],
        policy=f"{record['policy']} ({record['policy_digest'][:12] or 'no file'})",
        reason=record["reason"],
    )
    if why.kind == "escalated":
        return why
    sent, gate = record["result"] == "ordered", record.get("gate", "")
    given = (record["vector"], record["dose"], record.get("low"), record.get("high"), record["tokens"])
    later = [records[at] for at in sorted(records) if at > number]
    said: dict[str, Any] = {
        # Logs of earlier releases do not say these.
        "agree": record.get("agree", 0),
        "agree_of": record.get("agree_of", 0),
        "gate": gate,
        "action": deed(record.get("operation", "add"), *given),
        "result": _result(sent, why.mode, gate, record["refusal"] or ""),
        "steered": _steered(_recorded_endings(record, gate, later)) if sent else "nothing",
        "guard": _guard(
            other["position"]
            for other in later
            if other["kind"] == "guarded" and (other["key"], other["engine"]) == (record["key"], record["engine"])
        ),
    }
    return replace(why, **said)


def _recorded_endings(record: dict[str, Any], gate: str, later: list[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    for other in later:
        if other.get("key") != record["key"] or other.get("engine") != record["engine"]:
            continue
        if other["kind"] == "intervention_ended" and other["gate"] == gate:
            yield "gate", other["steered"]
        elif other["kind"] == "steering_ended":
            yield "request", other["steered"]


def _steered(endings: Iterable[tuple[str, int]]) -> str:
    for what, tokens in endings:
        if what == "gate":
            return f"{tokens} tokens, until the gate closed"
        return f"{tokens} tokens of the request, by all that was ordered for it"
    return "not known yet: neither the steering nor the request has ended, or it was not recorded"


def _result(sent: bool, mode: str, gate: str, refusal: str) -> str:
    if sent:
        return "the engine steered from that very token on" if gate else "the order went to the engine"
    if mode != "enforce":
        return "nothing was sent: this is what would have been done"
    return f"refused: {refusal}" if refusal else "refused"


def _listed() -> str:
    return ", ".join(EXPLAINED)
