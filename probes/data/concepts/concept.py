"""A concept, and how its data are gathered."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from probes.data.examples import Benign, Example, Pair, read_lines
from probes.errors import ConceptError, reason
from probes.scoring.aggregate import Aggregate
from probes.scoring.forms import Kind
from probes.scoring.roles import KEPT, Role

DATA: Final = Path(__file__).parent / "data"
FEWEST_PAIRS: Final = 10

AGGREGATES: Final = (Aggregate(half_life=4.0, min_tokens=3), Aggregate(half_life=16.0, min_tokens=3))
"""A few words, and a sentence: which of them shows a concept best is a matter of the concept."""

Load = Callable[[str, Path], list[Example]]
"""Examples of a concept from a directory of public data sets."""


@dataclass(frozen=True)
class Concept:
    """A concept that a probe is to read."""

    name: str
    definition: str
    """The meaning of a high score, and what it does not mean."""
    roles: tuple[Role, ...]
    """Whose tokens the probe reads; never the template's."""
    path: Path
    """The contrast pairs that ship with Plumbob, or the user's: JSON lines of :class:`~probes.data.examples.Pair`."""
    written: tuple[Pair, ...] | None = None
    """The pairs themselves, where ``path`` is a file that holds more than them."""
    aggregates: tuple[Aggregate, ...] = AGGREGATES
    """Ways in which token scores may become a verdict, all of which are tried."""
    kinds: tuple[Kind, ...] = ("logistic", "mean_difference")
    """Ways to fit it that are tried."""
    family: str = ""
    """Probes of one family share a false-positive budget; none where empty."""
    limits: str = ""
    """Limits of the reading, for the card."""

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
        ConceptError: Missing or malformed, or its pairs are.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConceptError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Also what is no UTF-8, no date though it looks like one, or nested without end.
        raise ConceptError(f"{path} is not YAML: {reason(error)}.") from error
    try:
        written = msgspec.convert(content, _Written)
        # Converted, since a struct does not check what it is made with.
        aggregate = msgspec.convert({"half_life": written.half_life, "min_tokens": written.min_tokens}, Aggregate)
    except msgspec.ValidationError as error:
        raise ConceptError(f"{path}: {error}.") from error
    known = {role.name.lower(): role for role in Role if role is not Role.TEMPLATE}
    read = {role.name.lower() for role in KEPT}
    if not written.roles or not set(written.roles) <= read:
        raise ConceptError(
            f"{path}: roles must be some of: {', '.join(sorted(read))}; not: {', '.join(written.roles) or 'none'}."
        )
    if not written.name.isidentifier():
        raise ConceptError(f"{path}: '{written.name}' is no name for a probe.", "Use letters, digits and underscores.")
    if not math.isfinite(written.half_life):
        raise ConceptError(f"{path}: a half-life of {written.half_life:g} tokens is none.", "The default is 12.")
    concept = Concept(
        name=written.name,
        definition=written.definition,
        roles=tuple(known[role] for role in written.roles),
        path=path if isinstance(written.pairs, list) else path.parent / written.pairs,
        written=tuple(written.pairs) if isinstance(written.pairs, list) else None,
        aggregates=(aggregate,),
        limits=written.limits,
    )
    # Here, so that no model is read for pairs that do not serve.
    _require_contrast(concept, known)
    return concept


def _require_contrast(concept: Concept, roles: Collection[str]) -> None:
    """Check that a user's pairs are conversations that differ, and end with something to read."""
    for pair in concept.pairs:
        for message in (*pair.positive, *pair.negative):
            if message.role not in roles:
                raise ConceptError(
                    f"{concept.path}: {pair.id} has a message of: {message.role}.", f"Roles are: {', '.join(roles)}."
                )
        if not (pair.positive[-1].content.strip() and pair.negative[-1].content.strip()):
            raise ConceptError(f"{concept.path}: {pair.id} ends with a message that has no text.", "Write one.")
        if pair.positive == pair.negative:
            raise ConceptError(
                f"{concept.path}: {pair.id} is the same on both sides.", "One must show the concept, one must not."
            )


def benign_path() -> Path:
    """The file of benign requests that ships."""
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
