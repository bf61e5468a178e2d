"""One hooked model: padded batches, gradients, generation, refusals, and nothing left behind."""

import pytest

from probes.errors import ModelError
from probes.models.batches import Batch
from probes.models.contributions import head_writes
from probes.models.hooked import HookedModel
from probes.models.sites import KINDS, Site
from tests.probes.models.families import build
from tests.probes.models.test_families import hooks_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SEQUENCES = [[5, 17, 30, 8, 44, 9], [12, 60, 7], [81]]
CHOSEN = ["llama", "gemma2", "gpt2", "phi", "qwen3", "granite"]
"""Grouped queries, norms behind writers, fused projections, parallel blocks, normalised queries, a multiplier."""


@pytest.fixture(scope="module")
def llama() -> HookedModel:
    return HookedModel(build("llama"))


def every_site(model) -> list[Site]:
    return [*model.site_map.sites, Site("z", 1, 2), Site("q", 0, 3), Site("k", 1, 1), Site("attn_probs", 1, 0)]


@pytest.mark.parametrize("kind", CHOSEN)
@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing_that_is_read(kind, left):
    model = HookedModel(build(kind))
    together = model.run(model.pad(SEQUENCES, left=left), reads=model.site_map.sites)
    width = max(map(len, SEQUENCES))
    for row, ids in enumerate(SEQUENCES):
        alone = model.run(model.pad([ids]), reads=model.site_map.sites)
        own = slice(width - len(ids), width) if left else slice(0, len(ids))
        torch.testing.assert_close(together.logits[row, own], alone.logits[0], rtol=1e-4, atol=1e-4)
        for site, value in alone.states.items():
            # Of probabilities both the tokens and the keys.
            of = (slice(None), own, own) if site.kind == "attn_probs" else own
            torch.testing.assert_close(together.states[site][row][of], value[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CHOSEN)
def test_gradients_are_what_a_small_step_at_a_site_shows(kind):
    model = HookedModel(build(kind).double())
    batch, sites = model.pad(SEQUENCES[:1]), every_site(model)
    taken = model.run(batch, reads=sites, gradients=True)
    metric = taken.logits[0, -1, 3]
    gradients = torch.autograd.grad(metric, list(taken.states.values()), allow_unused=True)
    generator = torch.Generator().manual_seed(2)
    for (site, value), gradient in zip(taken.states.items(), gradients, strict=True):
        step = 1e-3 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        ends = [
            model.run(batch, rewrites=[(site, lambda states, by=sign * step: states + by)]).logits[0, -1, 3]
            for sign in (1, -1)
        ]
        expected = 0.0 if gradient is None else (gradient * 2 * step).sum().item()
        assert (ends[0] - ends[1]).item() == pytest.approx(expected, rel=1e-2, abs=1e-5), str(site)


def test_gradients_leave_weights_as_they_were(llama):
    assert all(weight.requires_grad for weight in llama.model.parameters())
    site = Site("resid_pre", 0)
    taken = llama.run(llama.pad(SEQUENCES), reads=[site], gradients=True)
    taken.logits.sum().backward(inputs=[taken.states[site]])
    assert all(weight.requires_grad and weight.grad is None for weight in llama.model.parameters())


def test_what_a_head_writes(llama):
    """Without biases and norms, the heads of a layer write what its attention does."""
    z, out = Site("z", 1), Site("attn_out", 1)
    states = llama.run(llama.pad(SEQUENCES), reads=[z, out]).states
    writes = head_writes(llama, 1, states[z])
    assert writes.shape == (3, 6, 4, 32)
    torch.testing.assert_close(writes.sum(2), states[out], rtol=1e-5, atol=1e-5)


def test_one_head_is_a_slice_of_all(llama):
    batch = llama.pad(SEQUENCES)
    whole = {kind: Site(kind, 1) for kind in ("q", "k", "v", "attn_probs", "z")}
    states = llama.run(batch, reads=[*whole.values(), *(Site(kind, 1, 1) for kind in whole)]).states
    for kind, site in whole.items():
        assert states[Site(kind, 1, 1)].equal(states[site].select(site.head_axis, 1))
    # Keys that two heads share, at zero, make both of them attend evenly.
    changed = llama.run(batch, rewrites=[(Site("k", 1, 1), torch.zeros_like)], reads=[whole["attn_probs"]])
    of = changed.states[whole["attn_probs"]][0, 2:, -1]
    torch.testing.assert_close(of, torch.full_like(of, 1 / 6))
    assert not changed.logits.equal(llama.run(batch).logits)


def test_probabilities_that_are_written_weigh_the_values(llama):
    """Each token attends to itself alone: then what a head yields is its value."""
    sites = Site("z", 0), Site("v", 0)
    passed = llama.run(
        llama.pad(SEQUENCES[:1]),
        rewrites=[(Site("attn_probs", 0), lambda probabilities: torch.eye(6).expand_as(probabilities))],
        reads=sites,
    )
    z, values = (passed.states[site] for site in sites)
    torch.testing.assert_close(z, values.repeat_interleave(2, dim=2))


def test_rewrites_of_one_site_come_in_order_and_before_it_is_read(llama):
    site = Site("mlp_out", 0)
    clean = llama.run(llama.pad(SEQUENCES), reads=[site]).states[site]
    rewrites = [(site, lambda states: states + 1), (site, lambda states: states * 2)]
    assert llama.run(llama.pad(SEQUENCES), rewrites=rewrites, reads=[site]).states[site].equal((clean + 1) * 2)


def test_a_pass_goes_on_from_a_cache(llama):
    batch = llama.pad(SEQUENCES[:1])
    whole = llama.run(batch, reads=[Site("z", 1)])
    ids, mask = batch.token_ids, batch.mask
    first = llama.run(Batch(ids[:, :4], mask[:, :4]), use_cache=True, logits=False)
    assert first.logits is None
    then = llama.run(Batch(ids[:, 4:], mask[:, 4:]).following(mask[:, :4]), cache=first.cache, reads=[Site("z", 1)])
    torch.testing.assert_close(then.logits, whole.logits[:, 4:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(then.states[Site("z", 1)], whole.states[Site("z", 1)][:, 4:], rtol=1e-5, atol=1e-5)


def test_a_pass_ends_where_it_is_said_to(llama, monkeypatch):
    site = Site("resid_post", 0)
    whole = llama.run(llama.pad(SEQUENCES), reads=[site])
    monkeypatch.setattr(llama.blocks[1], "forward", lambda *_, **__: pytest.fail("the second block ran"))
    passed = llama.run(llama.pad(SEQUENCES), reads=[site], until=0)
    assert passed.logits is None and passed.states[site].equal(whole.states[site])


def test_logits_of_chosen_rows(llama):
    batch = llama.pad(SEQUENCES)
    wanted = torch.zeros_like(batch.mask, dtype=torch.bool)
    wanted[0, 4] = wanted[1, 1] = True
    torch.testing.assert_close(llama.run(batch, logits=wanted).logits, llama.run(batch).logits[wanted])


def greedy(model, ids, tokens, rewrites=()):
    """The reference: one whole pass a token."""
    said = list(ids)
    for _ in range(tokens):
        said.append(int(model.run(model.pad([said]), rewrites=rewrites).logits[0, -1].argmax()))
    return said[len(ids) :]


@pytest.mark.parametrize("site", ["resid_post.0", "attn_out.1", "z.1.2", "q.0.1", "attn_probs.1"])
def test_greedy_generation_with_a_rewrite(llama, site, monkeypatch):
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", None)
    rewrites = [(Site.parse(site), lambda states: states * 0.2)]
    answers = llama.generate(llama.pad(SEQUENCES, left=True), 6, rewrites)
    assert answers == [greedy(llama, ids, 6, rewrites) for ids in SEQUENCES]
    assert llama.generate(llama.pad(SEQUENCES, left=True), 6) == [greedy(llama, ids, 6) for ids in SEQUENCES]


def test_fused_attention_is_left_alone_unless_heads_are_asked_for():
    model = HookedModel(build("llama"))
    model.model.set_attn_implementation("sdpa")
    fused = model.run(model.pad(SEQUENCES)).logits
    stream = [site for site in model.site_map.sites if site.kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
    assert model.run(model.pad(SEQUENCES), reads=stream).logits.equal(fused)
    with model.plain_attention():
        plain = model.run(model.pad(SEQUENCES)).logits
    assert model.run(model.pad(SEQUENCES), reads=model.site_map.sites).logits.equal(plain)
    assert hooks_of(model.model)[1] == "sdpa"


def test_nothing_is_left_behind_by_a_pass_that_fails(llama):
    before = hooks_of(llama.model)

    def fail(_states):
        raise KeyError("own")

    for site in every_site(llama):
        with pytest.raises(KeyError, match="own"):
            llama.run(llama.pad(SEQUENCES), rewrites=[(site, fail)], reads=every_site(llama), gradients=True)
    assert hooks_of(llama.model) == before
    assert all(weight.requires_grad for weight in llama.model.parameters())


def test_a_value_of_another_shape_is_refused(llama):
    for site in (Site("resid_post", 0), Site("z", 0, 1)):
        with pytest.raises(ValueError, match=f"Site {site} has the shape"):
            llama.run(llama.pad(SEQUENCES), rewrites=[(site, lambda states: states[..., :3])])


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        ("resid_post.2", "LlamaForCausalLM has 2 blocks"),
        ("attn_out.7", "LlamaForCausalLM has 2 blocks"),
        ("q.0.4", "block 0 of LlamaForCausalLM has 4 heads of q"),
        ("v.0.2", "block 0 of LlamaForCausalLM has 2 heads of v"),
    ],
)
def test_a_site_that_the_model_lacks(llama, site, reason):
    with pytest.raises(ModelError, match=f"Site {site} cannot be read or written: {reason}"):
        llama.run(llama.pad(SEQUENCES), reads=[Site.parse(site)])


def test_a_block_with_one_writer_has_the_other_site_not():
    model = HookedModel(build("nemotron_h"))
    held = {str(site) for site in model.site_map.sites if site.kind in ("attn_out", "mlp_out")}
    assert held == {"attn_out.0", "attn_out.1", "mlp_out.2"}, "recurrent, attention, experts"
    with pytest.raises(ModelError, match="block 2 of NemotronHForCausalLM has one writer, which is the other"):
        model.run(model.pad(SEQUENCES), reads=[Site("attn_out", 2)])


def test_the_multiplier_of_what_is_added():
    model = HookedModel(build("granite"))
    model.model.model.layers[0].residual_multiplier = 0.22
    assert model.site_map.writers(0).scale == pytest.approx(0.22, rel=1e-5)
    assert model.site_map.writers(1).scale == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_address_survives_being_written_down(kind):
    sites = [Site(kind, 12), *([Site(kind, 3, 0)] if kind in ("q", "k", "v", "attn_probs", "z") else [])]
    assert [Site.parse(str(site)) for site in sites] == sites


@pytest.mark.parametrize("text", ["", "z", "z.", "z.1.2.3", "z.-1", "z.1.x", "resid_post.1.0", "nosuch.1", "z.²"])
def test_what_is_no_address(text):
    with pytest.raises(ModelError, match="There is no site"):
        Site.parse(text)
