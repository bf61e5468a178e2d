"""The seam between the monitor and whatever carries its messages.

Every engine has two senders, told apart by their routing ids: ``<engine>/core`` says HELLO and takes orders,
and ``<engine>/rank<n>`` sends frames and takes ACK and RESYNC.
"""

import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from monitor.errors import FrameError, FrameVersionError
from monitor.telemetry.stats import MalformedReason
from monitor.wire.bounds import CutReason, bound
from monitor.wire.codec import decode
from monitor.wire.frames import Frame, Hello

_EXPORTER: Final = re.compile(rb"/rank\d{1,6}\Z")


@dataclass(frozen=True, slots=True)
class Malformed:
    """A message that is none: a value rather than an error, since it is counted and the next one is read."""

    reason: MalformedReason
    detail: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message and who sent it."""

    identity: bytes
    """Routing id; answers go there."""
    message: Hello | Frame | Malformed
    """With every text in it bounded (:mod:`monitor.wire.bounds`)."""
    cut: Counter[CutReason] = field(default_factory=Counter[CutReason])
    """Texts of the message that were not taken as they are, by reason."""


class Source(Protocol):
    """Carries messages between engines and the monitor."""

    def __aiter__(self) -> AsyncIterator[Arrival]:
        """Arriving messages, in the order of each sender, until the source is closed."""
        ...

    def send(self, identity: bytes, parts: list[bytes]) -> bool:
        """Send a message without waiting; false where its receiver is not connected or takes nothing."""
        ...

    def close(self) -> None:
        """End the iteration and let go of the address."""
        ...


def core_identity(engine: str) -> bytes:
    """The routing id that an engine's orders go to."""
    return f"{engine}/core".encode()


def read_arrival(identity: bytes, parts: list[bytes]) -> Arrival:
    """Decode a message, check that its sender is who it says, and bound its texts.

    Args:
        identity: The sender's routing id.
        parts: The message, without the routing id.

    Returns:
        The message, or what is wrong with it.
    """
    try:
        message, cut = bound(decode(parts))
    except FrameVersionError as error:
        return Arrival(identity, Malformed("version", str(error)))
    except FrameError as error:
        return Arrival(identity, Malformed("malformed", str(error)))
    if not _is_sender(identity, message):
        return Arrival(identity, Malformed("identity", f"{identity!r} sent a message of another sender."))
    return Arrival(identity, message, cut)


def _is_sender(identity: bytes, message: Hello | Frame) -> bool:
    if isinstance(message, Hello):
        return identity == core_identity(message.engine)
    engine = message.header.engine.encode()
    return identity.startswith(engine) and _EXPORTER.fullmatch(identity, len(engine)) is not None
