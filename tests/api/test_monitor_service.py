"""The service as any client sees it: a real server on a free port, called with the generated stubs."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from monitor.api.service import MonitorService
from monitor.events import Escalated, Request
from monitor.traces import MAX_TRACES, Traces
from monitor.v1 import event_pb2
from monitor.v1.monitor_service_pb2 import GetStatusRequest, GetTraceRequest, ListProbesRequest, WatchEventsRequest
from monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def stub_of(server, **options):
    arguments = [("grpc.use_local_subchannel_pool", 1), *options.items()]
    async with grpc.aio.insecure_channel(server.address, options=arguments) as channel:
        yield MonitorServiceStub(channel)


async def watching(stub, **request):
    """A call whose subscription is known to stand."""
    call = stub.WatchEvents(WatchEventsRequest(**request))
    await call.initial_metadata()
    return call


async def sequences(call, count):
    return [(await call.read()).event.sequence for _ in range(count)]


async def eventually(condition):
    while not condition():
        await asyncio.sleep(0.01)


def test_headers_come_before_any_event_and_nothing_is_missed_after(monitor):
    async def run():
        async with monitor.serve() as server, stub_of(server) as stub:
            monitor.publish_alert()
            call = await watching(stub)
            monitor.publish_loss(3)
            response = await call.read()
            assert response.event.sequence == 2
            assert response.event.frames_lost.frames == 3
            assert response.dropped == 0

    asyncio.run(run())


def test_an_event_while_the_headers_leave_is_no_loss(monitor):
    class Context:
        def __init__(self):
            self.written = []

        async def send_initial_metadata(self, metadata):
            monitor.publish_loss(3)

        async def write(self, response):
            self.written.append((response.event.sequence, response.dropped))
            monitor.events.close()

        async def abort(self, code, details):
            assert code == grpc.StatusCode.UNAVAILABLE

    context = Context()
    service = MonitorService(monitor.events, monitor.status, monitor.bundle, max_watchers=1)
    asyncio.run(service.WatchEvents(WatchEventsRequest(), context))
    assert context.written == [(1, 0)]


def test_resumes_after_a_sequence(monitor):
    async def run():
        async with monitor.serve() as server, stub_of(server) as stub:
            for _ in range(5):
                monitor.publish_alert()
            first = await (await watching(stub, after_sequence=0)).read()
            call = await watching(stub, after_sequence=3, log_id=first.log_id)
            monitor.publish_alert()
            assert await sequences(call, 3) == [4, 5, 6]

    asyncio.run(run())


@pytest.mark.parametrize("place", [{"after_sequence": 9}, {"after_sequence": 2, "log_id": "another"}])
def test_a_place_in_another_log_begins_anew(monitor, place):
    async def run():
        async with monitor.serve() as server, stub_of(server) as stub:
            for _ in range(3):
                monitor.publish_alert()
            call = await watching(stub, **place)
            assert await sequences(call, 3) == [1, 2, 3]

    asyncio.run(run())


def test_what_is_no_longer_kept_is_counted(monitor):
    monitor.restart(keep=4)

    async def run():
        async with monitor.serve() as server, stub_of(server) as stub:
            for _ in range(10):
                monitor.publish_alert()
            response = await (await watching(stub, after_sequence=2)).read()
            assert (response.event.sequence, response.dropped) == (7, 4)

    asyncio.run(run())


def test_what_one_request_had_too_much_of_is_a_gap_and_the_others_are_there(monitor):
    monitor.restart(keep=32)

    async def run():
        async with monitor.serve() as server, stub_of(server) as stub:
            monitor.publish_alert("small")
            for _ in range(100):
                monitor.publish_alert("large")
            call = await watching(stub, after_sequence=0)
            first, second = await call.read(), await call.read()
            assert (first.event.alert.request.request_id, first.dropped) == ("small", 0)
            assert (second.event.sequence, second.dropped) == (71, 69)
            assert await sequences(call, 30) == list(range(72, 102))

    asyncio.run(run())


def test_filters(monitor):
    async def run():
        async with monitor.serve() as server, stub_of(server) as stub:
            by_kind = await watching(stub, kinds=[event_pb2.EVENT_KIND_FRAMES_LOST])
            by_request = await watching(stub, request_id="chat-2")
            monitor.publish_alert("chat-1")
            monitor.publish_alert("chat-2")
            monitor.publish_loss()
            monitor.publish_alert("chat-2")
            response = await by_kind.read()
            # What was filtered out was not missed.
            assert (response.event.sequence, response.dropped) == (3, 0)
            assert await sequences(by_request, 2) == [2, 4]

    asyncio.run(run())


@pytest.mark.parametrize("kind", [0, 99])
def test_a_kind_that_does_not_exist_is_refused(monitor, kind):
    async def run():
        async with monitor.serve() as server, stub_of(server) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.WatchEvents(WatchEventsRequest(kinds=[kind])).read()
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert monitor.events.subscribers == 0

    asyncio.run(run())


def test_a_slow_watcher_loses_the_oldest_and_is_told_how_many(monitor):
    monitor.restart(keep=64, limit=8)
    published = 1500

    async def run():
        # A small window and events of 10 kB: of a client that does not read, the transport takes few.
        async with (
            monitor.serve() as server,
            stub_of(server, **{"grpc.http2.lookahead_bytes": 16384, "grpc.http2.bdp_probe": 0}) as slow_stub,
            stub_of(server) as stub,
        ):
            slow = await watching(slow_stub)
            quick = await watching(stub)
            for _ in range(published):
                monitor.publish_alert(reason="x" * 10_000)
                assert (await quick.read()).dropped == 0
            received, response = 0, None
            while response is None or response.event.sequence < published:
                response = await slow.read()
                received += 1
            assert response.dropped > 0
            assert received + response.dropped == published
            assert monitor.stats.events_dropped == response.dropped

    asyncio.run(run())


def test_an_event_beyond_all_measure_is_cut_and_the_next_ones_come(monitor):
    async def run():
        async with monitor.serve() as server, stub_of(server) as stub:
            call = await watching(stub)
            monitor.publish_alert("chat-" + "a" * 5_000_000, reason="€" * 5_000_000 + "\udcff")
            monitor.publish_alert("chat-2")
            first, second = await call.read(), await call.read()
            assert first.ByteSize() < 1 << 20 and first.event.alert.request.request_id.startswith("chat-aaa")
            assert second.event.alert.request.request_id == "chat-2" and second.dropped == 0
            # Another that asks for all that is kept comes past it as well.
            assert await sequences(await watching(stub, after_sequence=0), 2) == [1, 2]

    asyncio.run(run())


def test_an_event_that_cannot_be_told_is_missed_and_the_next_ones_come(monitor):
    async def run():
        async with monitor.serve() as server, stub_of(server) as stub:
            call = await watching(stub)
            monitor.publish_loss(-1)
            monitor.publish_alert("chat-2")
            response = await call.read()
            assert (response.event.sequence, response.dropped) == (2, 1)

    asyncio.run(run())


def test_traces_of_many_parts_fit_into_one_answer(monitor):
    traces = Traces(monitor.events, lambda request: (int(request.engine_request_id), (0.0,) * 200), ("probe",) * 200)
    for part in range(MAX_TRACES):
        request = Request("engine-1", "tiny", "chat-1", str(part), 12)
        traces.emit(monitor.events.publish(Escalated(request, "rule", "alert", "probe", 2.0, 1.0, 7, "r" * 1_000_000)))

    async def run():
        async with monitor.serve(traces=traces) as server, stub_of(server) as stub:
            answer = await stub.GetTrace(GetTraceRequest(request_id="chat-1"))
            assert len(answer.traces) == MAX_TRACES
            first, last = answer.traces[0], answer.traces[-1]
            assert first.points and first.events and not last.points and not last.events

    asyncio.run(run())


def test_a_trace_of_many_long_events_is_told_in_part(monitor):
    traces = Traces(monitor.events, lambda request: None, ("probe",))
    request = Request("engine-1", "tiny", "chat-1", "a", 12)
    for number in range(100):
        escalated = Escalated(request, "rule", "alert", "probe", 2.0, 1.0, number, "€" * 100_000)
        traces.emit(monitor.events.publish(escalated))

    async def run():
        async with monitor.serve(traces=traces) as server, stub_of(server) as stub:
            (trace,) = (await stub.GetTrace(GetTraceRequest(request_id="chat-1"))).traces
            assert trace.ByteSize() < 1 << 20 and trace.events[0].escalated.position == 0
            assert len(trace.events) + trace.events_dropped == 100

    asyncio.run(run())


def test_a_watcher_that_leaves_is_forgotten(monitor):
    async def run():
        async with monitor.serve() as server, stub_of(server) as stub:
            call = await watching(stub)
            assert monitor.events.subscribers == 1
            call.cancel()
            await eventually(lambda: monitor.events.subscribers == 0)

    asyncio.run(run())


def test_one_watcher_too_many_is_refused_and_other_calls_are_not(monitor):
    async def run():
        async with monitor.serve(max_calls=4, max_watchers=2) as server, stub_of(server) as stub:
            calls = [await watching(stub) for _ in range(2)]
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.WatchEvents(WatchEventsRequest()).read()
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await stub.GetStatus(GetStatusRequest())
            calls[0].cancel()
            await eventually(lambda: monitor.events.subscribers == 1)
            await watching(stub)

    asyncio.run(run())


def test_lists_what_the_bundle_holds(monitor):
    async def run():
        async with monitor.serve() as server, stub_of(server) as stub:
            answer = await stub.ListProbes(ListProbesRequest())
            assert answer.bundle_digest == monitor.bundle.digest
            assert answer.model == "tiny"
            assert [probe.name for probe in answer.probes] == list(monitor.stats.probes)
            assert [vector.name for vector in answer.vectors] == ["harmful_intent", "sycophancy"]

    asyncio.run(run())


def test_status_names_the_log_and_where_it_is(monitor):
    async def run():
        async with monitor.serve() as server, stub_of(server) as stub:
            monitor.publish_alert()
            answer = await stub.GetStatus(GetStatusRequest())
            event = await (await watching(stub, after_sequence=0)).read()
            assert (answer.last_sequence, answer.log_id) == (1, event.log_id)
            assert answer.status.bundle_digest == monitor.bundle.digest
            assert answer.version

    asyncio.run(run())
