import asyncio

import pytest

from monitor.events import EventLog, FramesLost


def lost(frames: int) -> FramesLost:
    return FramesLost("engine", "tiny", frames)


def drain(subscription) -> list[int]:
    """The frames of every event that waits, in order; the subscription has to be closed."""

    async def read():
        return [recorded.event.frames async for recorded in subscription]

    return asyncio.run(asyncio.wait_for(read(), 5))


def test_events_are_numbered_from_one():
    log = EventLog()
    assert [log.publish(lost(1)).sequence for _ in range(3)] == [1, 2, 3]
    assert log.last_sequence == 3


def test_a_subscriber_reads_what_comes_after_it():
    log = EventLog()
    log.publish(lost(1))
    subscription = log.subscribe()
    log.publish(lost(2))
    log.close()
    assert drain(subscription) == [2]


def test_a_subscriber_that_comes_back_reads_what_it_missed():
    log = EventLog(keep=3)
    for frames in range(1, 6):
        log.publish(lost(frames))
    for after, expected in ((4, [5]), (0, [3, 4, 5]), (5, [])):
        subscription = log.subscribe(after)
        log.unsubscribe(subscription)
        assert drain(subscription) == expected


def test_a_slow_subscriber_loses_the_oldest_and_is_told():
    told = []
    log = EventLog(limit=2, on_drop=lambda: told.append(1))
    slow, fast = log.subscribe(), log.subscribe()
    log.unsubscribe(fast)
    for frames in range(1, 6):
        log.publish(lost(frames))
    assert slow.dropped == 3 and len(told) == 3 and fast.dropped == 0
    log.close()
    assert drain(slow) == [4, 5]


def test_a_reader_that_waits_is_woken():
    async def scenario():
        log = EventLog()
        iterator = aiter(log.subscribe())
        waiting = asyncio.ensure_future(anext(iterator))
        await asyncio.sleep(0)
        assert not waiting.done()
        log.publish(lost(7))
        assert (await waiting).event == lost(7)
        ending = asyncio.ensure_future(anext(iterator))
        await asyncio.sleep(0)
        log.close()
        with pytest.raises(StopAsyncIteration):
            await ending
        assert log.subscribers == 0

    asyncio.run(asyncio.wait_for(scenario(), 5))
