"""A watcher of the monitor that does not lose its place.

1. Ask for the state once: it tells whether a monitor answers, and where its log is now.
2. Follow the log from there, remembering the last sequence and the log that it was counted in.
3. When the stream breaks, wait, longer each time and jittered so that watchers do not come back in step; then
   go on from the place remembered. A monitor that was restarted has another log, and sends all that it kept.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio

from monitor.addresses import stays_here
from monitor.errors import PrerequisiteError
from monitor.telemetry.stats import SCORING
from monitor.v1.event_pb2 import EngineState, Event, EventKind
from monitor.v1.monitor_service_pb2 import GetStatusRequest, GetStatusResponse, WatchEventsRequest
from monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub
from monitor.wire.bounds import bounded_id

ANSWER_SECONDS: Final = 5.0
"""Seconds to wait for a monitor to answer a call."""

FIRST_DELAY_SECONDS: Final = 0.25
LONGEST_DELAY_SECONDS: Final = 15.0

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A new channel must dial at once, not inherit the patience of the one before.
    ("grpc.use_local_subchannel_pool", 1),
)

_DIRECT: Final = ("grpc.enable_http_proxy", 0)

_TRANSIENT: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)

_STATES: Final = {number: name.removeprefix("ENGINE_STATE_").lower() for name, number in EngineState.items()}


def channel_to(address: str) -> grpc.Channel:
    """A channel to a monitor, for code that is not asynchronous; to be closed, or used as a context manager.

    Proxies of the environment lie between only where the monitor is on another host; what ``no_proxy`` has is reached
    directly there, too.

    Args:
        address: ``host:port`` of a monitor.
    """
    return grpc.insecure_channel(address, options=_options(address))


def _options(address: str) -> Sequence[tuple[str, int]]:
    return (*_OPTIONS, _DIRECT) if stays_here(address) else _OPTIONS


@dataclass(frozen=True, slots=True)
class Notice:
    """News for a watcher besides the events."""

    text: str
    """One sentence."""


def engines_of(address: str, seconds: float = ANSWER_SECONDS) -> list[str]:
    """Ids of the engines that are connected to one's own monitor, with scores that may be enforced on or not.

    Args:
        address: ``host:port`` of a monitor on this host, whatever the interface is called.
        seconds: To wait for its answer.

    Raises:
        grpc.RpcError: It does not answer.
    """
    with grpc.insecure_channel(address, options=(*_OPTIONS, _DIRECT)) as channel:
        answer = MonitorServiceStub(channel).GetStatus(GetStatusRequest(), timeout=seconds)
    return [engine.engine for engine in answer.status.engines if _STATES.get(engine.state) in SCORING]


async def follow(
    address: str,
    *,
    kinds: Sequence[EventKind] = (),
    request_id: str | None = None,
    after: int | None = None,
) -> AsyncIterator[Event | Notice]:
    """Events as they come, through every loss of connection but the first.

    Args:
        address: ``host:port`` of a monitor.
        kinds: Only these; empty: all.
        request_id: Only events of requests with this id.
        after: Begin with the kept events of a higher sequence; ``None`` begins with the next event.

    Yields:
        Events, and notices of what happened to the connection or was missed.

    Raises:
        PrerequisiteError: No monitor answers, or it refuses the call.
    """
    wanted = None if request_id is None else bounded_id(request_id)
    request = WatchEventsRequest(kinds=kinds, request_id=wanted)
    state = await ask_state(address)
    # A sequence that the user names belongs to whichever log it fits.
    request.after_sequence, request.log_id = (state.last_sequence, state.log_id) if after is None else (after, "")
    if why := unready(state):
        yield Notice(f"{why} Nothing is read.")
    failures = 0
    while True:
        reason = f"The monitor at {address} ended the stream."
        try:
            async with grpc.aio.insecure_channel(address, options=_options(address)) as channel:
                call = MonitorServiceStub(channel).WatchEvents(request)
                async with asyncio.timeout(ANSWER_SECONDS):
                    await call.wait_for_connection()
                if failures:
                    # Only an event forgives them: a proxy that accepts and hangs up is not hurried.
                    yield Notice(f"Connected to {address} again.")
                missed = 0
                async for response in call:
                    failures = 0
                    if request.log_id not in ("", response.log_id):
                        yield Notice("The monitor was restarted: its events are numbered from 1 again.")
                    if response.dropped > missed:
                        yield Notice(f"{response.dropped - missed} events were missed.")
                    missed = response.dropped
                    request.after_sequence, request.log_id = response.event.sequence, response.log_id
                    yield response.event
        except grpc.aio.AioRpcError as error:
            if error.code() not in _TRANSIENT:
                raise _refused(address, error) from error
            full = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            reason = error.details() if full else f"The connection to {address} is lost."
        except TimeoutError:
            reason = f"No answer from {address} for {ANSWER_SECONDS:.0f} s."
        failures += 1
        delay = retry_delay(failures)
        yield Notice(f"{reason} Trying again in {delay:.1f} s.")
        await asyncio.sleep(delay)


def retry_delay(failures: int) -> float:
    """Seconds to wait after so many failures in a row: doubling up to a limit, its upper half random."""
    longest = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(failures - 1, 16))
    return random.uniform(longest / 2, longest)


def unready(state: GetStatusResponse) -> str:
    """Why a monitor scores nothing, as a sentence; empty where it does."""
    if not (engines := state.status.engines):
        return "No engine has connected to this monitor."
    names = [_STATES.get(engine.state, "in a state of a newer monitor") for engine in engines]
    if any(name in SCORING and not engine.unread for engine, name in zip(engines, names, strict=True)):
        return ""
    found = [
        f"{engine.model or engine.engine} is {'unread' if name in SCORING else name}"
        for engine, name in zip(engines, names, strict=True)
    ]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"No engine of this monitor is scored: {', '.join(found[:3])}{more}."


async def ask_state(address: str) -> GetStatusResponse:
    """The state of a monitor, and the place in its log.

    Raises:
        PrerequisiteError: No monitor answers, or it refuses the call.
    """
    try:
        async with grpc.aio.insecure_channel(address, options=_options(address)) as channel:
            return await MonitorServiceStub(channel).GetStatus(GetStatusRequest(), timeout=ANSWER_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise PrerequisiteError(
                f"No monitor answers at {address}.",
                "Start one with plumbob monitor or plumbob serve, or name its address.",
            ) from error
        raise _refused(address, error) from error


def _refused(address: str, error: grpc.aio.AioRpcError) -> PrerequisiteError:
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return PrerequisiteError(
            f"What answers at {address} is not a plumbob monitor, or one of another version.",
            "Name the monitor's gRPC address, and use the same version of plumbob on both sides.",
        )
    return PrerequisiteError(f"The monitor at {address} refuses: {error.details()} ({error.code().name}).")
