"""Activations to fit on: the residual stream of conversations, at several layers.

``ActivationSource`` is the seam. :class:`TransformersSource` reads a model with transformers, through
:class:`~probes.models.hooked.HookedModel`; the engine that serves it can be read as well (:mod:`monitor.offline`).
"The output of block i" means here what it means in the engine: the residual stream after block i, before any further
norm.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from probes.errors import ModelError
from probes.models import Progress, no_progress
from probes.models.batches import Batch, batches
from probes.models.chat import Conversation, encode
from probes.models.hooked import HookedModel
from probes.models.loading import load_tokenizer
from probes.models.markers import find_markers
from probes.models.sites import Site
from probes.scoring.roles import Markers, RoleReader

SHARED: Final = 8
"""Tokens that conversations must begin with alike for these to be read once, and ..."""
ALIKE: Final = 4
"""... how many conversations."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The activations of one conversation."""

    token_ids: NDArray[np.int64]
    """Shape ``(tokens,)``."""
    roles: NDArray[np.uint8]
    """Of each token, shape ``(tokens,)``."""
    states: NDArray[np.float32]
    """Residual stream, shape ``(layers, tokens, hidden)``, in the order of the layers asked for."""


class ActivationSource(Protocol):
    """Whatever reads the residual stream of conversations."""

    @property
    def markers(self) -> Markers:
        """The chat template's markers."""
        ...

    def read(
        self, conversations: Sequence[Sequence[int]], layers: Sequence[int], progress: Progress = no_progress
    ) -> list[Reading]:
        """The residual stream after each of ``layers``, for each token of each conversation."""
        ...


class Reader(ActivationSource, Protocol):
    """A source that also encodes conversations and lets the model answer: all that gathering material takes."""

    def encode(self, conversation: Conversation, *, respond: bool = False) -> list[int]:
        """A conversation's tokens; with ``respond``, up to where the answer begins."""
        ...

    def respond(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, progress: Progress = no_progress
    ) -> list[list[int]]:
        """Each prompt followed by the model's own greedy answer, without the token that ends it."""
        ...


OpenReader = Callable[[Path, Sequence[int]], AbstractContextManager[Reader]]
"""Opens a reader of the model in a directory, for these layers; what it holds is let go of at the end."""


class TransformersSource:
    """Reads a model with transformers, on the CPU or a GPU where there is one.

    Args:
        path: The model's directory.
        dtype: ``bfloat16``, as it will be served, or ``float32``, the reference.
        batch_tokens: Padded tokens of one forward pass.

    Raises:
        ModelError: transformers cannot load it, or torch is missing.
    """

    def __init__(self, path: Path, dtype: str = "bfloat16", batch_tokens: int = 2048) -> None:
        self.tokenizer: Any = load_tokenizer(path)
        self.hooked = HookedModel.load(path, dtype, batch_tokens=batch_tokens, pad_id=self.tokenizer.pad_token_id or 0)
        self.markers = find_markers(self.tokenizer)
        self._roles = RoleReader(self.markers)

    @property
    def model(self) -> Any:
        """The model of transformers."""
        return self.hooked.model

    @property
    def layers(self) -> int:
        """Decoder blocks."""
        return self.hooked.layers

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.hooked.hidden

    def encode(self, conversation: Conversation, *, respond: bool = False) -> list[int]:
        """A conversation's tokens; with ``respond``, up to where the answer begins."""
        return encode(self.tokenizer, conversation, respond=respond)

    def read(
        self, conversations: Sequence[Sequence[int]], layers: Sequence[int], progress: Progress = no_progress
    ) -> list[Reading]:
        """See :class:`ActivationSource`.

        Raises:
            ModelError: The model overflows, or its weights are not finite.
        """
        readings: list[Reading | None] = [None] * len(conversations)
        total, done = sum(len(ids) for ids in conversations), 0
        for members, shared in _alike(conversations):
            # What all of them begin with, mostly the template's own system message, is read once.
            prefix, cache = self._read_prefix(conversations[members[0]][:shared], layers) if shared else (None, None)
            own = [conversations[index][shared:] for index in members]
            for rows in batches([len(ids) for ids in own], self.hooked.batch_tokens):
                batch = [members[row] for row in rows]
                padded = self.hooked.pad([own[row] for row in rows])
                padded = padded.following(padded.mask.new_ones((len(rows), shared)))
                states = self._states(padded, layers, _repeated(cache, len(rows)))
                for row, index in enumerate(batch):
                    token_ids = np.asarray(conversations[index], np.int64)
                    read = np.stack([state[row, : len(token_ids) - shared] for state in states])
                    if prefix is not None:
                        read = np.concatenate([prefix, read], axis=1)
                    if not np.isfinite(read).all():
                        raise ModelError(
                            f"Activations of {self.model.name_or_path} in {self.model.dtype} are not finite.",
                            "Check its weights.",
                        )
                    readings[index] = Reading(token_ids, self._roles.prompt(token_ids), read)
                    done += len(token_ids)
                progress("reading activations", done, total)
        return [reading for reading in readings if reading is not None]

    def respond(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, progress: Progress = no_progress
    ) -> list[list[int]]:
        """The model's own greedy answers.

        Args:
            prompts: Tokens, up to where the answer begins.
            max_tokens: Of each answer.
            progress: Told how many prompts are done.

        Returns:
            Each prompt followed by its answer, without the token that ends it.
        """
        answered: list[list[int]] = [[] for _ in prompts]
        done = 0
        # A decode step costs little more for many rows than for one: batches much larger than a reading's.
        for batch in batches([len(ids) for ids in prompts], self.hooked.batch_tokens * 3):
            padded = self.hooked.pad([prompts[index] for index in batch], left=True)
            for index, answer in zip(batch, self.hooked.generate(padded, max_tokens), strict=True):
                answered[index] = [*prompts[index], *answer]
            done += len(batch)
            progress("answering benign prompts", done, len(prompts))
        return answered

    def _read_prefix(self, ids: Sequence[int], layers: Sequence[int]) -> tuple[NDArray[np.float32], Any]:
        """States ``(layers, tokens, hidden)`` of what conversations begin with, and its keys and values."""
        cache = self.hooked.new_cache()
        # Of the layers behind the last one that is read it gets nothing, and nobody asks.
        return np.stack([state[0] for state in self._states(self.hooked.pad([ids]), layers, cache)]), cache

    def _states(self, batch: Batch, layers: Sequence[int], cache: Any) -> list[NDArray[np.float32]]:
        """The residual stream after each layer, ``(texts, tokens, hidden)``; the pass ends behind the last of them."""
        sites = [Site("resid_post", layer) for layer in layers]
        read = self.hooked.run(batch, reads=sites, cache=cache, until=max(layers)).states
        return [read[site].float().cpu().numpy() for site in sites]


def _alike(conversations: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], int]]:
    """Indices of conversations that begin alike, and with how many tokens; each has one more at least.

    Where few do, or all differ after a few tokens, it is 0: a pass of their own is not worth it.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, ids in enumerate(conversations):
        groups.setdefault(tuple(ids[:SHARED]) if len(ids) > SHARED else (), []).append(index)
    others = groups.pop((), [])
    for members in groups.values():
        if len(members) < ALIKE:
            others += members
            continue
        some = [conversations[index] for index in members]
        first, last = min(some, key=list), max(some, key=list)
        same = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
        yield members, min(same, min(map(len, some)) - 1)
    if others:
        yield others, 0


def _repeated(cache: Any, count: int) -> Any:
    """Keys and values of one sequence, for each of ``count``; a copy, since a forward pass adds to them."""
    if cache is None:
        return None
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(count)
    return cache
