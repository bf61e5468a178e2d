"""A decoder of transformers whose inside can be read and written, whatever its family.

Blocks are found by structure (:mod:`probes.models.blocks`), what adds to the residual stream by number
(:mod:`probes.models.writers`), and heads through transformers' own attention interface
(:mod:`probes.models.attention`); :mod:`probes.models.sites` says what can be addressed. The model itself is never
changed: hooks, and the attention implementation, are there while a pass runs.

To read the residual stream, or what is added to it, leaves every bit of a pass as it is. Sites with heads need the
family's plain attention (``eager``); a pass that reads or writes one is exactly what the model computes with that.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from probes.errors import ModelError
from probes.models.attention import attending, opened
from probes.models.batches import Batch
from probes.models.blocks import find_blocks
from probes.models.hooks import (
    Enough,
    Rewrite,
    differentiable,
    ending,
    keep,
    removed,
    rewriting_flat_output,
    rewriting_input,
    rewriting_output,
    rewritten,
)
from probes.models.loading import load_model
from probes.models.site_map import UNSUPPORTED, SiteMap
from probes.models.sites import HEADS, Kind, Site
from probes.models.structure import caching, takes


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """The result of one forward pass."""

    logits: Any
    """Shape ``(texts, tokens, vocabulary)``, or ``(wanted, vocabulary)``; ``None`` where none were computed."""
    states: Mapping[Site, Any] = field(default_factory=dict[Site, Any])
    """Of each site that was read, as it went on: after its rewrites."""
    cache: Any = None
    """Keys and values, of transformers; ``None`` where none were kept."""


class HookedModel:
    """A decoder of transformers with sites to read and write.

    Args:
        model: A causal language model in evaluation mode.
        batch_tokens: Padded tokens of one forward pass, for who batches.
        pad_id: The token that padding is made of.

    Raises:
        ModelError: Its blocks are not found.
    """

    def __init__(self, model: Any, *, batch_tokens: int = 2048, pad_id: int = 0) -> None:
        text = model.config.get_text_config()
        self.model = model
        self.layers = int(text.num_hidden_layers)
        self.hidden = int(text.hidden_size)
        self.blocks: Sequence[Any] = find_blocks(model, self.layers)
        """Modules of torch, in order."""
        self.site_map = SiteMap(model, self.blocks)
        """The sites there are, and the reasons why others are not."""
        self.batch_tokens = batch_tokens
        self.pad_id = pad_id
        self._takes_positions = takes(model, "position_ids")
        self._caching = {wanted: caching(model, wanted) for wanted in (False, True)}

    @classmethod
    def load(cls, path: Path, dtype: str = "float32", *, batch_tokens: int = 2048, pad_id: int = 0) -> "HookedModel":
        """Load a model from its directory (:func:`probes.models.loading.load_model`).

        Args:
            path: As transformers saves it.
            dtype: ``bfloat16`` or ``float32``.
            batch_tokens: See the class.
            pad_id: See the class.

        Raises:
            ModelError: transformers cannot load it, weights are missing, or its blocks are not found.
        """
        return cls(load_model(path, dtype), batch_tokens=batch_tokens, pad_id=pad_id)

    @property
    def name(self) -> str:
        """The model as errors name it."""
        return self.model.name_or_path or type(self.model).__name__

    @property
    def vocabulary(self) -> int:
        """Tokens that logits are of."""
        return int(self.model.config.get_text_config().vocab_size)

    def pad(self, sequences: Sequence[Sequence[int]], *, left: bool = False) -> Batch:
        """Put sequences together, padded on the right, or on the ``left``, as generation takes them."""
        import torch

        width = max(map(len, sequences))
        ids = torch.full((len(sequences), width), self.pad_id)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
            ids[row, place] = torch.as_tensor(sequence, dtype=torch.int64)
            mask[row, place] = 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        return Batch(ids, mask, (mask.cumsum(1) - 1).clamp(min=0) if left else None)

    def run(
        self,
        batch: Batch,
        *,
        reads: Iterable[Site] = (),
        rewrites: Iterable[tuple[Site, Rewrite]] = (),
        logits: Any = True,
        until: int | None = None,
        cache: Any = None,
        use_cache: bool = False,
        gradients: bool = False,
    ) -> Pass:
        """One forward pass.

        Args:
            batch: Its mask has the columns of cached tokens first.
            reads: Sites whose values are returned.
            rewrites: Sites whose values are rewritten; several of one site in their order, and before it is read.
            logits: ``True`` for all, ``False`` for none, or which rows' to compute, a mask of shape
                ``(texts, tokens)``: in a small model, the head is the largest matrix.
            until: The block behind which the pass ends, without logits; ``None`` for all of it.
            cache: Keys and values to go on from, which are extended in place.
            use_cache: Return keys and values; those behind ``until`` are not there.
            gradients: Keep the graph: :func:`torch.autograd.grad` with respect to values that were read works, those
                before the first block included. Weights take no part.

        Raises:
            ModelError: A site cannot be read or written here, with the reason, or logits are wanted of a model without
                a head.
            ValueError: A rewritten value has another shape.
        """
        import torch

        states: dict[Site, Any] = {}
        wanted = list(dict.fromkeys(reads))
        every = [*rewrites, *((site, partial(keep, states, site, gradients)) for site in wanted)]
        options: dict[str, Any] = {}
        if batch.positions is not None and self._takes_positions:
            options["position_ids"] = batch.positions
        if cache is None and use_cache and until is not None:
            cache = self.new_cache()
        if cache is not None:
            options["past_key_values"] = cache
        options |= self._caching[use_cache or cache is not None]
        with ExitStack() as stack:
            stack.enter_context(differentiable(self.model) if gradients else torch.no_grad())
            stack.enter_context(self.hooks(every))
            if until is not None:
                stack.enter_context(suppress(Enough))
                stack.enter_context(ending(self.blocks[until]))
            elif logits is not True:
                rows = torch.zeros_like(batch.token_ids, dtype=torch.bool) if logits is False else logits
                stack.enter_context(self._head_at(rows))
            output = self.model(input_ids=batch.token_ids, attention_mask=batch.mask, **options)
            kept = output.get("past_key_values") if use_cache or cache is not None else None
            return Pass(None if logits is False else output.logits, states, kept)
        return Pass(None, states, cache)

    def generate(self, batch: Batch, max_tokens: int, rewrites: Iterable[tuple[Site, Rewrite]] = ()) -> list[list[int]]:
        """Greedy answers, by transformers' own generation.

        Args:
            batch: Prompts, padded on the left.
            max_tokens: Of each answer.
            rewrites: As in :meth:`run`; the first pass has the prompts' tokens, each further one a single token a row.

        Returns:
            Each prompt's answer, without the token that ends it.
        """
        import torch

        stops = self.model.generation_config.eos_token_id
        stop_ids = set(stops if isinstance(stops, list) else [stops])
        with self.plain_attention(), self.hooks(rewrites), torch.inference_mode():
            output = self.model.generate(
                input_ids=batch.token_ids,
                attention_mask=batch.mask,
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=self.pad_id,
            )
        said = output[:, batch.token_ids.shape[1] :].tolist()
        return [
            answer[: next((at for at, token in enumerate(answer) if token in stop_ids), len(answer))] for answer in said
        ]

    def new_cache(self) -> Any:
        """Empty keys and values."""
        import transformers

        return transformers.DynamicCache(config=self.model.config)

    def plain_attention(self) -> AbstractContextManager[None]:
        """Attend as the family's own code does, not fused.

        For one query a row that is several times as fast on a CPU.
        """
        return attending(self.model, "eager")

    @contextmanager
    def hooks(self, rewrites: Iterable[tuple[Site, Rewrite]]) -> Generator[None]:
        """Rewrite values in every pass of the model meanwhile, its own generation included.

        Args:
            rewrites: Several of one site in their order. A rewrite that returns what it was given only reads.

        Raises:
            ModelError: A site cannot be written here, with the reason.
        """
        places: dict[tuple[Kind, int], list[tuple[Site, Rewrite]]] = {}
        for site, rewrite in rewrites:
            self.site_map.require(site)
            places.setdefault((site.kind, site.layer), []).append((site, rewrite))
        attention: dict[int, dict[Kind, Rewrite]] = {}
        with ExitStack() as stack:
            for (kind, layer), here in places.items():
                rewrite = partial(rewritten, here)
                if kind in HEADS:
                    attention.setdefault(id(self.site_map.heads(layer).module), {})[kind] = rewrite
                else:
                    stack.enter_context(self._place(kind, layer, rewrite))
            if attention:
                stack.enter_context(opened(self.model, lambda module: attention.get(id(module))))
            yield

    def _place(self, kind: Kind, layer: int, rewrite: Rewrite) -> AbstractContextManager[None]:
        block = self.blocks[layer]
        if kind == "resid_pre":
            return rewriting_input(block, partial(self._residual, layer, "takes", rewrite))
        if kind == "resid_post":
            return rewriting_output(block, partial(self._residual, layer, "returns", rewrite))
        writer = self.site_map.writer(Site(kind, layer))
        if writer.flat:
            return rewriting_flat_output(block, writer.module, rewrite)
        return rewriting_output(writer.module, rewrite)

    def _residual(self, layer: int, verb: str, rewrite: Rewrite, state: Any) -> Any:
        shape = tuple(getattr(state, "shape", ()))
        if len(shape) != 3 or shape[-1] != self.hidden:
            raise ModelError(
                f"Block {layer} of {type(self.model).__name__} {verb} states of shape {shape}; "
                f"one of width {self.hidden} a token is needed.",
                UNSUPPORTED,
            )
        return rewrite(state)

    def _head_at(self, wanted: Any) -> AbstractContextManager[None]:
        """Have logits computed of the wanted rows only."""
        head = self.model.get_output_embeddings()
        if head is None:
            raise ModelError(f"{type(self.model).__name__} has no head to read logits from.", "Fit a language model.")
        return removed(
            head.register_forward_pre_hook(lambda _module, arguments: (arguments[0][wanted], *arguments[1:]))
        )
