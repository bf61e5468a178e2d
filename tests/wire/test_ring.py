import fcntl
import itertools
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.errors import FrameError, FrameVersionError
from monitor.wire import ring as states
from monitor.wire.ring import (
    BODY_OFFSET,
    DIRECTORY,
    HEADER,
    RingError,
    StateReader,
    StateWriter,
    StreamError,
    ring_path,
    sweep,
)
from tests.harness.ring_rows import fill, patterns, write

engines = (f"test-{os.getpid()}-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("rings")


def bits(values):
    """The bfloat16 patterns that float32 values were made of."""
    assert values.dtype == np.float32
    assert not (values.view(np.uint32) & 0xFFFF).any()
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=12))
def test_every_block_is_read_exactly_until_a_row_of_it_is_overwritten(directory, capacity, steps):
    writer = StateWriter(next(engines), 3, 2, "bfloat16", capacity, directory)
    early = StateReader(writer.path)
    blocks, lost = [], 0
    for rows in steps:
        before = writer.reserved
        block = write(writer, rows)
        blocks += [block] if writer.reserved > before else []
        late = StateReader(writer.path)
        for start, count in blocks:
            values = early.read(start, count)
            if writer.reserved - start > capacity:
                lost += count
                assert values is None
                assert late.read(start, count) is None
            else:
                assert np.array_equal(bits(values), patterns(start, count, 2))
                assert np.array_equal(late.read(start, count), values, equal_nan=True)
    assert early.lost == lost
    assert writer.refused == sum(rows for rows in steps if rows > capacity)
    assert early.reserved == writer.reserved
    writer.close()


@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=12))
def test_a_reservation_is_at_most_two_pieces_of_consecutive_rows(directory, capacity, steps):
    writer = StateWriter(next(engines), 3, 2, "bfloat16", capacity, directory)
    for rows in steps:
        start = writer.reserved
        pieces = writer.reserve(rows)
        taken = rows if rows <= capacity else 0
        assert writer.reserved == start + taken
        assert len(pieces) <= 2
        assert all(count > 0 for _, count in pieces)
        places = [place for position, count in pieces for place in range(position, position + count)]
        assert places == [number % capacity for number in range(start, start + taken)]
    writer.close()


def test_readers_are_warned_before_a_reservation_is_handed_out(directory, monkeypatch):
    writer = StateWriter(next(engines), 3, 2, "bfloat16", 4, directory)
    reader = StateReader(writer.path)
    start, seen = writer.reserved, []
    monkeypatch.setattr(states, "_pieces", lambda *_: seen.append(reader.reserved) or [])
    writer.reserve(3)
    assert seen == [start + 3]


def test_rows_that_are_overwritten_while_they_are_copied_are_not_returned(directory, monkeypatch):
    writer = StateWriter(next(engines), 3, 2, "bfloat16", 4, directory)
    reader = StateReader(writer.path)
    start, _ = write(writer, 4)
    fence = states._fence
    # The reader's own fence stands between the copy and the second look.
    monkeypatch.setattr(states, "_fence", lambda: monkeypatch.setattr(states, "_fence", fence) or write(writer, 1))
    assert reader.read(start, 2) is None
    assert reader.lost == 2
    assert np.array_equal(bits(reader.read(start + 1, 3)), patterns(start + 1, 3, 2))


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("float16", np.float16), ("float32", np.float32)])
def test_other_dtypes_are_read_as_float32(directory, dtype, numpy_dtype):
    values = np.array([[1.5, -0.0, np.inf], [2.0**-14, -65504.0, np.nan], [0.1, 0.2, 0.3]], numpy_dtype)
    writer = StateWriter(next(engines), 3, 3, dtype, 4, directory)
    block = fill(writer, writer.view, values)
    reader = StateReader(writer.path)
    read = reader.read(*block)
    assert (reader.dtype, read.dtype) == (dtype, np.float32)
    assert np.array_equal(read, values.astype(np.float32), equal_nan=True)


