from contextlib import suppress

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.errors import FrameError, FrameVersionError
from monitor.wire.codec import (
    FRAME,
    HELLO,
    ORDER,
    RESYNC,
    decode,
    decode_order,
    encode_ack,
    encode_frame,
    encode_hello,
    encode_order,
)
from monitor.wire.frames import ROW, VERSION, Frame, FrameHeader, Hello, Started
from monitor.wire.orders import Ack, Act, Release, Steer

int32 = st.integers(-(2**31), 2**31 - 1)
names = st.text(max_size=20)
row = st.tuples(int32, int32, st.integers(0, 255), st.integers(0, 255))
started = st.builds(Started, slot=int32, engine_request_id=names, request_id=names, prompt_tokens=st.integers(0, 2**31))


@st.composite
def frames(draw):
    rows = np.array(draw(st.lists(row, max_size=8)), ROW)
    probes = draw(st.integers(0, 5))
    values = st.floats(width=32, allow_nan=True)
    scores = np.array(draw(st.lists(values, min_size=len(rows) * probes, max_size=len(rows) * probes)), "<f4")
    header = FrameHeader(
        version=VERSION,
        engine=draw(names),
        rank=draw(st.integers(0, 7)),
        sequence=draw(st.integers(0, 2**63)),
        acked=draw(st.integers(-1, 2**63)),
        dropped=draw(st.integers(0, 2**40)),
        unscored=draw(st.integers(0, 2**40)),
        monotonic_ns=draw(st.integers(0, 2**63)),
        rows=len(rows),
        probes=probes,
        complete=draw(st.booleans()),
        finished=draw(st.lists(int32, max_size=4)),
        started=draw(st.lists(started, max_size=4)),
    )
    return header, rows, scores.reshape(len(rows), probes)


@given(frames())
def test_a_frame_survives_the_wire(given_frame):
    header, rows, scores = given_frame
    received = decode(encode_frame(header, rows, scores))
    assert isinstance(received, Frame)
    assert received.header == header
    assert np.array_equal(received.rows, rows)
    assert received.scores.shape == scores.shape
    assert np.array_equal(received.scores, scores, equal_nan=True)


@given(st.builds(Hello, st.just(VERSION), names, names, names, names))
def test_a_hello_survives_the_wire(hello):
    assert decode(encode_hello(hello)) == hello


numbers = st.floats(allow_nan=False)
acts = st.builds(Act, names, numbers, numbers, st.none() | numbers, st.none() | numbers)


@given(
    st.builds(Release, names)
    | st.builds(Steer, names, st.lists(acts, min_size=1, max_size=3), st.none() | st.integers(1, 2**40), names)
)
def test_an_order_survives_the_wire(order):
    assert decode_order(encode_order(order)) == order


def test_an_ack_and_a_resync_survive_the_wire():
    assert decode_order(encode_ack(7)) == Ack(7)
    assert decode_order([RESYNC]) is None


@given(st.lists(st.binary(max_size=64), max_size=5), st.sampled_from([b"", HELLO, FRAME, ORDER, RESYNC]))
def test_arbitrary_messages_are_frame_errors_or_messages(parts, kind):
    for read in (decode, decode_order):
        with suppress(FrameError):
            read([kind, *parts])


@given(frames(), st.data())
def test_a_damaged_frame_is_a_frame_error_or_a_frame(given_frame, data):
    parts = encode_frame(*given_frame)
    part = data.draw(st.integers(1, 3))
    at = data.draw(st.integers(0, max(0, len(parts[part]) - 1)))
    parts[part] = parts[part][:at] + data.draw(st.binary(max_size=3)) + parts[part][at + 1 :]
    with suppress(FrameError):
        assert isinstance(decode(parts), Frame)


@pytest.mark.parametrize(
    "parts", [[HELLO, b"\x91" * 100_000 + b"\xc0"], [HELLO, b"\x81\x80\xc0"], [HELLO, b"\xa1\xff"]]
)
def test_hostile_msgpack_is_a_frame_error(parts):
    with pytest.raises(FrameError):
        decode(parts)


def test_a_shape_too_large_for_an_array_is_a_frame_error(frame):
    fields = msgspec.to_builtins(frame().header)
    fields[9] = 2**64 - 1
    with pytest.raises(FrameError):
        decode([FRAME, msgspec.msgpack.encode(fields), b"", b""])


def test_a_frame_that_carries_fewer_rows_than_it_announces_is_refused(frame):
    sent = frame(rows=[(0, 0, 2, 0), (0, 1, 2, 0)])
    with pytest.raises(FrameError, match="announces 2 rows"):
        decode(encode_frame(sent.header, sent.rows[:1], sent.scores))


def test_another_version_is_told_apart_whatever_follows():
    with pytest.raises(FrameVersionError, match=f"version {VERSION + 1}"):
        decode([HELLO, msgspec.msgpack.encode([VERSION + 1, {"anything": "else"}])])
