"""Markers of the chat template that somebody typed into a message.

A tokenizer makes the same special tokens of ``<|im_end|>`` whether the template wrote it or a user did. So who reads
only tokens takes what follows a typed header for the words of whomever it names, and a user could have the probes of
the user's words pass over theirs. Before a conversation is rendered, the two can be told apart: a message that contains
the text of a marker is one that somebody typed it into. The roles of such a conversation are read with ``typed=True``
(:meth:`probes.scoring.roles.RoleReader.prompt`).

1. A header cannot be had without its first special token, nor a terminator without its own: their texts are what is
   looked for. A marker that has no special token is looked for as a whole.
2. Markers of thoughts are not looked for: they count within an answer only, and clients send answers back with the
   thoughts that they began with. Typed by a user, they are the user's words.
3. All texts that a template may write are searched: contents, parts, names, calls and their arguments, tools, and parts
   of one message together, since a template may write one right behind the other.

That is a search for a few short texts, without any tokenizing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from probes.scoring.roles import Markers


class TypedMarkers:
    """Finds markers that were typed.

    Args:
        markers: Of the model's chat template.
        tokenizer: Of the model, as transformers or vLLM loads it.
    """

    def __init__(self, markers: Markers, tokenizer: Any) -> None:
        others = [*markers.others, *([markers.any_header.begin] if markers.any_header is not None else [])]
        sequences = [ids for ids in (*markers.headers.values(), markers.terminator, *others) if ids]
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()} if sequences else set[int]()
        texts = {_text(tokenizer, ids, special) for ids in sequences}
        self.texts = tuple(sorted(texts - {""}))
        """What is looked for."""

    def found(self, conversation: object) -> bool:
        """True where a marker is in any text of what a template is rendered with, nested as it may be."""
        return any(marker in text for text in _texts(conversation) for marker in self.texts)


def _text(tokenizer: Any, ids: list[int], special: set[int]) -> str:
    first = next(([id] for id in ids if id in special), ids)
    return str(tokenizer.decode(first, skip_special_tokens=False)).strip()


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        yield "".join(map(_part, value))
        for item in value:
            yield from _texts(item)


def _part(item: object) -> str:
    """The text of a part of a message; empty for anything else."""
    text = item.get("text") if isinstance(item, Mapping) else item
    return text if isinstance(text, str) else ""
