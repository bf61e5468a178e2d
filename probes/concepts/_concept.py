"""Concepts and their data."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from probes.chat import Message
from probes.errors import ConceptError
from probes.roles import Role

DATA: Final = Path(__file__).parent / "data"

_Row = TypeVar("_Row")


class Pair(msgspec.Struct, frozen=True):
    """Two conversations that differ in the concept."""

    id: str
    topic: str
    positive: list[Message]
    """Its last message shows the concept."""
    negative: list[Message]
    """Its last message does not."""


class Benign(msgspec.Struct, frozen=True):
    """An ordinary request; the last message is the user's."""

    id: str
    topic: str
    messages: list[Message]


@dataclass(frozen=True)
class Concept:
    """What a probe is to read."""

    name: str
    description: str
    """What a high score means."""
    roles: tuple[Role, ...]
    """Whose tokens the probe reads."""
    path: Path
    """JSON lines, one :class:`Pair` each."""

    @cached_property
    def pairs(self) -> list[Pair]:
        """The contrast data.

        Raises:
            ConceptError: Missing, malformed, or fewer than 10 pairs.
        """
        pairs = _load(self.path, Pair)
        roles = [role.name.lower() for role in self.roles]
        for number, pair in enumerate(pairs, 1):
            for side in (pair.positive, pair.negative):
                if not side or side[-1].role not in roles:
                    raise ConceptError(
                        f"{self.path}, line {number}: pair {pair.id} must end with a message of: {', '.join(roles)}."
                    )
        if len(pairs) < 10:
            raise ConceptError(f"{self.path} has {len(pairs)} pairs.", "A probe needs at least 10, better 100.")
        return pairs


def benign_path() -> Path:
    """Where the ordinary requests are."""
    return DATA / "benign.jsonl"


def load_benign(path: Path | None = None) -> list[Benign]:
    """Ordinary requests.

    Raises:
        ConceptError: Missing or malformed.
    """
    path = path or benign_path()
    requests = _load(path, Benign)
    for number, request in enumerate(requests, 1):
        if not request.messages or request.messages[-1].role != "user":
            raise ConceptError(f"{path}, line {number}: request {request.id} must end with a message of: user.")
    return requests


def _load(path: Path, row_type: type[_Row]) -> list[_Row]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConceptError(f"{path} cannot be read: {error.strerror}.") from error
    rows: list[_Row] = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(msgspec.json.decode(line, type=row_type))
        except msgspec.MsgspecError as error:
            raise ConceptError(f"{path}, line {number}: {error}.") from error
    return rows


CONCEPTS: Final = (
    Concept(
        name="harmful_intent",
        description="the user asks for help with doing harm",
        roles=(Role.USER,),
        path=DATA / "harmful_intent.jsonl",
    ),
    Concept(
        name="toxicity",
        description="the text insults, demeans, threatens or harasses somebody",
        roles=(Role.USER, Role.ASSISTANT),
        path=DATA / "toxicity.jsonl",
    ),
    Concept(
        name="sycophancy",
        description="the assistant tells the user what pleases, against what is true",
        roles=(Role.ASSISTANT,),
        path=DATA / "sycophancy.jsonl",
    ),
)
