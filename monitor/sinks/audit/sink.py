"""From the monitor's events to records of the audit log."""

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, get_args

from monitor import __version__
from monitor.events import Event, Intervention, Recorded, Request, RequestEvent, RequestFinished
from monitor.events.bounds import clip
from monitor.policy import Policy
from monitor.sinks.audit.log import AuditLog
from monitor.sinks.audit.records import (
    Context,
    EventRecord,
    PolicyRecord,
    RuleInForce,
    SegmentRecord,
    StartRecord,
    StopRecord,
)
from monitor.telemetry.stats import Stats
from probes.bundle import Bundle

TEXT_CHARACTERS: Final = 512
"""Texts are cut to this length, since clients choose the ids of their requests."""

AUDITED: Final[tuple[type[Event], ...]] = tuple(kind for kind in get_args(Event) if kind.audited)


class AuditSink:
    """Record interventions and what became of them, orders, engines, the policy, and the monitor's start and stop.

    A few records a steered request, none a token. It is a :class:`monitor.sinks.DurableSink`.

    Args:
        log: Written and closed by it.
        bundle: What the monitor reads with.
        policy: What decides.
        stats: Where the log's own counters are shown.
        steered: Tokens of a request in flight that have been steered.
        before: SHA-256 of the policy that decided before the monitor was started again; ``None``: it is not known.
        max_requests: Requests to remember that were ordered to be steered; beyond it the oldest is forgotten.
    """

    def __init__(
        self,
        log: AuditLog,
        bundle: Bundle,
        policy: Policy,
        stats: Stats,
        steered: Callable[[Request], int],
        before: str | None = None,
        max_requests: int = 65_536,
    ) -> None:
        self._log, self._stats, self._steered, self._max_requests = log, stats, steered, max_requests
        self._ordered: OrderedDict[tuple[str, str], int] = OrderedDict()
        """Engine and its id of a request to how often it was ordered to be steered."""
        log.append(StartRecord(__version__, _path(str(bundle.path)), bundle.digest))
        self._take(policy, before)

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
    def name(self) -> str:
        """That of its log."""
        return self._log.name

    @property
    def kinds(self) -> tuple[type[Event], ...]:
        """Events that are one record each; a request that ends is one where it was steered."""
        return AUDITED

    @property
    def accepted(self) -> int:
        """Number of the last record that was taken."""
        return self._log.accepted

    @property
    def settled(self) -> int:
        """Number of the last record that is in the file."""
        return self._log.settled

    def emit(self, recorded: Recorded) -> None:
        """Record the event, if it is of the kinds that are audited."""
        event = recorded.event
        # Steered without an order of ours: that of the monitor before this one.
        if event.audited or (isinstance(event, RequestFinished) and (event.steered or self._orders(event.request))):
            self._log.append(EventRecord(clip(event, TEXT_CHARACTERS), self._context(event)), recorded.time)
        if isinstance(event, RequestFinished):
            self._ordered.pop(_identity(event.request), None)
        elif isinstance(event, Intervention) and event.sent:
            self._ordered[_identity(event.request)] = self._orders(event.request) + 1
            if len(self._ordered) > self._max_requests:
                self._ordered.popitem(last=False)

    def count(self) -> None:
        """Bring the monitor's counters up to date."""
        self._stats.audit_records[()] = self._log.written
        self._stats.audit_records_lost[()] = self._log.lost
        for fault, count in self._log.faults.items():
            self._stats.audit_faults[fault,] = count
        self._log.remember()

    def begun(self) -> list[SegmentRecord]:
        """Beginnings of files that were not told yet, oldest first."""
        news = self._log.news()
        for begins in news:
            self._stats.audit_files_begun[begins.reason,] += 1
        return news

    def look(self) -> None:
        """Look at once whether the file is still there."""
        self._log.look()

    @property
    def file(self) -> str:
        """Path of the file that is written, in Unicode."""
        return _path(str(self._log.path))

    def close(self) -> None:
        """The monitor ends. May be called twice."""
        if not self._log.closed:
            self._log.append(StopRecord())
            self._log.close()
            self.count()

    def _context(self, event: Event) -> Context:
        request = event.request if isinstance(event, RequestEvent) else None
        if request is None:
            return Context(self._policy_name, self._policy.digest)
        steered = None if isinstance(event, RequestFinished) else self._steered(request)
        return Context(self._policy_name, self._policy.digest, self._orders(request), steered)

    def _orders(self, request: Request) -> int:
        """The number of orders to steer the request."""
        return self._ordered.get(_identity(request), 0)


def _identity(request: Request) -> tuple[str, str]:
    return request.engine, request.engine_request_id


def _path(path: str) -> str:
    """A path as Unicode, which one of the operating system need not be."""
    return clip(os.fsencode(path).decode(errors="replace"), TEXT_CHARACTERS)
