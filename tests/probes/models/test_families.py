"""Families of transformers, one tiny random model of each: identities that hold to the last bit, in float32."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from threadpoolctl import threadpool_limits

from probes.errors import ModelError
from probes.models.batches import Batch
from probes.models.contributions import contributions, head_writes
from probes.models.hooked import HookedModel
from probes.models.sites import Site
from probes.models.structure import caching
from tests.probes.models.families import (
    NO_BLOCKS,
    NO_HEAD_WRITES,
    NO_HEADS,
    NO_PROBABILITIES,
    NO_STREAM,
    NO_WRITERS,
    UNBUILT,
    VOCABULARY,
    build,
    kinds,
)

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@dataclass(frozen=True)
class Family:
    kind: str
    model: HookedModel
    batch: Batch
    sites: tuple[Site, ...]

    @property
    def logits(self) -> Any:
        """Of the model alone, without anything of ours."""
        model = self.model.model
        with torch.no_grad():
            return model(input_ids=self.batch.token_ids, attention_mask=self.batch.mask, **caching(model, False)).logits

    def has(self, kind: str, layer: int) -> bool:
        return Site(kind, layer) in self.sites


def batch() -> Batch:
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    return Batch(ids, torch.ones_like(ids))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For all of them together: to limit threads takes longer than one of these models."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module", params=[kind for kind in kinds() if kind not in NO_BLOCKS | NO_STREAM])
def family(request) -> Family:
    """Models are built with their plain attention, which sites with heads are those of."""
    hooked = HookedModel(build(request.param))
    return Family(request.param, hooked, batch(), hooked.site_map.sites)


def hooks_of(model) -> tuple[int, str]:
    count = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    return count, model.config._attn_implementation


def test_reading_changes_no_logit_and_leaves_nothing_behind(family):
    before, logits = hooks_of(family.model.model), family.logits
    assert torch.isfinite(logits).all() and logits.std() > 0.01
    passed = family.model.run(family.batch, reads=family.sites)
    assert passed.logits.equal(logits)
    assert set(passed.states) == set(family.sites)
    assert hooks_of(family.model.model) == before == (before[0], "eager")
    for layer in range(1, family.model.layers):
        assert passed.states[Site("resid_pre", layer)].equal(passed.states[Site("resid_post", layer - 1)])


def test_writing_back_what_was_read_changes_no_logit(family):
    back = family.model.run(family.batch, rewrites=[(site, torch.clone) for site in family.sites])
    assert back.logits.equal(family.logits)
    states = family.model.run(family.batch, reads=family.sites).states
    other = Batch(family.batch.token_ids.flip(1), family.batch.mask)
    # The last block's output of one text, in the pass of another, makes that pass end as the first did.
    last = Site("resid_post", family.model.layers - 1)
    assert family.model.run(other, rewrites=[(last, lambda _: states[last])]).logits.equal(family.logits)


def test_all_writes_sum_to_the_final_state(family):
    if family.kind in NO_WRITERS:
        with pytest.raises(ModelError, match=r"adds to the residual stream is not the sum of what one or two"):
            contributions(family.model, family.batch)
        return
    written = contributions(family.model, family.batch)
    last = Site("resid_post", family.model.layers - 1)
    state = family.model.run(family.batch, reads=[last]).states[last]
    assert len(written) > family.model.layers
    assert (sum(written.values()) - state).norm() < 2e-6 * state.norm()


def test_a_head_removed_is_the_model_with_its_output_weights_at_zero_or_refused(family):
    logits = family.logits
    attending = [layer for layer in range(family.model.layers) if family.has("z", layer)]
    assert bool(attending) == (family.kind not in NO_HEADS)
    if not attending:
        with pytest.raises(ModelError, match=r"z\.1\.0 cannot be .*: .*(interface|attends more|no attention)"):
            family.model.run(family.batch, rewrites=[(Site("z", 1, 0), torch.zeros_like)])
    for layer in attending:
        head = Site("z", layer, 1)
        removed = family.model.run(family.batch, rewrites=[(head, torch.zeros_like)]).logits
        assert (removed - logits).abs().max() > 1e-3
        assert family.has("attn_probs", layer) == (family.kind not in NO_PROBABILITIES)
        if family.kind in NO_HEAD_WRITES:
            z = family.model.run(family.batch, reads=[Site("z", layer)]).states[Site("z", layer)]
            with pytest.raises(ModelError, match="gated or normalised"):
                head_writes(family.model, layer, z)
            continue
        weights = family.model.site_map.heads(layer).projection.weights
        kept = weights[1].clone()
        with torch.no_grad():
            weights[1].zero_()
            without = family.model.run(family.batch).logits
            weights[1].copy_(kept)
        torch.testing.assert_close(removed, without, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(NO_BLOCKS))
def test_families_without_one_list_of_blocks_are_refused(kind):
    with pytest.raises(ModelError, match=r"decoder blocks near its token embedding; one is needed"):
        HookedModel(build(kind))


@pytest.mark.parametrize("kind", sorted(NO_STREAM))
def test_families_with_several_residual_streams_are_refused(kind):
    with pytest.raises(ModelError, match=r"one of width \d+ a token is needed"):
        HookedModel(build(kind)).run(batch(), reads=[Site("resid_post", 0)])


@pytest.mark.parametrize("kind", sorted(set(UNBUILT) - {"blt", "git", "phi4_multimodal"}))
def test_families_that_are_left_out_cannot_be_built(kind):
    """Of those that are too large nothing is tried."""
    with pytest.raises(Exception):  # noqa: B017
        model = build(kind)
        model(input_ids=batch().token_ids)
