"""What a concept is, and how its data are gathered."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from probes.aggregate import Aggregate
from probes.errors import ConceptError, reason
from probes.examples import Benign, Example, Pair, read_lines
from probes.linear import Kind
from probes.roles import Role

DATA: Final = Path(__file__).parent / "data"
FEWEST_PAIRS: Final = 10

Load = Callable[[str, Path], list[Example]]
"""Examples of a concept from a directory of public data sets."""


@dataclass(frozen=True)
class Concept:
    """What a probe is to read."""

    name: str
    definition: str
    """What a high score means, and what it does not."""
    roles: tuple[Role, ...]
    """Whose tokens the probe reads; never the template's."""
    path: Path
    """The contrast pairs that ship with Plumbob, or the user's: JSON lines, one :class:`~probes.examples.Pair` each."""
    written: tuple[Pair, ...] | None = None
    """The pairs themselves, where ``path`` is a file that holds more than them."""
    aggregate: Aggregate = Aggregate()  # noqa: RUF009  (frozen)
    """How token scores become a verdict."""
    kinds: tuple[Kind, ...] = ("logistic", "mean_difference")
    """Ways to fit it that are tried."""
    family: str = ""
    """Probes of one family share a false-positive budget; none where empty."""
    limits: str = ""
    """What the reading cannot show, for the card."""

    @cached_property
    def pairs(self) -> list[Pair]:
        """The contrast pairs.

        Raises:
            ConceptError: Missing, malformed, or fewer than 10.
        """
        pairs = read_lines(self.path, Pair) if self.written is None else list(self.written)
        place = "line" if self.written is None else "pair"
        roles = [role.name.lower() for role in self.roles]
        seen: dict[str, int] = {}
        for number, pair in enumerate(pairs, 1):
            for side in (pair.positive, pair.negative):
                if not side or side[-1].role not in roles:
                    raise ConceptError(
                        f"{self.path}, {place} {number}: {pair.id} must end with a message of: {', '.join(roles)}."
                    )
            if pair.id in seen:
                raise ConceptError(f"{self.path}, {place} {number}: {pair.id} is also {place} {seen[pair.id]}.")
            seen[pair.id] = number
        if len(pairs) < FEWEST_PAIRS:
            raise ConceptError(
                f"{self.path} has {len(pairs)} pairs.", f"A probe needs at least {FEWEST_PAIRS}, better 100."
            )
        return pairs

    def examples(self, data: Path | None, load: Load) -> list[Example]:
        """The contrast pairs, and what public data sets add.

        Args:
            data: Directory of data sets; ``None`` for the pairs alone.
            load: Reads them.

        Raises:
            ConceptError: Missing or malformed.
        """
        shipped = [example for pair in self.pairs for example in pair.examples(self.name)]
        return [*shipped, *(load(self.name, data) if data is not None else [])]


class _Written(msgspec.Struct, forbid_unknown_fields=True):
    """A user's concept file."""

    name: str
    definition: str
    roles: list[str]
    pairs: str | list[Pair]
    half_life: float = 12.0
    min_tokens: int = 4
    limits: str = ""


def load_concept(path: Path) -> Concept:
    """A concept that a user has written.

    ::

        name: overclaiming
        definition: the assistant claims more than it has shown
        roles: [assistant]
        pairs: overclaiming.jsonl      # beside this file; or the pairs themselves, as a list

    Args:
        path: A YAML file.

    Raises:
        ConceptError: Missing or malformed.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConceptError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConceptError(f"{path} is not YAML: {reason(error)}.") from error
    try:
        written = msgspec.convert(content, _Written)
        aggregate = Aggregate(written.half_life, written.min_tokens)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConceptError(f"{path}: {error}.") from error
    known = {role.name.lower(): role for role in Role if role is not Role.TEMPLATE}
    if not written.roles or not set(written.roles) <= set(known):
        raise ConceptError(f"{path}: roles must be some of: {', '.join(known)}; not: {', '.join(written.roles)}.")
    if not written.name.isidentifier():
        raise ConceptError(f"{path}: '{written.name}' is no name for a probe.", "Use letters, digits and underscores.")
    return Concept(
        name=written.name,
        definition=written.definition,
        roles=tuple(known[role] for role in written.roles),
        path=path if isinstance(written.pairs, list) else path.parent / written.pairs,
        written=tuple(written.pairs) if isinstance(written.pairs, list) else None,
        aggregate=aggregate,
        limits=written.limits,
    )


def benign_path() -> Path:
    """Where the ordinary requests are that ship with Plumbob."""
    return DATA / "benign.jsonl"


def load_benign(path: Path | None = None) -> list[Benign]:
    """Ordinary requests that ship with Plumbob, or a user's.

    Raises:
        ConceptError: Missing or malformed.
    """
    path = path or benign_path()
    requests = read_lines(path, Benign)
    for number, request in enumerate(requests, 1):
        if not request.messages or request.messages[-1].role != "user":
            raise ConceptError(f"{path}, line {number}: request {request.id} must end with a message of: user.")
    return requests
