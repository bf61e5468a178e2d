"""The residual stream, taken apart into what was written to it."""

from typing import Any

from probes.errors import ModelError
from probes.models.batches import Batch
from probes.models.hooked import HookedModel
from probes.models.sites import Site


def contributions(model: HookedModel, batch: Batch) -> dict[Site, Any]:
    """The writes to the residual stream: the embedding, as ``resid_pre.0``, and the output of each writer.

    Outputs are multiplied by what some families multiply them with before they add them; their sum is the last
    ``resid_post``.

    Args:
        model: Its writers must be known in every block.
        batch: Without a cache.

    Returns:
        By site, shape ``(texts, tokens, hidden)`` each.

    Raises:
        ModelError: A block's writers are not found.
    """
    scales = {Site("resid_pre", 0): 1.0}
    for layer in range(model.layers):
        writers = model.site_map.writers(layer)
        scales |= {Site("attn_out", layer): writers.scale} if writers.attention else {}
        scales |= {Site("mlp_out", layer): writers.scale} if writers.mlp else {}
    states = model.run(batch, reads=scales, until=model.layers - 1).states
    return {site: states[site] if scale == 1 else scale * states[site] for site, scale in scales.items()}


def head_writes(model: HookedModel, layer: int, z: Any) -> Any:
    """The write of each head of a layer, before a norm that some families put behind all heads together.

    The layer's output projection may have a bias, which is no head's.

    Args:
        model: Its heads must be open, and projected as they are.
        layer: The block.
        z: The value of that site, shape ``(texts, tokens, heads, head)``.

    Returns:
        Shape ``(texts, tokens, heads, hidden)``.

    Raises:
        ModelError: The heads cannot be read, or something happens to what they yield before it is projected.
    """
    import torch

    projection = model.site_map.heads(layer).projection
    if projection is None:
        raise ModelError(
            f"Heads of block {layer} of {type(model.model).__name__} have no writes of their own: what they yield is "
            "gated or normalised before it is projected.",
            f"Read or write z.{layer} instead.",
        )
    return torch.einsum("bthd,hdm->bthm", z, projection.weights.to(z.dtype))
