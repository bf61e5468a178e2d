"""Texts of messages are bounded, whoever chose them, and two that differ still do."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.errors import FrameError
from monitor.ingest import Malformed, read_arrival
from monitor.wire.bounds import ID_CHARACTERS, NAMES, TEXT_CHARACTERS, bound, bounded_id, bounded_text
from monitor.wire.codec import encode_frame, encode_hello
from monitor.wire.frames import VERSION, GateEvent, GuardEvent, Hello, Refusal, Started, StateBlock
from monitor.wire.orders import Act, Admission

LONG = "x" * 5_000_000
ANY = st.text(st.characters(), max_size=600)


@given(ANY)
def test_an_id_is_short_and_can_be_printed_and_is_bounded_once(id):
    bounded = bounded_id(id)
    assert len(bounded) <= ID_CHARACTERS and bounded.isprintable()
    assert bounded_id(bounded) == bounded
    bounded.encode()


@given(st.sets(ANY, min_size=2, max_size=8), st.sampled_from(["", "a" * 300]))
def test_ids_that_differ_are_told_apart_however_they_begin(ids, prefix):
    assert len({bounded_id(prefix + id) for id in ids}) == len(ids)


def test_an_ordinary_id_is_itself():
    for id in ("chatcmpl-b572de1b58f5b5ae", "müde €", "a" * ID_CHARACTERS, ""):
        assert bounded_id(id) == id
    assert bounded_id("a\nb").startswith("a\N{REPLACEMENT CHARACTER}b…sha256:")


@given(ANY, st.integers(1, 500))
def test_a_text_is_short_and_can_be_printed(text, characters):
    bounded = bounded_text(text, characters)
    assert len(bounded) <= characters and bounded.isprintable()


def arrive(frame, **header):
    made = frame(0, [])
    header = msgspec.structs.replace(made.header, **header)
    return read_arrival(b"engine/rank0", encode_frame(header, made.rows, made.scores, made.streamed))


def test_what_a_frame_says_of_requests_is_bounded_and_counted(frame):
    admitted = Admission([Act(LONG, add=0.1), Act("kept")])
    arrival = arrive(
        frame,
        started=[Started(0, f"{LONG}1", LONG, 4, admitted, LONG), Started(1, f"{LONG}2", "b\x1b[31m", 4)],
        gates=[GateEvent(0, LONG, "opened", LONG, LONG, 3, 1.0, 0)],
        refused=[Refusal(0, LONG, LONG, LONG, "gate", LONG)],
        guarded=[GuardEvent(0, LONG, LONG, 3, 1.0, 0.5, 32, [LONG] * (NAMES + 5))],
    )
    header = arrival.message.header
    texts = [*_texts(msgspec.to_builtins(header))]
    assert max(map(len, texts)) <= TEXT_CHARACTERS and all(text.isprintable() for text in texts)
    one, two = header.started
    assert one.engine_request_id != two.engine_request_id
    assert one.admitted.acts[1] == Act("kept") and len(header.guarded[0].gates) == NAMES
    assert set(arrival.cut) == {"long", "unprintable"} and arrival.cut["unprintable"] == 1


def test_what_is_short_is_passed_on_as_it_is(frame):
    started = [Started(0, "a-1", "a", 4, Admission([Act("v")]), "choice 1")]
    arrival = arrive(frame, started=started, gates=[GateEvent(0, "g", "opened", "a-1", "a", 3, 1.0, 0)])
    assert arrival.message.header.started == started and not arrival.cut
    message = frame(0, [])
    assert bound(message)[0] is message


def test_an_engine_is_introduced_in_few_words():
    hello = Hello(VERSION, "engine", LONG, LONG, LONG, armed=[LONG] * 3, gates=8)
    arrival = read_arrival(b"engine/core", encode_hello(hello))
    assert max(map(len, _texts(msgspec.to_builtins(arrival.message)))) <= ID_CHARACTERS
    assert arrival.cut == {"long": 6}


@pytest.mark.parametrize(
    "header",
    [
        {"started": [Started(0, "a", "a", -1)]},
        {"started": [Started(0, "a", "a", 2**40)]},
        {"gates": [GateEvent(0, "g", "closed", "a", "a", -3, None, 0)]},
        {"refused": [Refusal(-1, "steer", "", "a", "gate", "why")]},
        {"states": [StateBlock(0, "/" * 5000, 0, 0)]},
    ],
)
def test_what_nothing_can_be_made_of_is_no_message(frame, header):
    message = arrive(frame, **header).message
    assert isinstance(message, Malformed) and message.reason == "malformed"


def test_a_path_that_is_none_is_named(frame):
    made = frame(0, [])
    header = msgspec.structs.replace(made.header, states=[StateBlock(0, "/" * 5000, 0, 0)])
    with pytest.raises(FrameError, match="ring"):
        bound(msgspec.structs.replace(made, header=header))


def _texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
