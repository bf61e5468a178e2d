"""Reports of engines on steering that no rule and no operator ordered: their guard, and what requests asked for."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from monitor.events import Guarded, Ordered, Request, words
from monitor.ingest import Link
from monitor.interventions.deduplicator import Deduplicator
from monitor.interventions.state import RequestStates
from monitor.sinks.recorder import Recorder
from monitor.store import Admitted, Processed
from monitor.telemetry.stats import Stats
from monitor.verdicts import VerdictTable
from monitor.wire.frames import GuardEvent, Started


class Reports:
    """Records what engines report, each once.

    Args:
        recorder: Takes the events.
        stats: Where they are counted.
        verdicts: Knows the requests in flight.
        states: Of requests: those whose admission is recorded are heard of again after a loss.
        guarded: Numbers of what guards did that an earlier monitor recorded, by engine.
        max_engines: Engines whose numbers are kept; beyond it the one heard longest ago is forgotten.
    """

    def __init__(
        self,
        recorder: Recorder,
        stats: Stats,
        verdicts: VerdictTable,
        states: RequestStates,
        *,
        guarded: Mapping[str, AbstractSet[int]],
        max_engines: int,
    ) -> None:
        self._recorder, self._stats, self._verdicts, self._states = recorder, stats, verdicts, states
        self._guarded = Deduplicator[GuardEvent](guarded, max_engines, stats)

    def guarded(self, link: Link, events: Sequence[GuardEvent]) -> None:
        """Record which requests an engine's guard released, before the verdict table lets them go."""
        fresh, missing = self._guarded.fresh(link.engine, events)
        if missing:
            self._stats.guarded_lost[link.model,] += missing
        for event in fresh:
            request = self._verdicts.find(link.engine, event.engine_request_id, link.model)
            if request is None:
                request = Request(link.engine, link.model, event.request_id, event.engine_request_id, 0)
            self._stats.guarded[link.model,] += 1
            self._recorder.record(
                Guarded(
                    request=request,
                    position=event.position,
                    repetition=event.repetition,
                    threshold=event.threshold,
                    window=event.window,
                    gates=tuple(event.gates),
                    number=event.number,
                    reason=words.guard_released(
                        event.repetition, event.window, event.threshold, event.position, event.gates
                    ),
                ),
                Processed(link.engine, "guard", event.number),
            )

    def admitted(self, link: Link, started: Sequence[Started]) -> None:
        """Record the steering that requests which begin asked for."""
        for new in started:
            if new.admitted is None or (state := self._states.of(link.engine, new.engine_request_id)).admitted:
                continue
            state.admitted = True
            request = Request(
                link.engine, link.model, new.request_id, new.engine_request_id, new.prompt_tokens, new.part
            )
            acts = " and ".join(words.steering(**msgspec.structs.asdict(act)) for act in new.admitted.acts)
            where = " from the prompt on" if new.admitted.prompt else ""
            detail = f"{acts}{where} {words.span(new.admitted.tokens)}"
            self._stats.orders["request", "admission", "sent"] += 1
            self._recorder.record(
                Ordered("", "admission", "sent", link.engine, link.model, request, "request", None, detail, ""),
                Admitted(link.engine, new.engine_request_id),
            )
