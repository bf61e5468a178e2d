"""The sites of a model, and the reasons why it lacks others."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

from probes.errors import ModelError
from probes.models.sites import HEADS, KINDS, WRITERS, Kind, Site
from probes.models.structure import BlockStructure, Heads, structure
from probes.models.writers import Writer, Writers

UNSUPPORTED: Final = "This model family is not supported."


class SiteMap:
    """The sites of one model. The model is looked at when the first writer or head is asked for, by one short pass.

    Args:
        model: Of transformers, in evaluation mode.
        blocks: Its decoder blocks.
    """

    def __init__(self, model: Any, blocks: Sequence[Any]) -> None:
        self._model, self._blocks = model, blocks
        self._kind = type(model).__name__

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """All that can be read and written, without single heads, block by block."""
        every = (Site(kind, layer) for layer in range(len(self._blocks)) for kind in KINDS)
        return tuple(site for site in every if self.refusal(site) is None)

    def refusal(self, site: Site) -> str | None:
        """The reason why a site cannot be read and written, ``None`` if it can."""
        if site.layer >= len(self._blocks):
            return f"{self._kind} has {len(self._blocks)} blocks"
        if site.kind in WRITERS:
            writers = self._structure[site.layer].writers
            if isinstance(writers, str):
                return writers
            if _writer(writers, site.kind) is None:
                return f"block {site.layer} of {self._kind} has one writer, which is the other"
        elif site.kind in HEADS:
            heads = self._structure[site.layer].heads
            if isinstance(heads, str):
                return heads
            count = heads.kv_heads if site.kind in ("k", "v") else heads.heads
            if site.head is not None and site.head >= count:
                return f"block {site.layer} of {self._kind} has {count} heads of {site.kind}"
            if site.kind == "attn_probs" and not heads.exact:
                return f"what heads of {self._kind} yield is not the probabilities that it returns times their values"
        return None

    def require(self, site: Site) -> None:
        """Check that a site can be read and written.

        Raises:
            ModelError: It cannot, with the reason.
        """
        if why := self.refusal(site):
            raise ModelError(f"Site {site} cannot be read or written: {why}.", UNSUPPORTED)

    def heads(self, layer: int) -> Heads:
        """The attention of a block.

        Raises:
            ModelError: Its heads cannot be read, with the reason.
        """
        self.require(Site("z", layer))
        heads = self._structure[layer].heads
        assert isinstance(heads, Heads)
        return heads

    def writers(self, layer: int) -> Writers:
        """The modules of a block that add to the residual stream.

        Raises:
            ModelError: They are not found, with the reason.
        """
        writers = self._structure[layer].writers
        if isinstance(writers, str):
            raise ModelError(f"Writers of the residual stream are not found: {writers}.", UNSUPPORTED)
        return writers

    def writer(self, site: Site) -> Writer:
        """The module whose output a site ``attn_out`` or ``mlp_out`` is.

        Raises:
            ModelError: There is none, with the reason.
        """
        self.require(site)
        writer = _writer(self.writers(site.layer), site.kind)
        assert writer is not None
        return writer

    @cached_property
    def _structure(self) -> list[BlockStructure]:
        return structure(self._model, self._blocks)


def _writer(writers: Writers, kind: Kind) -> Writer | None:
    return writers.attention if kind == "attn_out" else writers.mlp