def test_bfloat16_is_written_through_torch_and_read_without_it(directory):
    torch = pytest.importorskip("torch")
    writer = StateWriter(next(engines), 3, 5, "bfloat16", 4, directory)
    tensor = torch.from_numpy(writer.view).view(torch.bfloat16)
    values = torch.tensor([[1.5, -0.0, 3.0e38, float("inf"), 1e-40], [0.1, -7.25, 65_504.0, 2.0**-126, 0.0]])
    block = fill(writer, tensor, values.to(torch.bfloat16))
    assert np.array_equal(StateReader(writer.path).read(*block), values.to(torch.bfloat16).float().numpy())


def test_rows_begin_on_a_page_and_a_ring_says_what_it_is(directory):
    writer = StateWriter("an-engine", 17, 6, "float16", 5, directory)
    assert writer.path == ring_path("an-engine", 17, directory)
    assert writer.view.ctypes.data % os.sysconf("SC_PAGE_SIZE") == 0
    assert BODY_OFFSET % os.sysconf("SC_PAGE_SIZE") == 0
    reader = StateReader(writer.path)
    assert (reader.layer, reader.hidden, reader.dtype, reader.capacity) == (17, 6, "float16", 5)


# Other processes


READER = """
import struct, sys
from pathlib import Path
from monitor.wire.ring import StateReader

reader = StateReader(Path(sys.argv[1]))
while block := sys.stdin.buffer.read(16):
    values = reader.read(*struct.unpack("<QQ", block))
    assert values is not None
    sys.stdout.buffer.write(values.tobytes())
    sys.stdout.buffer.flush()
assert reader.lost == 0
"""


def test_two_other_processes_read_every_row_while_more_are_written(directory):
    hidden, capacity, ahead = 256, 64, 3
    writer = StateWriter(next(engines), 3, hidden, "bfloat16", capacity, directory)
    steps = [1 + step % 16 for step in range(400)]
    assert ahead * max(steps) <= capacity < sum(steps) / 20  # rows wait in the ring, and it turns many times
    command, blocks = [sys.executable, "-c", READER, writer.path], []
    with ExitStack() as stack:
        readers = [stack.enter_context(subprocess.Popen(command, stdin=PIPE, stdout=PIPE)) for _ in range(2)]
        for step in range(len(steps) + ahead - 1):
            if step < len(steps):
                blocks.append(write(writer, steps[step]))
                for reader in readers:
                    reader.stdin.write(struct.pack("<QQ", *blocks[-1]))
                    reader.stdin.flush()
            if step >= ahead - 1:
                start, rows = blocks[step - ahead + 1]
                for reader in readers:
                    values = np.frombuffer(reader.stdout.read(rows * hidden * 4), np.float32).reshape(rows, hidden)
                    assert np.array_equal(bits(values), patterns(start, rows, hidden))
    assert [reader.returncode for reader in readers] == [0, 0]


WRITER = """
import sys
from pathlib import Path
import numpy as np
from monitor.wire.ring import StateWriter
from tests.harness.ring_rows import write

writer = StateWriter(sys.argv[1], 3, 2048, "bfloat16", 256, Path(sys.argv[2]))
print(flush=True)
while True:
    write(writer, 16)
"""


def test_a_writer_that_never_waits_costs_rows_but_never_mixes_them(directory):
    engine = next(engines)
    command = [sys.executable, "-c", WRITER, engine, directory]
    with subprocess.Popen(command, stdout=PIPE, cwd=Path(__file__).parents[2]) as writing:
        try:
            writing.stdout.read(1)
            reader = StateReader(ring_path(engine, 3, directory))
            first, exact, until = reader.reserved, 0, time.monotonic() + 240
            # The oldest rows of the ring: the writer is about to reach them, or does so meanwhile.
            for behind in itertools.cycle((256, 248, 240, 192, 128)):
                if exact > 2_000 and reader.lost > 2_000:
                    break
                assert time.monotonic() < until, f"{exact} rows were intact, {reader.lost} lost"
                start = reader.reserved - behind
                if start < first:
                    continue
                values = reader.read(start, 64)
                if values is not None:
                    assert np.array_equal(bits(values), patterns(start, 64, 2048))
                    exact += 64
        finally:
            writing.kill()


# The end of a ring


