"""Activations to fit on: the residual stream of conversations, at several layers.

``ActivationSource`` is the seam. :class:`TransformersSource` reads a model with transformers; the engine that serves it
can be read as well (:mod:`monitor.offline`). "The output of block i" means here what it means in the engine: the
residual stream after block i, before any further norm.
"""

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from probes.errors import ModelError, reason
from probes.models import Progress, no_progress
from probes.models.blocks import find_blocks
from probes.models.chat import Conversation, encode, find_markers
from probes.scoring.roles import Markers, RoleReader

SHARED: Final = 8
"""Tokens that conversations must begin with alike for these to be read once, and ..."""
ALIKE: Final = 4
"""... how many conversations."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of one conversation."""

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
        try:
            import torch
            import transformers
        except ImportError as error:
            raise ModelError(f"Reading a model needs {error.name}.", "Run: pip install 'plumbob[fit]'") from error
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._batch_tokens = batch_tokens
        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
            load: Any = transformers.AutoModelForCausalLM.from_pretrained
            self.model, loaded = load(path, dtype=getattr(torch, dtype), output_loading_info=True)
        except Exception as error:
            # Configurations, tokenizers, weights and remote code raise whatever they like.
            raise ModelError(
                f"transformers cannot load {path}: {reason(error)}.", "Name a directory saved by transformers."
            ) from error
        if missing := sorted(loaded["missing_keys"]):
            # Transformers fills them with random numbers.
            raise ModelError(
                f"The weights in {path} lack {missing[0]} and {len(missing) - 1} others.",
                "Complete the model's directory.",
            )
        self.model.to(self._device).eval()
        text = self.model.config.get_text_config()
        if getattr(text, "attn_logit_softcapping", None):
            # transformers' fused attention, its default, leaves the cap out.
            self.model.set_attn_implementation("eager")
        self.layers = int(text.num_hidden_layers)
        self.hidden = int(text.hidden_size)
        self._blocks = find_blocks(self.model, self.layers)
        self.markers = find_markers(self.tokenizer)
        self._roles = RoleReader(self.markers)

    @property
    def blocks(self) -> Sequence[Any]:
        """The decoder blocks, modules of torch, in order: what a hook on one sees is what :meth:`read` returns."""
        return self._blocks

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
            for batch in self._batches([conversations[index][shared:] for index in members]):
                batch = [members[row] for row in batch]
                ids, mask = self._pad([conversations[index][shared:] for index in batch], left=False)
                mask = self._torch.cat([mask.new_ones((len(batch), shared)), mask], dim=1)
                with self._taps(layers) as states, self._torch.inference_mode(), suppress(_ReadEnough):
                    self.model(
                        input_ids=ids,
                        attention_mask=mask,
                        past_key_values=_repeated(cache, len(batch)),
                        use_cache=cache is not None,
                    )
                for row, index in enumerate(batch):
                    token_ids = np.asarray(conversations[index], np.int64)
                    read = np.stack([states[layer][row, : len(token_ids) - shared] for layer in layers])
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
        stops = self.model.generation_config.eos_token_id
        stop_ids = set(stops if isinstance(stops, list) else [stops])
        answered: list[list[int]] = [[] for _ in prompts]
        done = 0
        # A decode step costs little more for many rows than for one: batches much larger than a reading's.
        for batch in self._batches(prompts, self._batch_tokens * 3):
            ids, mask = self._pad([prompts[index] for index in batch], left=True)
            with self._plain_attention(), self._torch.inference_mode():
                output = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    pad_token_id=self._pad_id,
                )
            for row, index in enumerate(batch):
                answer = output[row, ids.shape[1] :].tolist()
                end = next((at for at, token in enumerate(answer) if token in stop_ids), len(answer))
                answered[index] = [*prompts[index], *answer[:end]]
            done += len(batch)
            progress("answering benign prompts", done, len(prompts))
        return answered

    def _read_prefix(self, ids: Sequence[int], layers: Sequence[int]) -> tuple[NDArray[np.float32], Any]:
        """States ``(layers, tokens, hidden)`` of what conversations begin with, and its keys and values."""
        import transformers

        cache = transformers.DynamicCache(config=self.model.config)
        tokens, mask = self._pad([ids], left=False)
        with self._taps(layers) as states, self._torch.inference_mode(), suppress(_ReadEnough):
            self.model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True)
        # Of the layers behind the last one that is read there is nothing, and nobody asks.
        return np.stack([states[layer][0] for layer in layers]), cache

    @contextmanager
    def _plain_attention(self) -> Generator[None]:
        """For one query a row, transformers' plain attention is several times as fast on a CPU as its fused one."""
        fused = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(fused)

    @property
    def _pad_id(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    def _batches(self, sequences: Sequence[Sequence[int]], tokens: int | None = None) -> Iterator[list[int]]:
        """Indices, the longest first, so that progress does not slow down towards the end."""
        budget = tokens or self._batch_tokens
        batch: list[int] = []
        for index in sorted(range(len(sequences)), key=lambda index: -len(sequences[index])):
            if batch and len(sequences[batch[0]]) * (len(batch) + 1) > budget:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _pad(self, sequences: Sequence[Sequence[int]], *, left: bool) -> tuple[Any, Any]:
        width = max(len(ids) for ids in sequences)
        ids = np.full((len(sequences), width), self._pad_id, np.int64)
        mask = np.zeros((len(sequences), width), np.int64)
        for row, sequence in enumerate(sequences):
            place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
            ids[row, place], mask[row, place] = sequence, 1
        return tuple(self._torch.from_numpy(array).to(self._device) for array in (ids, mask))  # type: ignore[return-value]

    @contextmanager
    def _taps(self, layers: Sequence[int]) -> Generator[dict[int, NDArray[np.float32]]]:
        states: dict[int, NDArray[np.float32]] = {}
        last = max(layers)

        def hook(layer: int) -> Any:
            def read(_module: Any, _arguments: Any, output: Any) -> None:
                state = output[0] if isinstance(output, tuple) else output
                if state.ndim != 3 or state.shape[-1] != self.hidden:
                    raise ModelError(
                        f"Block {layer} of {type(self.model).__name__} returns states of shape {tuple(state.shape)}; "
                        f"one of width {self.hidden} a token is needed.",
                        "This model family is not supported.",
                    )
                states[layer] = state.float().cpu().numpy()
                if layer == last:
                    raise _ReadEnough

            return read

        handles = [self._blocks[layer].register_forward_hook(hook(layer)) for layer in layers]
        try:
            yield states
        finally:
            for handle in handles:
                handle.remove()


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


class _ReadEnough(Exception):
    """Ends a forward pass whose last wanted layer has been read."""
