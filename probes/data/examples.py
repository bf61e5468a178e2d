"""Labelled conversations: what probes are fitted on, chosen by, and judged by.

An example's ``group`` is what must stay whole when data are split: a matched pair, the statements about one entity, the
sentences of one template. Its ``source`` is the data set, which a probe must generalise beyond. A split that ignores
either reports memory as knowledge.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from probes.errors import ConceptError
from probes.models.chat import Message


class Example(msgspec.Struct, frozen=True):
    """A conversation whose last message does, or does not, show a concept."""

    id: str
    """Unique within its concept."""
    source: str
    """The data set it comes from."""
    group: str
    """Examples of one group are never on both sides of a split; unique across sources."""
    topic: str
    """Its topic: the unit of splits that leave topics out."""
    label: bool
    """True where the last message shows the concept."""
    messages: list[Message]
    """The conversation; empty roles are not allowed. One message of role ``text`` is a bare text: no chat template."""
    tags: list[str] = []
    """Slices it belongs to, such as ``negated``, ``identity_term``, ``multi_turn``."""


class Benign(msgspec.Struct, frozen=True):
    """An ordinary request; the last message is the user's."""

    id: str
    topic: str
    messages: list[Message]
    source: str = "shipped"
    """The data set it comes from; thresholds are set for each."""


class Pair(msgspec.Struct, frozen=True):
    """Two conversations that differ in the concept, alike in everything else."""

    id: str
    topic: str
    positive: list[Message]
    """Its last message shows the concept."""
    negative: list[Message]
    """Its last message does not."""
    kind: str = ""
    """A finer class of the contrast, reported as a slice."""

    def examples(self, concept: str, source: str = "shipped") -> tuple[Example, Example]:
        """The positive and the negative.

        Pairs of one topic are one group: two of them may state the same fact the other way round.
        """
        name, group, tags = f"{source}:{self.id}", f"{source}:{concept}:{self.topic}", [self.kind] if self.kind else []
        return (
            Example(f"{name}+", source, group, self.topic, True, self.positive, tags),
            Example(f"{name}-", source, group, self.topic, False, self.negative, tags),
        )


_Row = TypeVar("_Row")


def read_lines(path: Path, row_type: type[_Row]) -> list[_Row]:
    """The rows of a file of JSON lines.

    Raises:
        ConceptError: Missing or malformed; the message names the line.
    """
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


def by_source(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Examples of each source, in order of first appearance."""
    sources: dict[str, list[Example]] = {}
    for example in examples:
        sources.setdefault(example.source, []).append(example)
    return sources
