"""An engine and its monitor under two users: they meet where the operator says so, and say what keeps them apart."""

import asyncio
import logging
import multiprocessing
import os
import stat
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'plumbob[cpu]'")

from monitor.engine import reachability
from monitor.engine.exporter import OrderInbox
from monitor.engine.reachability import Reachability, obstacle, readers_group
from monitor.engine.streams import Streams
from monitor.errors import PortError
from monitor.ingest import LocalSource
from monitor.wire.frames import VERSION, Hello
from monitor.wire.ring import RingError, StateReader, ring_path
from tests.harness.bundles import make_bundle
from tests.harness.command_line import MonitorProcess
from tests.harness.ports import free_port

USER, GROUP = 54_321, 54_322
"""Numbers that nobody of this machine has."""

pytestmark = pytest.mark.timeout(120)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may start processes of other users")


@pytest.fixture
def directory():
    # Not tmp_path: the path of a socket file has room for a hundred characters, and nobody else may enter it.
    with tempfile.TemporaryDirectory(prefix="plumbob") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def play(endpoint: str, digest: str, said: int, user: int, groups: list[int]) -> None:
    """The engine core's end of the line, as another user."""
    os.setgroups(groups)
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    reachability.FIRST_SECONDS = reachability.LOOK_SECONDS = 0.2
    handler = logging.StreamHandler(os.fdopen(said, "w", buffering=1))
    reachability.logger.handlers, reachability.logger.propagate = [handler], False
    OrderInbox(endpoint, Hello(VERSION, "engine", "tiny", digest, "0.32.0"))
    time.sleep(60)


@contextmanager
def engine(endpoint: str, digest: str = "digest", user: int = USER, groups: list[int] | None = None):
    """An engine of another user; yields the end of what it says."""
    reading, writing = os.pipe()
    process = multiprocessing.get_context("fork").Process(
        target=play, args=(endpoint, digest, writing, user, groups or [])
    )
    process.start()
    os.close(writing)
    os.set_blocking(reading, False)
    text = bytearray()

    def said() -> str:
        try:
            while chunk := os.read(reading, 65_536):
                text.extend(chunk)
        except BlockingIOError:
            pass
        return text.decode()

    try:
        yield said
    finally:
        process.kill()
        process.join()
        os.close(reading)


def until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 30))


async def first_hello(source: LocalSource) -> Hello:
    message = (await anext(aiter(source))).message
    assert isinstance(message, Hello)
    return message


@as_root
@pytest.mark.parametrize("how", ["group", "everybody", "same user"])
def test_they_meet_where_the_operator_says_so(directory, how):
    async def scenario():
        options = {"group": {"group": str(GROUP)}, "everybody": {"mode": 0o666}, "same user": {}}[how]
        endpoint = f"ipc://{directory}/run/engine.sock"
        source = LocalSource(endpoint, **options)
        with engine(endpoint, user=0 if how == "same user" else USER, groups=[GROUP]):
            assert (await first_hello(source)).engine == "engine"
        source.close()

    run(scenario())


@as_root
@pytest.mark.parametrize("how", ["mode", "directory", "not a member"])
def test_an_engine_that_may_not_connect_says_so_within_seconds_once_and_when_it_may(directory, how):
    async def scenario():
        endpoint = f"ipc://{directory}/run/engine.sock"
        if how != "directory":
            (directory / "run").mkdir(mode=0o755)
        source = LocalSource(endpoint, group=str(GROUP) if how == "not a member" else None)
        with engine(endpoint) as said:
            begin = time.monotonic()
            until(said)
            assert time.monotonic() - begin < 10
            assert f"the monitor at {endpoint} is not reached: this engine runs as user {USER}" in said()
            if how == "directory":
                assert f"may not enter {directory}/run, which has user root (0), group root (0), mode 0700" in said()
            else:
                group = GROUP if how == "not a member" else "root (0)"
                assert f"may not connect to the socket, which has user root (0), group {group}, mode 0660" in said()
            assert "--socket-group" in said()
            time.sleep(1.0)
            assert said().count("\n") == 1, "once, not at every look"
            (directory / "run").chmod(0o755)
            (directory / "run/engine.sock").chmod(0o666)
            assert (await first_hello(source)).engine == "engine"
            until(lambda: said().endswith(f"the monitor at {endpoint} is reached.\n"))
        source.close()

    run(scenario())


