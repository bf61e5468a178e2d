"""The corpus to read: conversations as tokens, cut to length, and few enough for a token budget.

The rule of subsampling: each data set gets an equal share of its concept's tokens, and what one does not need goes to
the others. Within a set, whole groups are taken in the order of a hash of their names, so that the choice is the same
on every machine, is no matter of the file's order, and grows by adding groups when the budget grows. A conversation
longer than :data:`MAX_TOKENS` is cut after so many; where the cut takes away the whole message that is labelled, the
conversation is left out. Both are counted.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from probes.data.examples import Benign, Example
from probes.errors import ConceptError
from probes.models.chat import Conversation

MAX_TOKENS: Final = 768
"""Of one conversation that is fitted on."""

FEWEST_GROUPS: Final = 5
"""Of either label: fewer cannot be parted into some to fit on and some to judge by."""

Encode = Callable[[Conversation], list[int]]

_Item = TypeVar("_Item", Example, Benign)


@dataclass(frozen=True)
class Sample(Generic[_Item]):
    """Conversations chosen from a concept's data, or from benign requests."""

    items: list[_Item]
    tokens: list[list[int]]
    """Token ids of each."""
    cut: int
    """Conversations longer than :data:`MAX_TOKENS`."""
    dropped: int
    """Those of them that lost the message that they are labelled for, and were left out."""
    available: int
    """Conversations before any choice."""


def sample_examples(examples: Sequence[Example], encode: Encode, budget: int, name: str) -> Sample[Example]:
    """Choose examples of a concept.

    Args:
        examples: All of them.
        encode: Conversation to token ids.
        budget: Tokens, of all of them together.
        name: Of the concept, for messages.

    Raises:
        ConceptError: Two examples have one id, or what was chosen has too few groups of one label.
    """
    ids: set[str] = set()
    for example in examples:
        if example.id in ids:
            raise ConceptError(f"Concept '{name}' has two examples with the id {example.id}.", "Rename one of them.")
        ids.add(example.id)

    def keep(example: Example, tokens: list[int]) -> bool:
        # The labelled message must begin within what is kept, with room for some of it.
        before = example.messages[:-1]
        return len(tokens) <= MAX_TOKENS or not before or len(encode(before)) < MAX_TOKENS // 2

    chosen, cut, dropped = _choose(examples, lambda item: item.group, encode, budget, keep)
    for label in (True, False):
        kind, groups = "positive" if label else "negative", {item.group for item, _ in chosen if item.label == label}
        if not any(example.label == label for example in examples):
            raise ConceptError(f"Concept '{name}' has no {kind} example.", "It needs both.")
        if len(groups) < FEWEST_GROUPS:
            raise ConceptError(
                f"Concept '{name}' has {kind} examples of {len(groups)} topics within {budget:,} tokens.",
                f"It needs {FEWEST_GROUPS}: add topics, or raise --tokens.",
            )
    return Sample([item for item, _ in chosen], [tokens for _, tokens in chosen], cut, dropped, len(examples))


def sample_benign(requests: Sequence[Benign], encode: Encode, budget: int) -> Sample[Benign]:
    """Choose benign requests."""
    chosen, cut, _ = _choose(requests, lambda item: f"{item.source}:{item.id}", encode, budget, lambda *_: True)
    return Sample([item for item, _ in chosen], [tokens for _, tokens in chosen], cut, 0, len(requests))


def _choose(
    items: Sequence[_Item],
    group_of: Callable[[_Item], str],
    encode: Encode,
    budget: int,
    keep: Callable[[_Item, list[int]], bool],
) -> tuple[list[tuple[_Item, list[int]]], int, int]:
    """Whole groups of each source in turn, until the budget is spent; in the order of ``items``."""
    sources: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, item in enumerate(items):
        sources[item.source][group_of(item)].append(index)
    queues = {
        source: iter([groups[name] for name in sorted(groups, key=_hash)]) for source, groups in sorted(sources.items())
    }
    spent = dict.fromkeys(queues, 0)
    chosen: dict[int, list[int]] = {}
    cut = dropped = 0
    while queues and sum(spent.values()) < budget:
        # The source that has had least is next: equal shares, and what one leaves goes to the others.
        source = min(queues, key=lambda name: (spent[name], name))
        members = next(queues[source], None)
        if members is None:
            del queues[source]
            continue
        for index in members:
            tokens = encode(items[index].messages)
            if not keep(items[index], tokens):
                dropped += 1
                continue
            cut += len(tokens) > MAX_TOKENS
            chosen[index] = tokens[:MAX_TOKENS]
            spent[source] += len(chosen[index])
    return [(items[index], chosen[index]) for index in sorted(chosen)], cut, dropped


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
