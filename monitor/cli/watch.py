"""``plumbob watch``: live events in the terminal, one line each."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC
from typing import Final

from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.text import Text

from monitor.api.client import Notice, follow
from monitor.cli.console import err, out
from monitor.errors import PlumbobError
from monitor.v1 import event_pb2
from monitor.v1.event_pb2 import Event, EventKind

KINDS: Final[dict[str, EventKind]] = {
    "probe_fired": event_pb2.EVENT_KIND_PROBE_FIRED,
    "alert": event_pb2.EVENT_KIND_ALERT,
    "intervention": event_pb2.EVENT_KIND_INTERVENTION,
    "request_finished": event_pb2.EVENT_KIND_REQUEST_FINISHED,
    "engine_changed": event_pb2.EVENT_KIND_ENGINE_CHANGED,
    "frames_lost": event_pb2.EVENT_KIND_FRAMES_LOST,
    "intervention_ended": event_pb2.EVENT_KIND_INTERVENTION_ENDED,
    "interventions_lost": event_pb2.EVENT_KIND_INTERVENTIONS_LOST,
    "escalated": event_pb2.EVENT_KIND_ESCALATED,
    "ordered": event_pb2.EVENT_KIND_ORDERED,
    "guarded": event_pb2.EVENT_KIND_GUARDED,
    "policy_changed": event_pb2.EVENT_KIND_POLICY_CHANGED,
}
"""The kinds of event, as the command line names them."""

_SEVERITY_STYLES: Final = {
    event_pb2.SEVERITY_INFO: "cyan",
    event_pb2.SEVERITY_WARNING: "yellow",
    event_pb2.SEVERITY_CRITICAL: "bold red",
}

_STATE_STYLES: Final = {
    event_pb2.ENGINE_STATE_CONNECTED: "green",
    event_pb2.ENGINE_STATE_LOST: "bold red",
    event_pb2.ENGINE_STATE_REFUSED: "bold red",
}


def watch(
    address: str,
    *,
    kinds: Sequence[str] = (),
    request_id: str | None = None,
    json_lines: bool = False,
    after: int | None = None,
    console: Console = out,
) -> None:
    """Print events as they come, until interrupted. Losses of the connection are mended and told on stderr.

    Args:
        address: ``host:port`` of a monitor.
        kinds: Only these, of :data:`KINDS`; empty: all.
        request_id: Only events of requests with this id.
        json_lines: One JSON object a line, as protobuf maps it: 64-bit numbers are strings.
        after: Begin with the kept events of a higher sequence; ``None`` begins with the next event.
        console: Where to print; stdout by default, coloured if it is a terminal and ``NO_COLOR`` is not set.

    Raises:
        PlumbobError: A kind that does not exist; no monitor answers, or it refuses.
        SystemExit: With 130, when interrupted.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise PlumbobError(f"'{unknown[0]}' is no kind of event.", f"Choose among: {', '.join(KINDS)}.")
    if not address.strip():
        raise PlumbobError(f"'{address}' is no address of a monitor.", "Write it as host:port, or leave it out.")
    events = follow(address, kinds=[KINDS[kind] for kind in kinds], request_id=request_id, after=after)
    try:
        asyncio.run(_print(events, console, json_lines=json_lines))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


async def _print(items: AsyncIterator[Event | Notice], console: Console, *, json_lines: bool) -> None:
    async for item in items:
        if isinstance(item, Notice):
            err.print(Text(item.text, "dim"))
        elif json_lines:
            console.out(format_json(item), highlight=False)
        else:
            console.print(format_event(item), soft_wrap=True)


def format_json(event: Event) -> str:
    """An event as one line of JSON; fields that are zero are there, absent optional ones are not."""
    return MessageToJson(
        event,
        indent=None,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )


def format_event(event: Event) -> Text:
    """An event as one line: time, what happened, to which request or engine, and why."""
    line = Text().append(f"{event.time.ToDatetime(UTC).astimezone():%H:%M:%S.%f}"[:-3], "dim")
    match event.WhichOneof("payload"):
        case "probe_fired":
            _probe_fired(line, event.probe_fired)
        case "alert":
            _alert(line, event.alert)
        case "intervention":
            _intervention(line, event.intervention)
        case "request_finished":
            _request_finished(line, event.request_finished)
        case "engine_changed":
            changed = event.engine_changed
            _begin(line, "ENGINE", _STATE_STYLES.get(changed.state, "dim"), changed.model or changed.engine)
            _add(line, f"{_name(event_pb2.EngineState.Name(changed.state))}: {changed.detail}")
        case "frames_lost":
            _begin(line, "LOST", "bold red", event.frames_lost.model or event.frames_lost.engine)
            _add(line, f"{event.frames_lost.frames} frames")
        case "intervention_ended":
            ended = event.intervention_ended
            _begin(line, "STEER", "magenta", ended.request.request_id)
            _add(line, ended.rule or ended.gate, "bold")
            _add(line, f" ended at token {ended.position}, {ended.steered} steered")
        case "interventions_lost":
            lost = event.interventions_lost
            _begin(line, "LOST", "bold red", lost.model or lost.engine)
            _add(line, f"{lost.decisions} decisions of gates")
        case "guarded":
            guarded = event.guarded
            _begin(line, "GUARD", "bold yellow", guarded.request.request_id)
            _add(line, "released", "bold")
            _add(line, f": {guarded.reason}")
        case "escalated":
            _escalated(line, event.escalated)
        case "ordered":
            _ordered(line, event.ordered)
        case "policy_changed":
            changed = event.policy_changed
            _begin(line, "POLICY", "cyan" if changed.in_force else "bold red", changed.policy)
            _add(line, "in force" if changed.in_force else "refused", "bold")
            _add(line, f": {changed.reason}")
        case _:
            # A newer monitor tells things that this version has no words for.
            _begin(line, "EVENT", "dim", str(event.sequence))
    return line