@as_root
def test_the_monitors_process_gives_its_socket_to_a_group_and_says_who_may_connect(directory, tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    endpoint = f"ipc://{directory}/run/engine.sock"
    options = ["--bundle", bundle.path, "--endpoint", endpoint, "--state", "none", "--audit", "none"]
    options += ["--metrics-port", free_port(), "--grpc-port", free_port(), "--socket-group", GROUP]
    monitor = MonitorProcess(*options)
    try:
        with engine(endpoint, bundle.digest, groups=[GROUP]) as said:
            until(lambda: any(event["type"] == "engine_changed" for event in monitor.events), 60)
            assert [event["state"] for event in monitor.events] == ["connected"]
            until(lambda: not said() or said().endswith("is reached.\n"))
        found = (directory / "run/engine.sock").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, GROUP)
        lines = "".join(monitor._lines)
        assert (
            f"listens at {endpoint} as user root (0); the socket has user root (0), group {GROUP}, mode 0660" in lines
        )
        assert f"its directory user root (0), group {GROUP}, mode 0710" in lines
    finally:
        monitor.running.kill()


def read_ring(path: str, groups: list[int]) -> None:
    os.setgroups(groups)
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    try:
        StateReader(Path(path))
    except RingError:
        os._exit(1)
    os._exit(0)


@as_root
def test_the_monitors_user_may_read_what_is_streamed(directory):
    """The ring is the engine's, which is another user than the monitor's."""
    taps = SimpleNamespace(states=torch.zeros(4, 3), stream=torch.zeros(1, dtype=torch.int32))
    endpoint = f"ipc://{directory}/run/engine.sock"

    async def scenario():
        source = LocalSource(endpoint, group=str(GROUP))
        assert readers_group(endpoint) is None, "it is the same user's"
        os.chown(directory / "run/engine.sock", USER, GROUP)
        assert readers_group(endpoint) == GROUP
        house = SimpleNamespace(layers={1: taps})
        streams = Streams(house, f"users{os.getpid()}", None, rows=0, exports=True, endpoint=endpoint)
        path = ring_path(f"users{os.getpid()}", 1)

        def reads(groups: list[int]) -> bool:
            process = multiprocessing.get_context("fork").Process(target=read_ring, args=(str(path), groups))
            process.start()
            process.join()
            return process.exitcode == 0

        assert not reads([GROUP]), "nothing is streamed"
        streams.select(1, "all")
        assert reads([GROUP]) and not reads([])
        streams.close()
        source.close()

    run(scenario())


@pytest.mark.parametrize(
    ("mode", "directories"), [(0o600, 0o700), (0o660, 0o700), (0o666, 0o711)], ids=["owner", "group", "everybody"]
)
def test_the_socket_has_its_mode_whatever_the_umask_is(directory, mode, directories):
    for umask in (0o000, 0o022, 0o077):
        before = os.umask(umask)
        try:
            source = LocalSource(f"ipc://{directory}/{umask}/engine.sock", mode=mode)
            assert os.umask(umask) == umask, "it is as it was"
        finally:
            os.umask(before)
        assert stat.S_IMODE((directory / f"{umask}/engine.sock").stat().st_mode) == mode
        assert stat.S_IMODE((directory / f"{umask}").stat().st_mode) == directories
        source.close()


def test_a_group_that_cannot_be_had_is_an_error(directory):
    for group in ("no-such-group", "9" * 30):
        with pytest.raises(PortError, match=r"group.*--socket-group"):
            LocalSource(f"ipc://{directory}/run/engine.sock", group=group)
    LocalSource(f"ipc://{directory}/run/engine.sock").close()


def test_what_else_keeps_them_apart(directory):
    path = directory / "run/engine.sock"
    assert obstacle(path).startswith(f"the directory {directory}/run is not there: no monitor listens")
    path.parent.mkdir()
    assert obstacle(path).startswith("the socket file is not there: no monitor listens")
    path.write_text("")
    assert obstacle(path).startswith("nobody listens on the socket file")
    path.unlink()
    assert "too long" in obstacle(directory / ("x" * 120))

    async def scenario():
        source = LocalSource(f"ipc://{path}")
        assert obstacle(path).startswith("something listens there and does not answer")
        source.close()

    run(scenario())


def test_it_is_said_once_a_change(directory, caplog):
    now = [0.0]
    reach = Reachability(f"ipc://{directory}/run/engine.sock", lambda: now[0])

    def missed(*times):
        for now[0] in times:
            reach.missed()
        return len(caplog.records)

    assert missed(0.0, 1.0, 1.9) == 0, "a monitor may be starting"
    assert missed(2.0, 3.0, 4.0, 60.0) == 1
    (directory / "run").mkdir()
    assert missed(70.0) == 2
    reach.reached()
    reach.reached()
    assert len(caplog.records) == 3 and "is reached" in caplog.text
