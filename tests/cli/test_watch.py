"""``plumbob watch``: what it prints, and how it finds its place again."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import aclosing
from datetime import UTC, datetime

import pytest
from rich.console import Console

from monitor import events
from monitor.api import client
from monitor.api.convert import event_message
from monitor.cli.watch import format_event, format_json, watch
from monitor.errors import PrerequisiteError
from monitor.telemetry.stats import EngineStatus
from probes.errors import PlumbobError

pytestmark = pytest.mark.timeout(60)

REQUEST = events.Request("engine-1", "tiny", "chat-1", "chat-1-a", 12)
READINGS = (events.Reading("harm", 30, 1.0, 1.5, None), events.Reading("lies", 30, None, 1.0, None))


def line(event):
    message = event_message(events.Recorded(3, datetime(2026, 1, 2, 3, 4, 5, 678000, UTC), event))
    return format_event(message).plain.partition(" ")[2]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            events.EngineChanged("engine-1", "tiny", "shadow", "every rule is held to shadow: it drifts"),
            "ENGINE tiny shadow: every rule is held to shadow: it drifts",
        ),
        (
            events.ProbeFired(REQUEST, "harm", 2.5, 1.5, 17, "assistant"),
            "FIRED  chat-1 harm 2.50 ≥ 1.50 at token 17 (assistant)",
        ),
        (
            events.Alert(REQUEST, "no-harm", "alert", "critical", "harm", 2.5, 1.5, 17, "it rose"),
            "ALERT  chat-1 no-harm critical: it rose",
        ),
        (
            events.Alert(REQUEST, "no-harm", "shadow", "info", "harm", 2.5, 1.5, 17, "it rose"),
            "ALERT  chat-1 no-harm info: it rose [shadow: not sent]",
        ),
        (
            events.Intervention(REQUEST, "r", "enforce", "harm", 2.5, 1.5, 17, "v", -0.3, 64, True, "why"),
            "STEER  chat-1 r steer v at dose -0.3 for 64 tokens: why",
        ),
        (
            events.Intervention(REQUEST, "r", "enforce", "harm", 2.5, 1.5, 17, "v", 0.3, None, False, "why"),
            "STEER  chat-1 r steer v at dose 0.3 until the request ends: why [enforce: not sent]",
        ),
        (
            events.Intervention(
                REQUEST,
                "r",
                "enforce",
                "harm",
                2.5,
                1.5,
                17,
                "v",
                0.0,
                None,
                True,
                "why",
                "clamp",
                None,
                0.1,
                "policy:r:0",
            ),
            "STEER  chat-1 r clamp v to at most 0.1 until the request ends: why",
        ),
        (
            events.Intervention(REQUEST, "r", "shadow", "harm", 2.5, 1.5, 17, "v", 0.0, 9, False, "why", "ablate"),
            "STEER  chat-1 r ablate v for 9 tokens: why [shadow: not sent]",
        ),
        (
            events.Intervention(
                REQUEST, "r", "enforce", "harm", 2.5, 1.5, 17, "", 0.0, None, False, "why", "stop", refusal="it is away"
            ),
            "STOP   chat-1 r: why [enforce: not sent, it is away]",
        ),
        (
            events.InterventionEnded(REQUEST, "", "order:1", 30, 13, 4),
            "STEER  chat-1 order:1 ended at token 30, 13 steered",
        ),
        (events.InterventionsLost("engine-1", "tiny", 3), "LOST   tiny 3 decisions of gates"),
        (
            events.Guarded(REQUEST, 80, 0.9, 0.7, 64, (), 3, "why"),
            "GUARD  chat-1 released: why",
        ),
        (
            events.Escalated(REQUEST, "r", "alert", "harm", 2.5, 1.5, 17, "why"),
            "REVIEW chat-1 r why",
        ),
        (
            events.Escalated(REQUEST, "r", "shadow", "harm", 2.5, 1.5, 17, "why"),
            "REVIEW chat-1 r why [shadow: no trace kept]",
        ),
        (
            events.Ordered("order:1", "steer", "sent", "engine-1", "tiny", REQUEST, "operator me", 60.0, "steer v", ""),
            "ORDER  chat-1 sent steer v (by operator me, for 60 s at most)",
        ),
        (
            events.Ordered(
                "policy:r:0", "arm", "refused", "engine-1", "tiny", None, "policy", None, "steer v", "no room"
            ),
            "ORDER  tiny refused steer v (by policy): no room",
        ),
        (
            events.RequestFinished(REQUEST, 40, 0, 0, READINGS),
            "DONE   chat-1 40 tokens; closest: harm 1.00 of 1.50",
        ),
        (
            events.RequestFinished(REQUEST, 40, 3, 2, (events.Reading("harm", 30, 2.5, 1.5, 17), *READINGS)),
            "DONE   chat-1 40 tokens, 3 unscored, 2 steered; fired: harm at 17",
        ),
        (
            events.RequestFinished(REQUEST, 40, 0, 0, (*READINGS, events.Reading("worker", 5, -1.0, 1.0, None, 25))),
            "DONE   chat-1 40 tokens, worker: 25 unscored; closest: harm 1.00 of 1.50",
        ),
        (
            events.RequestFinished(REQUEST, 8, 0, 0, READINGS, (events.Unread("text", 12), events.Unread("tool", 3))),
            "DONE   chat-1 8 tokens, 12 unread (text), 3 unread (tool); closest: harm 1.00 of 1.50",
        ),
        (events.EngineChanged("engine-1", "tiny", "lost", "silent"), "ENGINE tiny lost: silent"),
        (events.FramesLost("engine-1", "", 9), "LOST   engine-1 9 frames"),
    ],
)
def test_one_line_an_event(event, expected):
    assert line(event) == expected


def test_a_request_id_cannot_send_escape_codes_or_lines():
    hostile = events.Request("engine-1", "tiny", "\x1b[2J\x1b]0;x\x07\n\rALERT\u202e", "key", 1)
    text = line(events.ProbeFired(hostile, "harm", 2.5, 1.5, 17, "user"))
    assert text.isprintable()


def test_json_is_one_line_with_every_field():
    event = events.Intervention(REQUEST, "r", "shadow", "harm", 2.5, 1.5, 0, "v", -0.3, None, False, "a\nb")
    encoded = format_json(event_message(events.Recorded(3, datetime(2026, 1, 2, tzinfo=UTC), event)))
    assert "\n" not in encoded
    decoded = json.loads(encoded)
    assert decoded["sequence"] == "3"
    assert decoded["intervention"]["mode"] == "MODE_SHADOW"
    assert decoded["intervention"]["sent"] is False
    assert "tokens" not in decoded["intervention"]


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch):
    message = event_message(events.Recorded(1, datetime.now(UTC), events.EngineChanged("e", "tiny", "lost", "silent")))

    def printed(terminal):
        console = Console(file=io.StringIO(), force_terminal=terminal)
        console.print(format_event(message))
        return console.file.getvalue()

    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[1;31m" in printed(True)
    assert "\x1b" not in printed(None)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "31m" not in printed(True)


def test_no_monitor_is_one_line_with_the_fix():
    with pytest.raises(PrerequisiteError, match=r"^No monitor answers at 127\.0\.0\.1:1\. .*plumbob monitor"):
        watch("127.0.0.1:1")


def test_an_unknown_kind_names_those_that_exist():
    with pytest.raises(PlumbobError, match=r"'alarm' is no kind of event\..*probe_fired, alert"):
        watch("127.0.0.1:1", kinds=["alarm"])


def test_what_answers_but_is_no_monitor_is_told(monitor):
    async def run():
        import grpc.aio

        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        with pytest.raises(PrerequisiteError, match="is not a plumbob monitor"):
            await anext(client.follow(f"127.0.0.1:{port}"))
        await server.stop(None)

    asyncio.run(run())


@pytest.fixture
def monitor(monitor):
    """It scores an engine: what it says of having none is told once, below."""
    monitor.engines = [EngineStatus("engine-1", "tiny", "0.32.0", "connected", 1, 0, 0, 0, 0.5, 0.1)]
    return monitor


def test_says_at_once_that_nothing_is_read(monitor):
    async def first():
        async with monitor.serve() as server, aclosing(client.follow(server.address, after=0)) as items:
            monitor.publish_alert()
            return (await next_events(items, 1))[1]

    assert asyncio.run(first()) == []
    monitor.engines = []
    monitor.restart()
    assert asyncio.run(first()) == ["No engine has connected to this monitor. Nothing is read."]
    for state, unread, said in (("refused", False, "refused"), ("connected", True, "unread")):
        engine = EngineStatus("engine-1", "tiny", "0.32.0", state, 1, 0, 0, 0, 0.5, 0.1, unread=unread)
        monitor.engines = [engine]
        monitor.restart()
        assert asyncio.run(first()) == [f"No engine of this monitor is scored: tiny is {said}. Nothing is read."]


async def next_events(items, count):
    """The next events, and the notices among them."""
    found, notices = [], []
    while len(found) < count:
        item = await anext(items)
        found.append(item) if not isinstance(item, client.Notice) else notices.append(item.text)
    return [event.sequence for event in found], notices


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


def test_begins_with_the_next_event_and_misses_nothing_while_away(monitor, monkeypatch):
    monkeypatch.setattr(client, "FIRST_DELAY_SECONDS", 0.02)

    async def run():
        monitor.publish_alert()
        async with monitor.serve() as server:
            port = int(server.address.rpartition(":")[2])
            items = client.follow(server.address)
            waiting = asyncio.ensure_future(anext(items))
            await until(lambda: monitor.events.subscribers == 1)
            monitor.publish_alert()
            assert (await waiting).sequence == 2
        monitor.restart()
        for _ in range(2):
            monitor.publish_alert()
        async with aclosing(items):
            follow_on = asyncio.create_task(next_events(items, 2))
            await asyncio.sleep(0.1)
            async with monitor.serve(port=port):
                found, notices = await follow_on
        assert found == [1, 2]
        assert any("is lost. Trying again" in notice for notice in notices)
        assert any(notice.startswith("Connected to") for notice in notices)
        assert "The monitor was restarted: its events are numbered from 1 again." in notices

    asyncio.run(run())


def test_resumes_in_the_same_log(monitor, monkeypatch):
    """The stream breaks, the monitor lives: nothing twice, nothing missed."""
    monkeypatch.setattr(client, "FIRST_DELAY_SECONDS", 0.02)

    async def run():
        async with monitor.serve() as server, aclosing(client.follow(server.address, after=0)) as items:
            for _ in range(3):
                monitor.publish_alert()
            assert await next_events(items, 3) == ([1, 2, 3], [])
            # Ends every stream, as a proxy that closes idle connections does.
            monitor.events.close()
            for _ in range(2):
                monitor.publish_alert()
            found, notices = await next_events(items, 2)
            assert found == [4, 5]
            assert not any("restarted" in notice for notice in notices)

    asyncio.run(run())


def test_tells_what_was_missed(monitor):
    monitor.restart(keep=4)

    async def run():
        for _ in range(10):
            monitor.publish_alert()
        async with monitor.serve() as server, aclosing(client.follow(server.address, after=2)) as items:
            assert await next_events(items, 1) == ([7], ["4 events were missed."])

    asyncio.run(run())


def test_delays_double_up_to_a_limit_and_are_jittered():
    for failures in (1, 2, 3, 50, 10_000):
        longest = min(client.LONGEST_DELAY_SECONDS, client.FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 100))
        delays = [client.retry_delay(failures) for _ in range(50)]
        assert longest / 2 <= min(delays) < max(delays) <= longest


def test_interrupted_exits_130_and_says_nothing(monitor, tmp_path):
    """In a process of its own, with the signal that a terminal sends."""
    script = textwrap.dedent("""
        import sys
        from monitor.cli.watch import watch
        watch(sys.argv[1], json_lines=True, after=0)
    """)
    (tmp_path / "script.py").write_text(script)

    async def run():
        monitor.publish_alert("chat-9")
        async with monitor.serve() as server:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(tmp_path / "script.py"), server.address),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            first = json.loads(await process.stdout.readline())
            assert first["alert"]["request"]["request_id"] == "chat-9"
            process.send_signal(signal.SIGINT)
            rest, errors = await process.communicate()
            assert (process.returncode, rest, errors) == (130, b"", b"")

    asyncio.run(run())