def _probe_fired(line: Text, fired: event_pb2.ProbeFired) -> None:
    _begin(line, "FIRED", "yellow", fired.request.request_id)
    _add(line, fired.probe, "bold")
    _add(line, f" {fired.aggregate:.2f} ≥ {fired.threshold:.2f} at token {fired.position} ({fired.role})")


def _alert(line: Text, alert: event_pb2.Alert) -> None:
    _begin(line, "ALERT", _SEVERITY_STYLES.get(alert.severity, "cyan"), alert.request.request_id)
    _add(line, alert.rule, "bold")
    _add(line, f" {_name(event_pb2.Severity.Name(alert.severity))}: {alert.reason}")
    if alert.mode == event_pb2.MODE_SHADOW:
        _add(line, " [shadow: not sent]", "dim")


def _intervention(line: Text, steered: event_pb2.Intervention) -> None:
    stop = steered.operation == event_pb2.OPERATION_STOP
    _begin(line, "STOP" if stop else "STEER", "magenta", steered.request.request_id)
    _add(line, steered.rule or steered.gate, "bold")
    _add(line, ": " if stop else f" {_what(steered)}: ")
    _add(line, steered.reason)
    if not steered.sent:
        enforced = steered.mode == event_pb2.MODE_ENFORCE
        mode = _name(event_pb2.Mode.Name(steered.mode))
        why = f", {steered.refusal}" if steered.refusal else ""
        _add(line, f" [{mode}: not sent{why}]", "bold red" if enforced else "dim")


def _what(steered: event_pb2.Intervention) -> str:
    """The vector, what is done to its projection, and for how long."""
    span = f"for {steered.tokens} tokens" if steered.HasField("tokens") else "to the end"
    match steered.operation:
        case event_pb2.OPERATION_ABLATE:
            done = "ablated"
        case event_pb2.OPERATION_CLAMP:
            low = f"{steered.low:+.2f}" if steered.HasField("low") else "−∞"
            high = f"{steered.high:+.2f}" if steered.HasField("high") else "+∞"
            done = f"clamped to {low}..{high}"
        case _:
            done = f"{steered.dose:+.2f}"
    return f"{steered.vector} {done} {span}"


def _escalated(line: Text, escalated: event_pb2.Escalated) -> None:
    _begin(line, "REVIEW", "bold yellow", escalated.request.request_id)
    _add(line, escalated.rule, "bold")
    _add(line, f" {escalated.reason}")
    if escalated.mode == event_pb2.MODE_SHADOW:
        _add(line, " [shadow: no trace kept]", "dim")


def _ordered(line: Text, ordered: event_pb2.Ordered) -> None:
    refused = ordered.result == event_pb2.ORDER_RESULT_REFUSED
    about = ordered.request.request_id if ordered.HasField("request") else ordered.model or ordered.engine
    _begin(line, "ORDER", "bold red" if refused else "cyan", about)
    _add(line, _name(event_pb2.OrderResult.Name(ordered.result)), "bold")
    lease = f", for {ordered.lease_seconds:g} s at most" if ordered.HasField("lease_seconds") else ""
    why = f": {ordered.reason}" if ordered.reason else ""
    _add(line, f" {ordered.detail} (by {ordered.who}{lease}){why}")


def _request_finished(line: Text, finished: event_pb2.RequestFinished) -> None:
    _begin(line, "DONE", "green", finished.request.request_id)
    _add(line, f"{finished.tokens} tokens")
    if finished.unscored:
        _add(line, f", {finished.unscored} unscored", "yellow")
    for reading in finished.readings:
        if reading.unscored:
            _add(line, f", {reading.probe}: {reading.unscored} unscored", "yellow")
    if finished.steered:
        _add(line, f", {finished.steered} steered", "magenta")
    fired = [reading for reading in finished.readings if reading.HasField("fired_at")]
    read = [reading for reading in finished.readings if reading.HasField("peak")]
    if fired:
        _add(
            line,
            "; fired: " + ", ".join(f"{reading.probe} at {reading.fired_at}" for reading in fired),
            "yellow",
        )
    elif read:
        closest = max(read, key=lambda reading: reading.peak - reading.threshold)
        _add(line, f"; closest: {closest.probe} {closest.peak:.2f} of {closest.threshold:.2f}", "dim")


def _begin(line: Text, label: str, style: str, subject: str) -> None:
    line.append(f" {label:<6} ", style)
    _add(line, f"{subject} ", "cyan")


def _add(line: Text, text: str, style: str = "") -> None:
    """Append text that others may have chosen: a request id must not send escape codes to a terminal."""
    line.append("".join(char if char.isprintable() else "�" for char in text), style)


def _name(value: str) -> str:
    """``SEVERITY_CRITICAL`` as ``critical``."""
    return value.rpartition("_")[2].lower()
