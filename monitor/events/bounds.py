"""Bounds on events: no single one is too large to be told, and of those that are kept no request has all.

1. :func:`bounded`: clients choose ids, engines give reasons; an event with texts beyond all measure has them cut before
   it is numbered, so that every watcher can be sent every event.
2. :class:`KeptEvents`: one request of a user may be many of the engine (``n``, beam search, batches). When events have
   to go, they are those of the requests that have the most, so that no request pushes out another's firing.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from heapq import merge
from typing import Any, Final

import msgspec

from monitor.events.base import EventBase, request_of
from monitor.events.types import Event, Recorded

TEXT_CHARACTERS: Final = 16_384
"""The longest text of an event; of a longer one, the beginning is kept."""
EVENT_CHARACTERS: Final = 1 << 18
"""Those of all texts of an event, at most 1 MiB of UTF-8; gRPC takes messages of four times that. Of an event that has
more, texts and lists are cut short."""
SHORT_CHARACTERS: Final = 512
SHORT_ITEMS: Final = 256
SHARE: Final = 16
"""Events that the parts of one request of a user may have among those that are kept, where room is short."""

_Holder = tuple[str, str | type[EventBase]]
"""An engine, and a user's request or a kind of event."""

_encoder: Final = msgspec.json.Encoder()


def clip(value: Any, characters: int, items: int | None = None) -> Any:
    """A value with every text in it cut to a length, and such that it can be encoded; itself where nothing was changed.

    Args:
        value: A struct, tuple or scalar.
        characters: The longest text.
        items: The longest tuple; ``None``: any.
    """
    if isinstance(value, str):
        return _encodable(value if len(value) <= characters else f"{value[: characters - 1]}…")
    if isinstance(value, tuple):
        kept = value if items is None else value[:items]
        cut = tuple(clip(item, characters, items) for item in kept)
        return cut if cut != value else value
    if not isinstance(value, msgspec.Struct):
        return value
    changed = {
        name: short
        for name in value.__struct_fields__
        if (short := clip(found := getattr(value, name), characters, items)) is not found
    }
    return msgspec.structs.replace(value, **changed) if changed else value


def bounded(event: Event) -> Event:
    """An event that is small enough to be told: itself, or one with its texts cut."""
    try:
        # Nearly always: what is short as a whole has no long text.
        if len(_encoder.encode(event)) <= TEXT_CHARACTERS:
            return event
    except UnicodeEncodeError:
        pass
    event = clip(event, TEXT_CHARACTERS)
    return event if _characters(event) <= EVENT_CHARACTERS else clip(event, SHORT_CHARACTERS, SHORT_ITEMS)


def _encodable(text: str) -> str:
    """A text without what has no UTF-8, such as of a path that is no Unicode."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def _characters(value: Any) -> int:
    """The characters of all texts in a value; of a struct's own fields and tuples, one each."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, tuple):
        return len(value) + sum(map(_characters, value))
    if isinstance(value, msgspec.Struct):
        return sum(_characters(getattr(value, name)) for name in value.__struct_fields__)
    return 1


class KeptEvents:
    """Events in their order, so many at most.

    When there is one too many, the first of these that there is has to go:

    1. The oldest *routine* event (:attr:`monitor.events.EventBase.routine`), where there are more of them than are
       reserved for them.
    2. The oldest event of the request of a user that has the most, where that is more than :data:`SHARE`.
    3. The oldest event.

    Routine events among themselves go by 2 and 3 as well. So an event that is not routine goes before its time only by
    the doing of its own request. By that of others it goes when events of at least ``(limit − routine) / SHARE`` other
    requests have come after it, whatever each of them has: 192 of the 4,096 events of the log.

    Args:
        limit: The most that are kept.
        routine: Of them, those that routine events may take from the others.
    """

    def __init__(self, limit: int, routine: int) -> None:
        self._limit, self._reserved = limit, routine
        self._routine, self._notable = _Shared(), _Shared()

    def __len__(self) -> int:
        return len(self._routine) + len(self._notable)

    def __iter__(self) -> Iterator[Recorded]:
        return merge(self._routine, self._notable, key=lambda recorded: recorded.sequence)

    def add(self, recorded: Recorded) -> int:
        """Keep an event of a higher sequence number than all others; returns how many had to go for it."""
        (self._routine if recorded.event.routine else self._notable).add(recorded)
        gone = 0
        while len(self) > self._limit:
            spare = len(self._routine) > self._reserved or not len(self._notable)
            (self._routine if spare else self._notable).give_way()
            gone += 1
        return gone

    def pop(self) -> Recorded:
        """Take the oldest event.

        Raises:
            IndexError: There is none.
        """
        oldest = [kept for kept in (self._routine, self._notable) if len(kept)]
        if not oldest:
            raise IndexError("no event is kept")
        return min(oldest, key=lambda kept: kept.first).pop()


class _Shared:
    """Events of which the requests of users have shares."""

    def __init__(self) -> None:
        self._events: OrderedDict[int, tuple[_Holder, Recorded]] = OrderedDict()
        """By sequence number, ascending."""
        self._held: dict[_Holder, deque[int]] = {}
        """Sequence numbers of each one's, ascending: whatever is taken is the oldest of whoever holds it."""
        self._greedy: set[_Holder] = set()
        """Those who hold more than their share."""

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Recorded]:
        return iter([recorded for _, recorded in self._events.values()])

    @property
    def first(self) -> int:
        """Sequence number of the oldest."""
        return next(iter(self._events))

    def add(self, recorded: Recorded) -> None:
        holder = _holder(recorded.event)
        self._events[recorded.sequence] = holder, recorded
        if (held := self._held.get(holder)) is None:
            self._held[holder] = deque((recorded.sequence,))
        else:
            held.append(recorded.sequence)
            if len(held) > SHARE:
                self._greedy.add(holder)

    def pop(self) -> Recorded:
        _, (holder, recorded) = self._events.popitem(last=False)
        self._let_go(holder)
        return recorded

    def give_way(self) -> None:
        if not self._greedy:
            self.pop()
            return
        most = max(self._greedy, key=lambda holder: len(self._held[holder]))
        del self._events[self._held[most][0]]
        self._let_go(most)

    def _let_go(self, holder: _Holder) -> None:
        held = self._held[holder]
        held.popleft()
        if len(held) == SHARE:
            self._greedy.discard(holder)
        if not held:
            del self._held[holder]


def _holder(event: EventBase) -> _Holder:
    """Whose event it is: a user's request with all its parts, or an engine's events of one kind."""
    if (request := request_of(event)) is not None:
        return request.engine, request.request_id
    return str(getattr(event, "engine", "")), type(event)
