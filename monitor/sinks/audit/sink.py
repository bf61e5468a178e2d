"""From the monitor's events to records of the audit log."""

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from monitor import __version__
from monitor.events import (
    EngineChanged,
    Escalated,
    Guarded,
    Intervention,
    InterventionEnded,
    InterventionsLost,
    Ordered,
    Recorded,
    Request,
    RequestFinished,
)
from monitor.policy import Policy
from monitor.sinks.audit.log import AuditLog
from monitor.sinks.audit.records import (
    EndRecord,
    EngineRecord,
    EscalationRecord,
    GateClosedRecord,
    GateLossRecord,
    GuardRecord,
    InterventionRecord,
    OrderRecord,
    PolicyRecord,
    Result,
    RuleInForce,
    StartRecord,
    StopRecord,
)
from monitor.telemetry.stats import Stats
from probes.bundle import Bundle

TEXT_CHARACTERS: Final = 512
"""What others name may be of any length: clients choose the ids of their requests."""


class AuditSink:
    """Records interventions and what became of them, orders, engines, the policy, and the monitor's start and stop.

    A few records a steered request, none a token. It is a :class:`monitor.sinks.Sink`.

    Args:
        log: Written and closed by it.
        bundle: What the monitor reads with.
        policy: What decides.
        stats: Where the log's own counters are shown.
        steered: Tokens of a request in flight that have been steered.
        max_requests: Requests to remember that were ordered to be steered; beyond it the oldest is forgotten.
    """

    def __init__(
        self,
        log: AuditLog,
        bundle: Bundle,
        policy: Policy,
        stats: Stats,
        steered: Callable[[Request], int],
        max_requests: int = 65_536,
    ) -> None:
        self._log, self._stats, self._steered, self._max_requests = log, stats, steered, max_requests
        self._ordered: OrderedDict[tuple[str, str], int] = OrderedDict()
        """Engine and key of a request to how often it was ordered to be steered."""
        log.append(StartRecord(__version__, _path(str(bundle.path)), bundle.digest))
        self._take(policy, None)

    def change_policy(self, policy: Policy) -> None:
        """Another policy decides from here on."""
        self._take(policy, self._policy.digest)

    def _take(self, policy: Policy, before: str | None) -> None:
        self._policy, self._policy_name = policy, _path(policy.name)
        rules = tuple(
            RuleInForce(rule.name, rule.probe, rule.models, rule.mode, tuple(map(str, rule.actions)))
            for rule in policy.rules
        )
        self._log.append(PolicyRecord(self._policy_name, policy.digest, rules, before))

    @property
    def accepted(self) -> int:
        """Records so far."""
        return self._log.accepted

    @property
    def settled(self) -> int:
        """Those of them, from the first on, that are in the file, or never will be."""
        return self._log.settled

    def emit(self, recorded: Recorded) -> None:
        """Record the event, if it is of the kinds that are audited."""
        match recorded.event:
            case Intervention() as event:
                self._log.append(self._intervention(event), recorded.time)
            case RequestFinished() as event:
                ordered = self._ordered.pop((event.request.engine, event.request.engine_request_id), 0)
                # Steered without an order of ours: that of the monitor before this one.
                if ordered or event.steered:
                    self._log.append(_end(event, ordered), recorded.time)
            case InterventionEnded() as event:
                self._log.append(_closed(event), recorded.time)
            case InterventionsLost() as event:
                record = GateLossRecord(_text(event.engine), _text(event.model), event.decisions)
                self._log.append(record, recorded.time)
            case Guarded() as event:
                self._log.append(_guarded(event), recorded.time)
            case Escalated() as event:
                self._log.append(self._escalation(event), recorded.time)
            case Ordered() as event:
                self._log.append(_order(event), recorded.time)
            case EngineChanged() as event:
                record = EngineRecord(_text(event.engine), _text(event.model), event.state, _text(event.detail))
                self._log.append(record, recorded.time)
            case _:
                pass

    def count(self) -> None:
        """Bring the monitor's counters up to date."""
        self._stats.audit_records[()] = self._log.written
        self._stats.audit_records_lost[()] = self._log.lost
        for fault, count in self._log.faults.items():
            self._stats.audit_faults[fault,] = count

    def close(self) -> None:
        """The monitor ends. May be called twice."""
        if not self._log.closed:
            self._log.append(StopRecord())
            self._log.close()
            self.count()

    def _intervention(self, event: Intervention) -> InterventionRecord:
        request = event.request
        result: Result = "ordered" if event.sent else "refused" if event.mode == "enforce" else "shadow"
        if event.sent:
            identity = (request.engine, request.engine_request_id)
            self._ordered[identity] = self._ordered.get(identity, 0) + 1
            if len(self._ordered) > self._max_requests:
                self._ordered.popitem(last=False)
        return InterventionRecord(
            engine=_text(request.engine),
            model=_text(request.model),
            request_id=_text(request.request_id),
            key=_text(request.engine_request_id),
            policy=self._policy_name,
            policy_digest=self._policy.digest,
            rule=event.rule,
            mode=event.mode,
            probe=event.probe,
            score=event.aggregate,
            threshold=event.threshold,
            position=event.position,
            vector=event.vector,
            dose=event.dose,
            tokens=event.tokens,
            steered=self._steered(request),
            result=result,
            refusal=_text(event.refusal) if result == "refused" else None,
            reason=_text(event.reason),
            operation=event.operation,
            low=event.low,
            high=event.high,
            gate=_text(event.gate),
            number=event.number,
            agree=event.agree,
            agree_of=event.agree_of,
        )

    def _escalation(self, event: Escalated) -> EscalationRecord:
        return EscalationRecord(
            engine=_text(event.request.engine),
            model=_text(event.request.model),
            request_id=_text(event.request.request_id),
            key=_text(event.request.engine_request_id),
            policy=self._policy_name,
            policy_digest=self._policy.digest,
            rule=event.rule,
            mode=event.mode,
            probe=event.probe,
            score=event.aggregate,
            threshold=event.threshold,
            position=event.position,
            reason=_text(event.reason),
        )


