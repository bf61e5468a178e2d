"""A source without sockets."""

import asyncio
from collections.abc import AsyncIterator

from monitor.ingest.source import Arrival, read_arrival


class MemorySource:
    """Carries messages in memory, through the same codec as a socket."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Arrival | None] = asyncio.Queue()
        self.sent: list[tuple[bytes, list[bytes]]] = []
        """Messages that the monitor sent, with the routing id of each."""
        self.away: set[bytes] = set()
        """Routing ids that take nothing."""

    def put(self, identity: bytes, parts: list[bytes]) -> None:
        """Let a message arrive."""
        self._waiting.put_nowait(read_arrival(identity, parts))

    async def __aiter__(self) -> AsyncIterator[Arrival]:
        while (arrival := await self._waiting.get()) is not None:
            yield arrival

    def send(self, identity: bytes, parts: list[bytes]) -> bool:
        """Keep a message, unless its receiver is away."""
        if identity in self.away:
            return False
        self.sent.append((identity, parts))
        return True

    def close(self) -> None:
        """End the iteration once what waits has been read."""
        self._waiting.put_nowait(None)
