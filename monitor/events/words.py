"""Events in words, once: what ``plumbob watch``, ``plumbob policy explain``, the log, the audit log and ``reason`` say.

1. Phrases for what is done to a generation, of which reasons and details are made where it is decided.
2. :func:`wording`: an event as one line, and how grave it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from monitor.events.base import Mode, Severity
from monitor.events.types import (
    Alert,
    AuditChanged,
    EngineChanged,
    Escalated,
    Event,
    FramesLost,
    Guarded,
    Intervention,
    InterventionEnded,
    InterventionsLost,
    Ordered,
    PolicyChanged,
    ProbeFired,
    RequestFinished,
)

_VERBS: Final[dict[Mode, str]] = {"shadow": "shadows: would", "alert": "alerts:", "enforce": "enforces:"}


def steering(
    vector: str, *, add: float = 0.0, scale: float = 1.0, low: float | None = None, high: float | None = None
) -> str:
    """Steering by one vector; doses and bounds are in norms of the residual stream.

    Args:
        vector: Name of the steering vector.
        add: Dose.
        scale: Multiplied with; 0 takes the projection away.
        low: It is at least this; ``None``: no bound.
        high: It is at most this; ``None``: no bound.
    """
    done: list[str] = []
    if scale != 1.0:
        done.append(f"scale {vector} by {scale:g}" if scale else f"ablate {vector}")
    if low is not None and high is not None:
        done.append(f"clamp {vector} between {low:g} and {high:g}")
    elif low is not None or high is not None:
        done.append(f"clamp {vector} to {f'at most {high:g}' if low is None else f'at least {low:g}'}")
    if add:
        done.append(f"steer {vector} at dose {add:g}")
    return ", ".join(done) or f"leave {vector} as it is"


def span(tokens: int | None) -> str:
    """The span over which a request is steered."""
    return "until the request ends" if tokens is None else f"for {tokens} tokens"


def stop(message: str) -> str:
    """The end of a generation; the message itself is never recorded."""
    return "stop with the policy's message" if message else "stop"


def rule_decided(rule: str, mode: Mode, action: object) -> str:
    """A rule that chose an action, which has words of its own."""
    return f"rule '{rule}' {_VERBS[mode]} {action}"


def probe_reached(fired: ProbeFired) -> str:
    """The reading behind a decision."""
    return (
        f"probe {fired.probe} reached {fired.aggregate:.2f} (threshold {fired.threshold:.2f}) "
        f"at token {fired.position} ({fired.role})"
    )


def gate_opened(probe: str, average: float, threshold: float, agree: int, position: int) -> str:
    """The reading behind a decision of an engine's gate; ``probe`` is empty where the gate is not known."""
    row = "" if agree == 1 else f", {agree} averages in a row"
    read = (
        f"read probe {probe} at {average:.2f} (threshold {threshold:.2f}{row})" if probe else f"averaged {average:.2f}"
    )
    return f"the engine's gate {read} at token {position}"


def guard_released(repetition: float, window: int, threshold: float, position: int, gates: Iterable[str]) -> str:
    """The finding of an engine's guard in an answer, which it then released."""
    steered = " and ".join(gates)
    return (
        f"{repetition:.0%} of the sequences of three among the last {window} tokens repeat an earlier one "
        f"(allowed: under {threshold:.0%}); from token {position} on, it is steered no more"
    ) + (f"; steered up to there by {steered}" if steered else "")


def scores_invalid(counts: Mapping[str, int]) -> str:
    """What an engine's state is told with where probes gave no numbers; scores by probe."""
    of = ", ".join(f"{count} of {probe}" for probe, count in sorted(counts.items()))
    return f"{_NO_NUMBERS}: {of}; these tokens are unscored"


_NO_NUMBERS: Final = "scores that are no finite numbers"


def done(event: Intervention) -> str:
    """An intervention's effect on a generation."""
    if event.operation == "stop":
        return stop("its message")
    scale = 0.0 if event.operation == "ablate" else 1.0
    what = steering(event.vector, add=event.dose, scale=scale, low=event.low, high=event.high)
    return f"{what} {span(event.tokens)}"


@dataclass(frozen=True, slots=True)
class Wording:
    """An event in words."""

    label: str
    """One word for it, in capitals."""
    about: str
    """Id of the request as the user of the API sees it, or name of the model, or the policy's path."""
    text: str
    severity: Severity = "info"
    strong: str = ""
    """The beginning of the text that is set in bold where there is such type."""
    note: str = ""
    """Said in brackets: why nothing was changed."""

    def __str__(self) -> str:
        note = f" [{self.note}]" if self.note else ""
        return f"{self.label} {self.about} {self.text}{note}"