def _closed(event: InterventionEnded) -> GateClosedRecord:
    return GateClosedRecord(
        engine=_text(event.request.engine),
        model=_text(event.request.model),
        request_id=_text(event.request.request_id),
        key=_text(event.request.engine_request_id),
        rule=event.rule,
        gate=_text(event.gate),
        number=event.number,
        position=event.position,
        steered=event.steered,
    )


def _guarded(event: Guarded) -> GuardRecord:
    return GuardRecord(
        engine=_text(event.request.engine),
        model=_text(event.request.model),
        request_id=_text(event.request.request_id),
        key=_text(event.request.engine_request_id),
        position=event.position,
        repetition=event.repetition,
        threshold=event.threshold,
        window=event.window,
        gates=tuple(map(_text, event.gates)),
        number=event.number,
        reason=_text(event.reason),
    )


def _order(event: Ordered) -> OrderRecord:
    return OrderRecord(
        order=_text(event.order),
        action=event.kind,
        result=event.result,
        engine=_text(event.engine),
        model=_text(event.model),
        request_id=None if event.request is None else _text(event.request.request_id),
        key=None if event.request is None else _text(event.request.engine_request_id),
        who=_text(event.who),
        lease_seconds=event.lease_seconds,
        detail=_text(event.detail),
        reason=_text(event.reason),
    )


def _end(event: RequestFinished, ordered: int) -> EndRecord:
    request = event.request
    return EndRecord(
        engine=_text(request.engine),
        model=_text(request.model),
        request_id=_text(request.request_id),
        key=_text(request.engine_request_id),
        ordered=ordered,
        steered=event.steered,
        tokens=event.tokens,
    )


def _text(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else f"{text[: TEXT_CHARACTERS - 1]}…"


def _path(path: str) -> str:
    """A path as Unicode, which one of the operating system need not be."""
    return _text(os.fsencode(path).decode(errors="replace"))
