"""``plumbob watch``: live events in the terminal, one line each."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.text import Text

from monitor.api.client import Notice, follow
from monitor.api.convert import KINDS, event_of
from monitor.cli.console import err, out
from monitor.errors import PlumbobError
from monitor.events import Recorded, Severity
from monitor.events.words import wording
from monitor.v1.event_pb2 import Event

_STYLES: Final[dict[Severity, str]] = {"info": "cyan", "warning": "yellow", "critical": "bold red"}


def watch(
    address: str,
    *,
    kinds: Sequence[str] = (),
    request_id: str | None = None,
    json_lines: bool = False,
    after: int | None = None,
    console: Console = out,
) -> None:
    """Print events as they come, until interrupted. Losses of the connection are mended and reported on stderr.

    Args:
        address: ``host:port`` of a monitor.
        kinds: Only these, of :data:`monitor.api.convert.KINDS`; empty: all.
        request_id: Only events of requests with this id.
        json_lines: One JSON object a line, as protobuf maps it: 64-bit numbers are strings.
        after: Begin with the kept events of a higher sequence; ``None`` begins with the next event.
        console: Where to print; stdout by default, coloured if it is a terminal and ``NO_COLOR`` is not set.

    Raises:
        PlumbobError: A kind that does not exist; no monitor answers, or it refuses.
        SystemExit: With 130, when interrupted.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise PlumbobError(f"'{unknown[0]}' is no kind of event.", f"Choose among: {', '.join(KINDS)}.")
    if not address.strip():
        raise PlumbobError(f"'{address}' is no address of a monitor.", "Write it as host:port, or leave it out.")
    events = follow(address, kinds=[KINDS[kind] for kind in kinds], request_id=request_id, after=after)
    try:
        asyncio.run(_print(events, console, json_lines=json_lines))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


async def _print(items: AsyncIterator[Event | Notice], console: Console, *, json_lines: bool) -> None:
    async for item in items:
        if isinstance(item, Notice):
            err.print(Text(item.text, "dim"))
        elif json_lines:
            console.out(format_json(item), highlight=False)
        else:
            console.print(format_event(item), soft_wrap=True)


def format_json(event: Event) -> str:
    """An event as one line of JSON; fields that are zero are there, absent optional ones are not."""
    return MessageToJson(
        event,
        indent=None,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )


def format_event(event: Event) -> Text:
    """An event as a monitor tells it, as one line; this version may have no words for those of a newer one."""
    if (recorded := event_of(event)) is None:
        return Text(f"event {event.sequence} of a newer monitor", "dim")
    return format_recorded(recorded)


def format_recorded(recorded: Recorded) -> Text:
    """An event as one line: time, what happened, to which request or engine, and why."""
    said = wording(recorded.event)
    line = Text().append(f"{recorded.time.astimezone():%H:%M:%S.%f}"[:-3], "dim")
    line.append(f" {said.label:<6} ", _STYLES[said.severity])
    _add(line, f"{said.about} ", "cyan")
    _add(line, said.strong, "bold")
    _add(line, said.text.removeprefix(said.strong))
    if said.note:
        _add(line, f" [{said.note}]", "bold red" if said.severity == "critical" else "dim")
    return line


def _add(line: Text, text: str, style: str = "") -> None:
    """Append text that others may have chosen: a request id must not send escape codes to a terminal."""
    line.append("".join(char if char.isprintable() else "�" for char in text), style)
