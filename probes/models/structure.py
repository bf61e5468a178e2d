"""The structure of a decoder, seen in one pass over a few random tokens: its writers, and its heads.

Nothing is known of families. Where something is not found, the reason is kept, for who asks for it.
"""

import inspect
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from probes.models.attention import eager_attention, opened, weighted
from probes.models.hooks import entering, removed, state_of, with_state
from probes.models.writers import BlockTrace, Writers, find_writers

DEPTH: Final = 3
"""Names of a submodule inside its block, at most, for it to be a writer."""
TEXTS: Final = 2
TOKENS: Final = 12
"""Of the recorded pass: few, and more than a tiny attention window."""


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """The linear map from what a layer's heads yield to the residual stream."""

    module: Any
    weights: Any
    """A view of its weights, shape ``(heads, head, hidden)``."""


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """The attention of one block."""

    module: Any
    """It calls the attention function."""
    heads: int
    kv_heads: int
    exact: bool
    """True where what the heads yield is the returned probabilities times the values."""
    projection: Projection | None
    """``None`` where something happens to what the heads yield before it is projected."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockStructure:
    """One block: each part, or the reason why it has none."""

    writers: Writers | str
    heads: Heads | str


def structure(model: Any, blocks: Sequence[Any]) -> list[BlockStructure]:
    """Look at a model once.

    Args:
        model: Of transformers, in evaluation mode.
        blocks: Its decoder blocks.
    """
    import torch

    kind = type(model).__name__
    watched = [_Watched(block) for block in blocks]
    owners = {id(module): watch for watch in watched for module in watch.block.modules()}
    interface = any(eager_attention(module) for block in blocks for module in block.modules())
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.randint(vocabulary, (TEXTS, TOKENS), generator=torch.Generator().manual_seed(0)).to(model.device)
    with torch.no_grad():
        with ExitStack() as stack:
            if interface:
                stack.enter_context(
                    opened(model, lambda module: owner.attend(module) if (owner := owners.get(id(module))) else None)
                )
            for watch in watched:
                stack.enter_context(watch.watching())
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **caching(model, False))
        # Without anybody watching: a block that has one writer runs once more.
        writers = [find_writers(watch.trace()) if watch.has_state else None for watch in watched]
    unadded = "adds to the residual stream is not the sum of what one or two of its modules return"
    return [
        BlockStructure(
            writers[layer] or f"what block {layer} of {kind} {unadded}",
            watch.heads
            or (
                f"block {layer} of {kind} {watch.fault}"
                if interface
                else f"{kind} does not attend through transformers' attention interface"
            ),
        )
        for layer, watch in enumerate(watched)
    ]


def caching(model: Any, wanted: bool) -> dict[str, bool]:
    """The option of a forward pass that keeps keys and values; families without a cache take none."""
    return {"use_cache": wanted} if takes(model, "use_cache") or takes(model, "kwargs") else {}


def takes(model: Any, option: str) -> bool:
    """True where a model's forward pass has an option."""
    return option in inspect.signature(model.forward).parameters


class _Watched:
    """One block while it is looked at."""

    def __init__(self, block: Any) -> None:
        self.block = block
        self.heads: Heads | None = None
        self.fault = "has no attention"
        self._module: Any = None
        self._seen: dict[str, Any] = {}
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] = (), {}
        self._after: Any = None
        self._outputs: dict[str, list[tuple[Any, Any]]] = {}

    @contextmanager
    def watching(self) -> Generator[None]:
        """Record the block's next pass."""
        with ExitStack() as stack:
            stack.enter_context(removed(self.block.register_forward_pre_hook(self._enter, with_kwargs=True)))
            stack.enter_context(removed(self.block.register_forward_hook(self._leave)))
            for name, module in self.block.named_modules():
                if name and name.count(".") < DEPTH:
                    stack.enter_context(removed(module.register_forward_hook(self._output(name))))
                if getattr(module, "weight", None) is not None and module.weight.ndim == 2:
                    stack.enter_context(removed(module.register_forward_pre_hook(self._project)))
            yield

    def trace(self) -> BlockTrace:
        """The residual stream as it was seen."""

        def replay(state: Any) -> Any:
            arguments, options = with_state(*self._arguments, state)
            return state_of(self.block(*arguments, **options))

        once = {name: seen[0] for name, seen in self._outputs.items() if len(seen) == 1}
        return BlockTrace(self.before, self._after, once, replay)

    @property
    def has_state(self) -> bool:
        """True where one state leaves the block, of the shape of the one that enters it."""
        return self._after is not None and self._after.shape == self.before.shape

    @property
    def before(self) -> Any:
        """The state that entered."""
        return entering(*self._arguments)

    def attend(self, module: Any) -> dict[Any, Any]:
        """Rewrites that rewrite nothing, and look."""
        if self._module is not None:
            self.heads, self.fault = None, "attends more than once"
            return {}
        self._module = module
        seen = self._seen

        def look(kind: str) -> Any:
            def record(value: Any) -> Any:
                seen[kind] = value
                if kind == "z":
                    self._found()
                return value

            return record

        return {kind: look(kind) for kind in ("q", "k", "v", "attn_probs", "z")}

    def _found(self) -> None:
        query, key, value, probabilities, z = (self._seen[kind] for kind in ("q", "k", "v", "attn_probs", "z"))
        heads, kv_heads = query.shape[2], key.shape[2]
        if z.shape != (*query.shape[:3], value.shape[3]) or heads % kv_heads:
            self.fault = f"has heads that yield values of shape {tuple(z.shape)}"
            return
        exact = (
            probabilities is not None
            and probabilities.shape == (*z.shape[:1], heads, z.shape[1], key.shape[1])
            and weighted(probabilities, value.transpose(1, 2)).equal(z)
        )
        self.heads = Heads(self._module, heads, kv_heads, exact, None)

    def _project(self, module: Any, arguments: tuple[Any, ...]) -> None:
        """Take the first map whose input is what the heads yield, all of it, for their projection."""
        heads = self.heads
        if heads is None or heads.projection is not None or not arguments:
            return
        z = self._seen["z"].flatten(2)
        given = arguments[0]
        if given.numel() != z.numel() or given.shape[-1] != z.shape[-1] or not given.reshape(z.shape).equal(z):
            return
        # The layers of GPT-2 keep their weights the other way round.
        weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
        weights = weight.unflatten(0, (heads.heads, -1))
        self.heads = Heads(heads.module, heads.heads, heads.kv_heads, heads.exact, Projection(module, weights))

    def _enter(self, _module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        # A copy: some families add in place.
        self._arguments = with_state(arguments, options, entering(arguments, options).clone())

    def _leave(self, _module: Any, _arguments: Any, output: Any) -> None:
        state = state_of(output)
        self._after = state.clone() if hasattr(state, "clone") else None

    def _output(self, name: str) -> Any:
        def record(module: Any, _arguments: Any, output: Any) -> None:
            state = state_of(output)
            copied = state.clone() if hasattr(state, "clone") else None
            self._outputs.setdefault(name, []).append((module, copied))

        return record
