"""The calls of ``monitor.v1.MonitorService``."""

import logging
import secrets
from collections.abc import Callable
from typing import Final

import grpc
import grpc.aio

from monitor import __version__
from monitor.api.convert import event_message, kind_of, probe_message, status_message, trace_message, vector_message
from monitor.events import Event, EventLog, Recorded, request_of, type_name
from monitor.telemetry.stats import Status
from monitor.traces import Traces
from monitor.v1 import event_pb2, trace_pb2
from monitor.v1.monitor_service_pb2 import (
    GetStatusRequest,
    GetStatusResponse,
    GetTraceRequest,
    GetTraceResponse,
    ListProbesRequest,
    ListProbesResponse,
    ListTracesRequest,
    ListTracesResponse,
    WatchEventsRequest,
    WatchEventsResponse,
)
from monitor.v1.monitor_service_pb2_grpc import MonitorServiceServicer
from monitor.wire.bounds import bounded_id
from probes.bundle import Bundle

TraceContext = grpc.aio.ServicerContext[GetTraceRequest, GetTraceResponse]
TRACE_BYTES: Final = 1 << 20
"""The largest trace that is told; of a larger one, the first events."""
TRACES_BYTES: Final = 2 << 20
"""Of traces told together, so that no answer is larger than gRPC takes; those beyond come without points and events."""

logger = logging.getLogger(__name__)

WatchContext = grpc.aio.ServicerContext[WatchEventsRequest, WatchEventsResponse]


class MonitorService(MonitorServiceServicer):
    """Answers from the monitor's own objects, on its event loop.

    Args:
        events: The log to follow.
        status: Takes a snapshot of the monitor.
        bundle: What the monitor reads with.
        max_watchers: Calls of WatchEvents at once; one more is refused.
        traces: Of escalated requests; ``None``: none are kept.
    """

    def __init__(
        self,
        events: EventLog,
        status: Callable[[], Status],
        bundle: Bundle,
        *,
        max_watchers: int,
        traces: Traces | None = None,
    ) -> None:
        self._traces = traces
        self._events = events
        self._status = status
        self._bundle = bundle
        self._max_watchers = max_watchers
        self._watchers = 0
        self._log_id = secrets.token_hex(4)

    async def WatchEvents(self, request: WatchEventsRequest, context: WatchContext) -> None:
        """Follow the log until the watcher leaves or the log is closed.

        What was missed shows as a gap in the log's sequence, whatever the reason: the watcher was too slow,
        or the log no longer kept what it asked for.
        """
        wanted = await _filter(request, context)
        if self._watchers >= self._max_watchers:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"This monitor takes {self._max_watchers} watchers at once.",
            )
        after = self._resume_after(request)
        self._watchers += 1
        # Subscribed before the headers leave: a client that has them misses nothing from then on.
        subscription = self._events.subscribe(after)
        # Before anything is awaited: events that come meanwhile wait in the subscription.
        previous = self._events.last_sequence if after is None else after
        try:
            await context.send_initial_metadata(())
            dropped = 0
            async for recorded in subscription:
                dropped += recorded.sequence - previous - 1
                previous = recorded.sequence
                if not wanted(recorded.event):
                    continue
                if (message := _tellable(recorded)) is None:
                    # One that cannot be told is missed; whoever asked for it again would never come past it.
                    dropped += 1
                    continue
                await context.write(WatchEventsResponse(event=message, dropped=dropped, log_id=self._log_id))
        finally:
            self._events.unsubscribe(subscription)
            self._watchers -= 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "The monitor is stopping.")

    async def ListProbes(self, request: ListProbesRequest, context: object) -> ListProbesResponse:
        """List the bundle's probes and vectors."""
        manifest = self._bundle.manifest
        return ListProbesResponse(
            bundle_digest=self._bundle.digest,
            model=manifest.model.name,
            probes=[probe_message(probe) for probe in self._bundle.all_probes],
            vectors=[vector_message(vector) for vector in manifest.vectors],
        )

    async def GetStatus(self, request: GetStatusRequest, context: object) -> GetStatusResponse:
        """A snapshot."""
        return GetStatusResponse(
            status=status_message(self._status()),
            last_sequence=self._events.last_sequence,
            log_id=self._log_id,
            version=__version__,
        )

    async def ListTraces(self, request: ListTracesRequest, context: object) -> ListTracesResponse:
        """Escalated requests."""
        return ListTracesResponse(traces=self._found(None, whole=False))

    async def GetTrace(self, request: GetTraceRequest, context: TraceContext) -> GetTraceResponse:
        """One of them, or the few that share an id."""
        if not (found := self._found(bounded_id(request.request_id), whole=True)):
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"No trace of request '{request.request_id[:100]}' is kept: no rule escalated it, or it was long ago.",
            )
        return GetTraceResponse(traces=found)

    def _found(self, request_id: str | None, *, whole: bool) -> list[trace_pb2.Trace]:
        if self._traces is None:
            return []
        probes, room = self._traces.probes, TRACES_BYTES
        found: list[trace_pb2.Trace] = []
        for trace in self._traces.find(request_id):
            message = trace_message(trace, probes, whole=whole and room > 0)
            while message.events and message.ByteSize() > TRACE_BYTES:
                # The first ones say why it was escalated.
                del message.events[len(message.events) // 2 :]
                message.events_dropped = trace.events_dropped + len(trace.events) - len(message.events)
            room -= message.ByteSize()
            found.append(message)
        return found

    def _resume_after(self, request: WatchEventsRequest) -> int | None:
        """The sequence to begin after, or ``None`` for the next event."""
        if not request.HasField("after_sequence"):
            return None
        after = request.after_sequence
        other_log = request.log_id not in ("", self._log_id) or after > self._events.last_sequence
        return 0 if other_log else after


def _tellable(recorded: Recorded) -> event_pb2.Event | None:
    """An event as a message; ``None`` for one that has no such form, as with a number that the protocol cannot have."""
    try:
        return event_message(recorded)
    except (ValueError, TypeError, OverflowError):
        logger.exception("Event %d (%s) cannot be told to watchers.", recorded.sequence, type_name(recorded.event))
        return None


async def _filter(request: WatchEventsRequest, context: WatchContext) -> Callable[[Event], bool]:
    """The request's filter, as a predicate."""
    kinds = frozenset(request.kinds)
    if unknown := kinds.difference(event_pb2.EventKind.values()) | kinds & {event_pb2.EVENT_KIND_UNSPECIFIED}:
        await context.abort(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"kinds: {min(unknown)} is no kind of event; leave it empty for all.",
        )
    request_id = bounded_id(request.request_id) if request.HasField("request_id") else None

    def wanted(event: Event) -> bool:
        if kinds and kind_of(event) not in kinds:
            return False
        return request_id is None or ((about := request_of(event)) is not None and about.request_id == request_id)

    return wanted