def wording(event: Event) -> Wording:
    """An event in words: the one place that knows each kind."""
    match event:
        case ProbeFired(request):
            read = f"{event.aggregate:.2f} ≥ {event.threshold:.2f} at token {event.position} ({event.role})"
            return Wording("FIRED", request.name, f"{event.probe} {read}", "warning", event.probe)
        case Alert(request):
            shadow = event.mode == "shadow"
            return Wording(
                "ALERT",
                request.name,
                f"{event.rule} {event.severity}: {event.reason}",
                "info" if shadow else event.severity,
                event.rule,
                "shadow: not sent" if shadow else "",
            )
        case Intervention():
            return _intervention(event)
        case InterventionEnded(request):
            by = event.rule or event.gate
            text = f"{by} ended at token {event.position}, {event.steered} steered"
            return Wording("STEER", request.name, text, strong=by)
        case InterventionsLost(engine, model):
            return Wording("LOST", model or engine, f"{event.decisions} decisions of gates", "critical")
        case Guarded(request):
            return Wording("GUARD", request.name, f"released: {event.reason}", "warning", "released")
        case Escalated(request):
            shadow = event.mode == "shadow"
            return Wording(
                "REVIEW",
                request.name,
                f"{event.rule} {event.reason}",
                "info" if shadow else "warning",
                event.rule,
                "shadow: no trace kept" if shadow else "",
            )
        case Ordered():
            return _ordered(event)
        case RequestFinished():
            return _finished(event)
        case PolicyChanged():
            result = "in force" if event.in_force else "refused"
            severity: Severity = "info" if event.in_force else "critical"
            return Wording("POLICY", event.policy, f"{result}: {event.reason}", severity, result)
        case AuditChanged(file, reason):
            severity = "info" if reason == "rotated" else "critical"
            return Wording("AUDIT", file, f"{reason}: {event.detail}", severity, reason)
        case EngineChanged(engine, model, state):
            severities: dict[str, Severity] = {"connected": "info", "shadow": "warning"}
            severity = severities.get(state, "critical")
            if severity == "info" and event.detail.startswith(_NO_NUMBERS):
                severity = "warning"
            return Wording("ENGINE", model or engine, f"{state}: {event.detail}", severity, state)
        case FramesLost(engine, model):
            return Wording("LOST", model or engine, f"{event.frames} frames", "warning")
        case _:
            assert_never(event)


def _intervention(event: Intervention) -> Wording:
    by, stopped = event.rule or event.gate, event.operation == "stop"
    text = f"{by}: {event.reason}" if stopped else f"{by} {done(event)}: {event.reason}"
    severity: Severity = "warning" if event.sent else "critical" if event.mode == "enforce" else "info"
    why = f", {event.refusal}" if event.refusal else ""
    note = "" if event.sent else f"{event.mode}: not sent{why}"
    return Wording("STOP" if stopped else "STEER", event.request.name, text, severity, by, note)


def _ordered(event: Ordered) -> Wording:
    about = event.model or event.engine if event.request is None else event.request.name
    lease = "" if event.lease_seconds is None else f", for {event.lease_seconds:g} s at most"
    why = f": {event.reason}" if event.reason else ""
    severity: Severity = "info" if event.who == "policy" and event.result == "sent" else "warning"
    text = f"{event.result} {event.detail} (by {event.who}{lease}){why}"
    return Wording("ORDER", about, text, severity, event.result)


def _finished(event: RequestFinished) -> Wording:
    said = [f"{event.tokens} tokens"]
    said += [f"{event.unscored} unscored"] if event.unscored else []
    said += [f"{unread.tokens} unread ({unread.role})" for unread in event.unread]
    said += [f"{reading.probe}: {reading.unscored} unscored" for reading in event.readings if reading.unscored]
    said += [f"{event.steered} steered"] if event.steered else []
    text = ", ".join(said)
    fired = [f"{reading.probe} at {reading.fired_at}" for reading in event.readings if reading.fired]
    peaks = [
        (peak - reading.threshold, peak, reading) for reading in event.readings if (peak := reading.peak) is not None
    ]
    if fired:
        text += f"; fired: {', '.join(fired)}"
    elif peaks:
        _, peak, closest = max(peaks, key=lambda found: found[0])
        text += f"; closest: {closest.probe} {peak:.2f} of {closest.threshold:.2f}"
    return Wording("DONE", event.request.name, text, "warning" if fired else "info")
