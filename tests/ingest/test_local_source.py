import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from monitor.errors import PortError
from monitor.ingest import LocalSource, Malformed, core_identity, read_arrival
from monitor.wire.codec import HELLO, decode_order, encode_frame, encode_hello, encode_order
from monitor.wire.frames import VERSION, Frame, Hello
from monitor.wire.orders import Act, Steer


@pytest.fixture
def directory():
    # Not tmp_path: the path of a socket file has room for a hundred characters.
    with tempfile.TemporaryDirectory(prefix="plumbob") as path:
        yield Path(path)


@asynccontextmanager
async def dealer(endpoint: str, identity: bytes):
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, identity)
    socket.connect(endpoint)
    try:
        yield socket
    finally:
        socket.close(linger=0)
        context.term()


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 20))


def hello(engine="engine", bundle="digest") -> Hello:
    return Hello(VERSION, engine, "tiny", bundle, "0.32.0")


def test_messages_come_in_and_orders_go_out(directory, frame):
    async def scenario():
        source = LocalSource(f"ipc://{directory}/run/monitor.sock")
        arrivals = aiter(source)
        async with (
            dealer(source.endpoint, b"engine/core") as core,
            dealer(source.endpoint, b"engine/rank0") as rank,
        ):
            await core.send_multipart(encode_hello(hello()))
            assert (await anext(arrivals)).message == hello()
            sent = frame(3, [(0, 0, 2, 0)], 1.5)
            await rank.send_multipart(encode_frame(sent.header, sent.rows, sent.scores))
            arrival = await anext(arrivals)
            assert arrival.identity == b"engine/rank0" and isinstance(arrival.message, Frame)
            await rank.send_multipart([HELLO, b"rubbish"])
            assert (await anext(arrivals)).message.reason == "malformed"

            order = Steer("a", [Act("toxicity", add=-0.2)], 50)
            assert source.send(core_identity("engine"), encode_order(order))
            assert decode_order(await core.recv_multipart()) == order
            assert not source.send(core_identity("nobody"), encode_order(order)), "not recorded as sent"

            waiting = asyncio.ensure_future(anext(arrivals))
            await asyncio.sleep(0.01)
            source.close()
            with pytest.raises(StopAsyncIteration):
                await waiting

    run(scenario())


def test_an_engine_that_reconnects_is_reached_again(directory):
    async def scenario():
        source = LocalSource(f"ipc://{directory}/monitor.sock")
        arrivals = aiter(source)
        for key in ("a", "b", "c"):
            async with dealer(source.endpoint, b"engine/core") as core:
                await core.send_multipart(encode_hello(hello()))
                await anext(arrivals)
                assert source.send(b"engine/core", encode_order(Steer(key, [Act("v", add=0.1)])))
                assert decode_order(await core.recv_multipart()).engine_request_id == key
        source.close()

    run(scenario())


def test_the_directory_is_this_users_alone(directory):
    source = LocalSource(f"ipc://{directory}/deep/run/monitor.sock")
    assert stat.S_IMODE((directory / "deep/run").stat().st_mode) == 0o700
    source.close()


def test_a_second_monitor_is_turned_away_and_takes_over_later(directory):
    endpoint = f"ipc://{directory}/monitor.sock"
    first = LocalSource(endpoint)
    with pytest.raises(PortError, match="already listens"):
        LocalSource(endpoint)
    first.close()
    first.close()
    LocalSource(endpoint).close()


def test_the_address_of_a_monitor_that_was_killed_is_free(directory):
    code = (
        f"import time; from monitor.ingest import LocalSource; s = LocalSource('ipc://{directory}/m.sock'); "
        "print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout.readline() == b"up\n"
        with pytest.raises(PortError, match="already listens"):
            LocalSource(f"ipc://{directory}/m.sock")
        os.kill(process.pid, signal.SIGKILL)
    assert (directory / "m.sock").is_socket(), "a stale file is left behind"
    LocalSource(f"ipc://{directory}/m.sock").close()


def test_a_path_that_is_something_else_is_left_alone(directory):
    (directory / "notes.txt").write_text("keep me")
    with pytest.raises(PortError, match="not a socket"):
        LocalSource(f"ipc://{directory}/notes.txt")
    assert (directory / "notes.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("tcp://127.0.0.1:5555", "not a socket file"),
        ("ipc://relative.sock", "not a socket file"),
        ("ipc:///proc/plumbob/monitor.sock", "Cannot listen"),
        ("ipc:///tmp/" + "x" * 103, "at most 107 bytes, this one 108"),
        ("ipc:///tmp/" + "é" * 52, "at most 107 bytes, this one 109"),
    ],
)
def test_an_address_that_cannot_be_used_is_a_port_error(endpoint, message):
    with pytest.raises(PortError, match=message):
        LocalSource(endpoint)
    assert not Path("/tmp", "x" * 103 + ".lock").exists()


@pytest.mark.parametrize("identity", [b"engine/rank0", b"other/core", b"engine", b"\x00\x01", b"engine/core/core"])
def test_a_hello_of_another_sender_is_refused(identity):
    message = read_arrival(identity, encode_hello(hello())).message
    assert isinstance(message, Malformed) and message.reason == "identity"


@pytest.mark.parametrize(
    "identity", [b"engine/core", b"engine2/rank0", b"engine/rank", b"engine/rank0\n", b"xengine/rank0"]
)
def test_a_frame_of_another_sender_is_refused(frame, identity):
    sent = frame()
    parts = encode_frame(sent.header, sent.rows, sent.scores)
    assert isinstance(read_arrival(b"engine/rank12", parts).message, Frame)
    assert read_arrival(identity, parts).message.reason == "identity"