def test_the_file_is_private_and_goes_with_its_writer(directory):
    before = os.umask(0)
    try:
        writer = StateWriter(next(engines), 3, 2, "bfloat16", 4, directory)
    finally:
        os.umask(before)
    assert writer.path.stat().st_mode & 0o777 == 0o600
    reader = StateReader(writer.path)
    block = write(writer, 4)
    path = writer.path
    assert reader.alive()
    del writer
    assert not path.exists()
    assert not reader.alive()
    assert np.array_equal(bits(reader.read(*block)), patterns(*block, 2))


def test_a_writer_can_be_closed_twice_and_its_rows_outlive_it(directory):
    writer = StateWriter(next(engines), 3, 2, "bfloat16", 4, directory)
    writer.close()
    writer.close()
    assert not writer.path.exists()
    write(writer, 4)


def test_nothing_stays_open(tmp_path):
    (tmp_path / "plumbob-abandoned-3.states").write_bytes(b"x")
    before = descriptors()
    writer = StateWriter(next(engines), 3, 2, "bfloat16", 4, tmp_path)
    reader = StateReader(writer.path)
    block = write(writer, 2)
    values = reader.read(*block)
    del writer, reader
    sweep(tmp_path)
    assert np.array_equal(bits(values), patterns(*block, 2))
    assert descriptors() == before


def test_asking_whether_a_writer_lives_does_not_end_it(tmp_path):
    writer = StateWriter(next(engines), 3, 2, "bfloat16", 4, tmp_path)
    reader = StateReader(writer.path)
    with writer.path.open() as another:
        assert reader.alive()
        assert reader.alive()
        assert sweep(tmp_path) == []
        writer.close()
        fcntl.flock(another, fcntl.LOCK_SH)  # another reader asks at the same moment
        assert not reader.alive()


def test_rows_of_a_ring_and_of_its_successor_are_told_apart(directory):
    engine = next(engines)
    writer = StateWriter(engine, 3, 2, "bfloat16", 4, directory)
    old, old_block = StateReader(writer.path), write(writer, 2)
    writer.close()
    writer = StateWriter(engine, 3, 2, "bfloat16", 4, directory)
    new, new_block = StateReader(writer.path), write(writer, 2)
    with pytest.raises(RingError, match="never held 2 rows"):
        old.read(*new_block)
    with pytest.raises(RingError, match="never held 2 rows"):
        new.read(*old_block)
    assert np.array_equal(bits(old.read(*old_block)), patterns(*old_block, 2))
    assert np.array_equal(bits(new.read(*new_block)), patterns(*new_block, 2))


@pytest.mark.parametrize(("offset", "rows"), [(-1, 1), (0, 3), (2, 1), (0, 5), (1, -1)])
def test_rows_that_were_never_reserved_are_refused(directory, offset, rows):
    writer = StateWriter(next(engines), 3, 2, "bfloat16", 4, directory)
    start, _ = write(writer, 2)
    reader = StateReader(writer.path)
    with pytest.raises(RingError, match=f"never held {rows} rows"):
        reader.read(start + offset, rows)
    assert reader.lost == 0


DYING = """
import os, subprocess, sys, time
from pathlib import Path
from monitor.wire.ring import StateWriter

writer = StateWriter(sys.argv[1], 3, 2, "bfloat16", 4, Path(sys.argv[2]))
if sys.argv[3] == "fork":
    child = os.fork()
    if not child:
        print(os.getpid(), flush=True)
        time.sleep(60)
elif sys.argv[3] == "exec":
    print(subprocess.Popen(["sleep", "60"], close_fds=False).pid, flush=True)
else:
    print(0, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("child_by", ["none", "fork", "exec"])
def test_the_ring_of_a_killed_engine_is_swept_even_if_its_child_lives_on(tmp_path, child_by):
    engine = next(engines)
    arguments = [sys.executable, "-c", DYING, engine, tmp_path, child_by]
    with subprocess.Popen(arguments, stdin=PIPE, stdout=PIPE) as dying:
        child = int(dying.stdout.readline())
        path = ring_path(engine, 3, tmp_path)
        try:
            reader = StateReader(path)
            assert reader.alive()
            assert sweep(tmp_path) == []
            dying.kill()
            dying.wait()
            assert path.exists()
            assert not reader.alive()
            if child:
                os.kill(child, 0)
            assert sweep(tmp_path) == [path]
            assert not path.exists()
        finally:
            if child:
                os.kill(child, signal.SIGKILL)


def test_a_forked_child_that_exits_leaves_the_ring_to_its_parent(directory):
    code = """
