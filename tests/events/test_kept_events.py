"""What is kept when there is too much of it: no request pushes out another's firing."""

import asyncio
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.api.convert import event_message
from monitor.events import Event, EventLog, FramesLost, ProbeFired, Recorded, Request, RequestFinished
from monitor.events.bounds import EVENT_CHARACTERS, SHARE, TEXT_CHARACTERS, KeptEvents, bounded
from tests.events.samples import TIME, sample

KEEP = 256
OTHERS = (KEEP - KEEP // 4) // SHARE
"""Requests whose events must follow before one goes that is not of a greedy request."""
GRPC_BYTES = 4 << 20


def request(user: str, part: int = 0) -> Request:
    return Request("engine", "tiny", user, f"{part}_{user}-01234567", 12, f"choice {part}")


def fired(user: str, part: int = 0, probe: str = "harm") -> ProbeFired:
    return ProbeFired(request(user, part), probe, 2.0, 1.0, 7, "user")


def finished(user: str, part: int = 0) -> RequestFinished:
    return RequestFinished(request(user, part), 9, 0, 0, ())


def kept(log: EventLog, after: int = 0) -> list[Recorded]:
    subscription = log.subscribe(after)
    log.unsubscribe(subscription)

    async def read():
        return [recorded async for recorded in subscription]

    return asyncio.run(asyncio.wait_for(read(), 10))


@pytest.mark.parametrize("flood", [fired, finished])
def test_one_request_of_many_parts_pushes_out_nothing_of_another(flood):
    log = EventLog()
    log.publish(fired("small"))
    log.publish(finished("small"))
    for part in range(10_000):
        log.publish(flood("large", part))
    users = [recorded.event.request.request_id for recorded in kept(log)]
    assert users.count("small") == 2 and len(users) == 4096
    # A watcher that comes back reads all that is kept, in order, and sees by the gap how much is not.
    sequences = [recorded.sequence for recorded in kept(log)]
    assert sequences[:2] == [1, 2] and sequences[-1] == log.last_sequence and sequences == sorted(sequences)


def test_requests_that_end_push_out_no_firing_whosever_they_are():
    log = EventLog()
    log.publish(fired("small"))
    for number in range(10_000):
        log.publish(finished(f"another-{number}"))
    found = kept(log)
    assert found[0].event == fired("small") and len(found) == 4096


def test_firings_of_many_requests_leave_room_for_requests_that_ended():
    log = EventLog(keep=KEEP)
    for number in range(KEEP):
        log.publish(finished(f"ended-{number}"))
    for number in range(10 * KEEP):
        log.publish(fired(f"fired-{number}"))
    kinds = [type(recorded.event) for recorded in kept(log)]
    assert kinds.count(RequestFinished) == KEEP // 4 and len(kinds) == KEEP


def test_an_engine_that_loses_frames_without_end_pushes_out_no_firing():
    log = EventLog(keep=KEEP)
    log.publish(fired("small"))
    for number in range(10 * KEEP):
        log.publish(FramesLost("engine", "tiny", number))
    assert kept(log)[0].event == fired("small")


EVENTS = st.lists(
    st.tuples(st.sampled_from("abcdefghij"), st.integers(1, 400), st.booleans()),
    max_size=12,
)


@settings(max_examples=60)
@given(before=EVENTS, after=EVENTS, own=st.integers(1, SHARE))
def test_what_a_modest_request_has_is_kept_as_long_as_few_others_follow(before, after, own):
    """The stated bound, with ten other requests at most, each of which may have any number of events."""
    assert OTHERS > 10
    log = EventLog(keep=KEEP)
    for user, count, routine in before:
        for part in range(count):
            log.publish((finished if routine else fired)(user, part))
    for part in range(own):
        log.publish(fired("modest", part))
    for user, count, routine in after:
        for part in range(count):
            log.publish((finished if routine else fired)(user, part))
    found = kept(log)
    assert sum(recorded.event.request.request_id == "modest" for recorded in found) == own
    assert len(found) == min(KEEP, log.last_sequence)
    sequences = [recorded.sequence for recorded in found]
    assert sequences == sorted(set(sequences))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.integers(0, 3)), max_size=300),
    st.integers(1, 40),
    st.integers(0, 10),
)
def test_adding_and_taking_in_any_order_keeps_the_order_and_the_count(steps, limit, routine):
    events, held = KeptEvents(limit, routine), set()
    for sequence, (user, ended, taken) in enumerate(steps, 1):
        before = len(events)
        gone = events.add(Recorded(sequence, TIME, (finished if ended else fired)(f"user-{user}")))
        assert len(events) == before + 1 - gone <= limit
        assert sorted({recorded.sequence for recorded in events}) == [recorded.sequence for recorded in events]
        for _ in range(min(taken, len(events))):
            oldest = next(iter(events))
            assert events.pop() is oldest and oldest.sequence not in held
            held.add(oldest.sequence)
    while len(events):
        events.pop()
    with pytest.raises(IndexError):
        events.pop()


def test_a_slow_subscriber_loses_requests_that_ended_before_it_loses_a_firing():
    told = []
    log = EventLog(limit=64, on_drop=lambda: told.append(1))
    slow = log.subscribe()
    for number in range(60):
        log.publish(fired(f"fired-{number}"))
        for part in range(20):
            log.publish(finished(f"fired-{number}", part))
    log.unsubscribe(slow)

    async def read():
        return [recorded.event async for recorded in slow]

    events = asyncio.run(asyncio.wait_for(read(), 10))
    assert sum(isinstance(event, ProbeFired) for event in events) == 60 and len(events) == 64
    assert slow.dropped == len(told) == 60 * 21 - 64


def huge(value):
    """A struct with texts and tuples beyond all measure."""
    if isinstance(value, str):
        return value + "\udcff" + "€" * 2_000_000
    if isinstance(value, tuple):
        return tuple(huge(item) for item in value) * 5
    if isinstance(value, msgspec.Struct):
        changed = {name: huge(getattr(value, name)) for name in value.__struct_fields__}
        return msgspec.structs.replace(value, **changed)
    return value


def literal_texts(kind: type) -> dict:
    """Fields that have one of a few values: their texts are the program's own."""
    event = sample(kind)
    return {
        field.name: getattr(event, field.name) for field in msgspec.structs.fields(kind) if "Literal" in str(field.type)
    }


@pytest.mark.parametrize("kind", get_args(Event), ids=lambda kind: kind.__name__)
def test_every_kind_of_event_can_be_told_whatever_is_in_it(kind):
    event = msgspec.structs.replace(huge(sample(kind)), **literal_texts(kind))
    (recorded,) = [EventLog().publish(event)]
    assert event_message(recorded).ByteSize() < GRPC_BYTES
    assert bounded(recorded.event) is recorded.event


def test_an_event_of_many_long_texts_is_cut_further():
    names = tuple(f"{number} " + "n" * TEXT_CHARACTERS for number in range(1000))
    event = msgspec.structs.replace(sample(_kind("Guarded")), gates=names)
    cut = bounded(event)
    assert sum(map(len, cut.gates)) < EVENT_CHARACTERS and cut.gates[0].startswith("0 nnn")
    assert cut.position == event.position


def _kind(name: str) -> type:
    return next(kind for kind in get_args(Event) if kind.__name__ == name)
