"""Attention with its inside open: queries, keys, values, probabilities and what each head yields.

Families of transformers call their attention through an interface, by the name in the configuration. The function that
is registered there as :data:`NAME` rewrites queries, keys and values, calls the family's own
``eager_attention_forward`` (so that caps, windows, sinks, scales and shared heads are the family's), and rewrites the
probabilities and their product with the values. A model uses it inside :func:`opened`, and only there.
"""

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from probes.models.sites import Kind

Rewrites = Mapping[Kind, Callable[[Any], Any]]
"""From a site's value to what goes on in its place, by kind of site."""
Lookup = Callable[[Any], Rewrites | None]
"""From an attention module to its rewrites; ``None`` for one that is to be left alone."""

NAME: Final = "plumbob"
"""Of the attention implementation."""
EAGER: Final = "eager_attention_forward"
"""The name of plain attention in the modelling files of transformers."""

_OPEN: ContextVar[tuple[Lookup, ...]] = ContextVar("open attention", default=())


def eager_attention(module: Any) -> Callable[..., Any] | None:
    """The plain attention of a module's family, ``None`` if it does not use transformers' attention interface."""
    return getattr(sys.modules[type(module).__module__], EAGER, None)


def weighted(probabilities: Any, value: Any) -> Any:
    """Values weighted by attention probabilities.

    Args:
        probabilities: Shape ``(texts, heads, tokens, keys)``.
        value: Shape ``(texts, kv_heads, keys, head)``.

    Returns:
        Shape ``(texts, tokens, heads, head)``.
    """
    value = value.repeat_interleave(probabilities.shape[1] // value.shape[1], dim=1)
    return (probabilities.to(value.dtype) @ value).transpose(1, 2).contiguous()


@contextmanager
def opened(model: Any, lookup: Lookup) -> Generator[None]:
    """Let a model attend with rewrites.

    Args:
        model: Of transformers.
        lookup: Finds the rewrites of each of its attention modules.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    outer = _OPEN.set((lookup, *_OPEN.get()))
    try:
        with attending(model, NAME):
            yield
    finally:
        _OPEN.reset(outer)


def _attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *rest: Any, **options: Any) -> Any:
    """The registered attention function; states are of shape ``(texts, heads, tokens, head)``."""
    eager = eager_attention(module)
    assert eager is not None, "it has called the interface, with its own plain attention as the default"
    rewrites = next((found for lookup in _OPEN.get() if (found := lookup(module)) is not None), {})
    inputs: list[tuple[Kind, Any]] = [("q", query), ("k", key), ("v", value)]
    query, key, value = (
        rewrites[kind](states.transpose(1, 2)).transpose(1, 2) if kind in rewrites else states
        for kind, states in inputs
    )
    output, probabilities = eager(module, query, key, value, attention_mask, *rest, **options)
    if "attn_probs" in rewrites and (rewritten := rewrites["attn_probs"](probabilities)) is not probabilities:
        output, probabilities = weighted(rewritten, value), rewritten
    return (rewrites["z"](output) if "z" in rewrites else output), probabilities


@contextmanager
def attending(model: Any, name: str) -> Generator[None]:
    """Let a model use another attention implementation.

    Args:
        model: Of transformers; parts of it with configurations of their own may have implementations of their own.
        name: ``eager``, ``sdpa``, or one that is registered.
    """
    parts = {key: part for key in model.config.sub_configs if (part := getattr(model.config, key)) is not None}
    before = {"": model.config._attn_implementation} | {key: of._attn_implementation for key, of in parts.items()}
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