import os, sys
from pathlib import Path
from monitor.wire.ring import StateReader, StateWriter
writer = StateWriter(sys.argv[1], 3, 2, "bfloat16", 4, Path(sys.argv[2]))
child = os.fork()
if not child:
    writer.close()
    sys.exit(0)
os.waitpid(child, 0)
print(writer.path.exists() and StateReader(writer.path).alive())
"""
    engine = next(engines)
    ran = subprocess.run([sys.executable, "-c", code, engine, directory], capture_output=True, text=True, check=True)
    assert ran.stdout == "True\n"
    assert not ring_path(engine, 3, directory).exists()


def test_a_sweep_touches_nothing_but_abandoned_rings(tmp_path):
    kept = [tmp_path / "other.states", tmp_path / "plumbob-other", tmp_path / "plumbob-created-3.states"]
    kept[0].write_bytes(b"x")
    kept[1].write_bytes(b"x")
    kept[2].touch()  # as a file is between its creation and its lock
    pipe, link = tmp_path / "plumbob-pipe-3.states", tmp_path / "plumbob-link-3.states"
    os.mkfifo(pipe)
    link.symlink_to(kept[0])
    abandoned = tmp_path / "plumbob-abandoned-3.states"
    abandoned.write_bytes(b"x")
    assert sweep(tmp_path) == [abandoned]
    assert sorted(tmp_path.iterdir()) == sorted([*kept, pipe, link])


def test_a_sweep_spares_the_successor_of_a_ring_that_ends_meanwhile(tmp_path, monkeypatch):
    engine, flock = next(engines), fcntl.flock
    writers = [StateWriter(engine, 3, 2, "bfloat16", 4, tmp_path)]

    def end_and_begin_anew(descriptor, mode):
        monkeypatch.setattr("fcntl.flock", flock)
        writers.pop().close()
        writers.append(StateWriter(engine, 3, 2, "bfloat16", 4, tmp_path))
        flock(descriptor, mode)

    monkeypatch.setattr("fcntl.flock", end_and_begin_anew)
    assert sweep(tmp_path) == []
    assert StateReader(ring_path(engine, 3, tmp_path)).alive()


def test_a_sweep_spares_what_is_another_users(tmp_path, monkeypatch):
    (tmp_path / "plumbob-abandoned-3.states").write_bytes(b"x")
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    assert sweep(tmp_path) == []


def test_a_sweep_of_a_directory_that_is_not_there_finds_nothing(tmp_path):
    assert sweep(tmp_path / "absent") == []


# Errors


def test_a_ring_without_room_is_refused_at_once_and_leaves_nothing():
    total = os.statvfs(DIRECTORY)
    capacity = total.f_blocks * total.f_frsize // 8192 + 1
    engine = next(engines)
    with pytest.raises(StreamError, match=r"MiB cannot be created in /dev/shm: No space left .*--shm-size"):
        StateWriter(engine, 3, 4096, "bfloat16", capacity)
    assert not ring_path(engine, 3).exists()


def test_all_of_a_ring_is_set_aside_when_it_is_created(directory):
    writer = StateWriter(next(engines), 3, 4096, "bfloat16", 512, directory)
    file = writer.path.stat()
    assert file.st_size == BODY_OFFSET + 512 * 8192
    assert file.st_blocks * 512 >= file.st_size


def test_a_ring_whose_lock_cannot_be_had_is_refused_and_leaves_nothing(directory, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    engine, before = next(engines), descriptors()
    with pytest.raises(StreamError, match="not implemented"):
        StateWriter(engine, 3, 2, "bfloat16", 4, directory)
    assert not ring_path(engine, 3, directory).exists()
    assert descriptors() == before


def test_a_ring_in_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(StreamError, match="cannot be created: No such file"):
        StateWriter("engine", 3, 2, "bfloat16", 4, tmp_path / "absent")


def test_a_second_ring_of_the_same_layer_is_refused_and_spares_the_first(directory):
    writer = StateWriter(next(engines), 3, 2, "bfloat16", 4, directory)
    engine = writer.path.name.removeprefix("plumbob-").removesuffix("-3.states")
    with pytest.raises(StreamError, match="cannot be created: File exists"):
        StateWriter(engine, 3, 2, "bfloat16", 4, directory)
    assert StateReader(writer.path).alive()


@pytest.mark.parametrize(("hidden", "capacity"), [(0, 4), (2, 0), (-2, -4)])
def test_a_ring_without_rows_or_elements_is_refused(directory, hidden, capacity):
    with pytest.raises(ValueError, match="A ring of"):
        StateWriter(next(engines), 3, hidden, "bfloat16", capacity, directory)


def test_a_negative_reservation_is_refused(directory):
    writer = StateWriter(next(engines), 3, 2, "bfloat16", 4, directory)
    with pytest.raises(ValueError, match="reservation of -1 rows"):
        writer.reserve(-1)


@pytest.mark.parametrize("engine", ["", "..", "a/b", "a\0b", "x" * 65, "a\n"])
def test_an_id_that_is_no_file_name_makes_no_path(engine):
    with pytest.raises(RingError, match="is no engine's id"):
        ring_path(engine, 3)


@pytest.fixture
def ring_file(directory):
    """The bytes of a ring of four rows of two bfloat16 elements."""
    writer = StateWriter(next(engines), 3, 2, "bfloat16", 4, directory)
    write(writer, 4)
    return bytearray(writer.path.read_bytes())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("magic", b"PLUMBOBX", "is not a ring of activations"),
        ("dtype", b"float8", "announces 4 rows of 2 elements of type 'float8'"),
        ("dtype", b"\xff", "of type"),
        ("capacity", 0, "announces 0 rows"),
        ("capacity", 5, "has 65552 bytes; its header announces 65556"),
        ("capacity", 2**64 - 1, "its header announces"),
        ("hidden", 0, "of 0 elements"),
        ("hidden", 3, "has 65552 bytes; its header announces 65560"),
    ],
)
def test_a_header_that_is_not_of_a_ring_is_refused(tmp_path, ring_file, field, value, message):
    np.frombuffer(ring_file, HEADER, 1)[field] = value
    path = tmp_path / "ring"
    path.write_bytes(ring_file)
    with pytest.raises(RingError, match=message):
        StateReader(path)


def test_another_version_is_told_apart(tmp_path, ring_file):
    header = np.frombuffer(ring_file, HEADER, 1)
    header["version"], header["dtype"] = 2, b"something new"
    path = tmp_path / "ring"
    path.write_bytes(ring_file)
    with pytest.raises(FrameVersionError, match="has version 2; this reader reads version 1"):
        StateReader(path)


@pytest.mark.parametrize("length", [0, 1, 127, 128, BODY_OFFSET, BODY_OFFSET + 15, BODY_OFFSET + 17])
def test_a_file_of_another_length_is_refused(tmp_path, ring_file, length):
    path = tmp_path / "ring"
    path.write_bytes((ring_file + bytes(1))[:length])
    with pytest.raises(RingError, match=f"{length} bytes"):
        StateReader(path)


@given(st.integers(0, HEADER.itemsize - 1), st.integers(0, 255), st.integers(0, 2**64 - 1), st.integers(-1, 5))
def test_a_damaged_header_never_ends_the_reader(directory, at, byte, start, rows):
    path = directory / "damaged"
    writer = StateWriter(next(engines), 3, 2, "bfloat16", 4, directory)
    contents = bytearray(writer.path.read_bytes())
    writer.close()
    contents[at] = byte
    path.write_bytes(contents)
    try:
        values = StateReader(path).read(start, rows)
    except FrameError:
        return
    assert values is None or values.shape == (rows, 2)


def test_what_cannot_be_opened_as_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent", tmp_path / "pipe", tmp_path):
        with pytest.raises(RingError, match=str(path)):
            StateReader(path)


def test_neither_side_needs_torch():
    code = "import sys, monitor.wire.ring; print([name for name in ('torch', 'vllm') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
