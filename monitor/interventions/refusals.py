"""Orders that engines do not carry out, or no more: recorded once each, with what follows from it.

What a gate cannot do, the monitor orders from now on; where a rule cannot steer that fails closed, the generation is
stopped.
"""

from collections.abc import Sequence
from typing import Final, get_args

from monitor.events import Ordered, OrderKind, OrderResult, Request
from monitor.ingest import Link
from monitor.interventions.decide import Actions
from monitor.interventions.deduplicator import Deduplicator
from monitor.interventions.gates import Gates
from monitor.interventions.operator import Operator
from monitor.sinks.recorder import Recorder
from monitor.store import Processed, Store
from monitor.telemetry.stats import Stats
from monitor.verdicts import VerdictTable
from monitor.wire.frames import Refusal

ORDER_KINDS: Final[dict[str, OrderKind]] = {kind: kind for kind in get_args(OrderKind)}
"""Orders that an engine may refuse; a later release may have more."""


class Refusals:
    """Records refusals.

    Args:
        recorder: Takes the events.
        stats: Where refusals are counted.
        verdicts: Knows the requests in flight.
        gates: Those of the policy.
        operator: Its orders may be refused as well.
        actions: Orders what gates do not do.
        store: Knows what is recorded already, by this monitor or one before it.
        max_engines: Engines whose numbers are kept; beyond it the one heard longest ago is forgotten.
    """

    def __init__(
        self,
        recorder: Recorder,
        stats: Stats,
        verdicts: VerdictTable,
        gates: Gates,
        operator: Operator,
        actions: Actions,
        store: Store,
        max_engines: int,
    ) -> None:
        self._recorder, self._stats, self._verdicts = recorder, stats, verdicts
        self._gates, self._operator, self._actions, self._store = gates, operator, actions, store
        self._deduplicator = Deduplicator[Refusal](store.state.processed("refusal"), max_engines, stats)

    def take(self, link: Link, refusals: Sequence[Refusal]) -> None:
        """Take an engine's refusals; those that are missing before them are counted as lost."""
        fresh, missing = self._deduplicator.fresh(link.engine, refusals)
        if missing:
            self._stats.refusals_lost[link.model,] += missing
        for refusal in fresh:
            self._take(link, refusal, self._verdicts.find(link.engine, refusal.engine_request_id, link.model))

    def _take(self, link: Link, refusal: Refusal, request: Request | None) -> None:
        if refusal.cause == "expired":
            if self._operator.expired(link.engine, refusal.id, refusal.engine_request_id):
                self._record(link, refusal, request, "expired")
            else:
                self._store.note(Processed(link.engine, "refusal", refusal.number))
            return
        self._record(link, refusal, request, "refused")
        if refusal.order == "arm" and refusal.engine_request_id:
            if request is not None and self._gates.left_out(request, refusal.id) and not link.held:
                self._actions.follow_one(request, refusal.id)
            return
        if self._gates.refused(link.engine, refusal.id) and not link.held:
            self._actions.follow(link.engine, refusal.id)
        self._operator.refused(link.engine, refusal.id, refusal.engine_request_id)
        # Where an order came too late, there is nothing left to stop.
        if refusal.order == "steer" and refusal.cause != "request" and request is not None and not link.held:
            self._actions.refused(request, refusal.id, refusal.reason)

    def _record(self, link: Link, refusal: Refusal, request: Request | None, result: OrderResult) -> None:
        kind, processed = ORDER_KINDS.get(refusal.order), Processed(link.engine, "refusal", refusal.number)
        if kind is None:
            self._store.note(processed)
            return
        if request is None and refusal.engine_request_id:
            request = Request(link.engine, link.model, "", refusal.engine_request_id, 0)
        self._stats.orders["engine", kind, result] += 1
        detail = f"{refusal.order} {refusal.id}".strip()
        self._recorder.record(
            Ordered(
                refusal.id,
                kind,
                result,
                link.engine,
                link.model,
                request,
                "engine",
                None,
                f"{detail} ({refusal.cause})",
                refusal.reason,
            ),
            processed,
        )
