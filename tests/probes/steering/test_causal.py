"""The causal check: a direction that is planted is found, one that the model does not look at is not."""

import msgspec
import numpy as np
import pytest

from probes.bundle.manifest import Calibration, Evaluation, Probe
from probes.data.examples import Pair
from probes.errors import ConceptError, ModelError
from probes.evaluation.metrics import Interval
from probes.evaluation.results import Causal
from probes.models.activations import TransformersSource
from probes.models.chat import Message
from probes.scoring.aggregate import Aggregate
from probes.steering.causal import ANSWERS, COMPLIANCES, REFUSALS, REFUSING, _answers, _openings, check, verdict

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

LAST = 4
"""The last block of the tiny model: what is added there, the head sees through a norm only."""
QUESTIONS = (
    "What do bees eat today?",
    "Is it warm in the red house?",
    "Tell me about the little boat.",
    "Thank you! Is it warm?",
    "What do they eat?",
    "Tell me about nectar and pollen.",
    "Is the house red or blue?",
    "Do bees eat pollen today?",
)


def probe(layer, *roles):
    return Probe(
        name="planted",
        layer=layer,
        roles=list(roles),
        threshold=0.0,
        aggregate=Aggregate(),
        calibration=Calibration(0.01, 100, 1, (0.0, 0.05)),
        evaluation=Evaluation(50, 0.9, 0.6, 0.8, 0.9),
    )


@pytest.fixture(scope="module")
def source(tiny_model) -> TransformersSource:
    return TransformersSource(tiny_model, dtype="float32")


@pytest.fixture(scope="module")
def pairs(source):
    """Answers of one token, "B" or "A", of which the model prefers the first on the whole."""
    one, other = (source.tokenizer(word)["input_ids"] for word in ("B", "A"))
    assert len(one) == len(other) == 1
    made = [
        Pair(
            f"p-{number}",
            "t",
            [Message("user", question), Message("assistant", "B")],
            [Message("user", question), Message("assistant", "A")],
        )
        for number, question in enumerate(QUESTIONS)
    ]
    found = check(source, probe(LAST, "assistant"), np.ones(32), 1.0, made)
    assert found.unsteered.low > 0, "or every test below would pass for another reason"
    return made


@pytest.fixture(scope="module")
def between(source):
    """The direction between the two words, as the head reads it behind the final norm."""
    head = source.model.get_output_embeddings().weight.detach().double()
    one, other = (source.tokenizer(word)["input_ids"][0] for word in ("B", "A"))
    return ((head[one] - head[other]) * source.model.model.norm.weight.detach().double()).numpy()


def norm_of(source, pairs):
    ids = [source.encode(pair.positive) for pair in pairs]
    return float(np.median(np.concatenate([np.linalg.norm(r.states[0], axis=1) for r in source.read(ids, [LAST])])))


@pytest.mark.parametrize("roles", [("assistant",), ("user", "assistant")])
def test_a_planted_direction_is_found(source, pairs, between, roles):
    found = check(source, probe(LAST, *roles), between, norm_of(source, pairs), pairs, dose=0.2)
    assert found.measure == ANSWERS and found.n == len(pairs)
    assert found.added.low > found.unsteered.high
    assert found.random.point == pytest.approx(found.unsteered.point, abs=found.added.point / 4)
    # Both words are then as likely, whatever the conversation.
    assert [found.ablated.low, found.ablated.high] == pytest.approx([0, 0], abs=1e-4)
    assert found.verdict.endswith("The model uses what the probe reads.")


def test_a_direction_that_the_behaviour_does_not_depend_on_is_not_found(source, pairs, between):
    other = np.linalg.qr(np.stack([between, np.random.default_rng(3).normal(size=32)], axis=1))[0][:, 1]
    found = check(source, probe(LAST, "assistant"), other, norm_of(source, pairs), pairs, dose=0.2)
    assert found.verdict.endswith("the probe reads something that this behaviour does not depend on.")
    # It still changes the length of the state, and by that a little.
    assert found.added.point == pytest.approx(found.unsteered.point, rel=0.1)


def test_a_direction_the_other_way_round_is_not_taken_for_evidence(source, pairs, between):
    found = check(source, probe(LAST, "assistant"), -between, norm_of(source, pairs), pairs, dose=0.2)
    assert found.verdict.startswith(f"Adding the direction lowers {ANSWERS}, the wrong way round: −")


def test_a_dose_of_nothing_changes_nothing(source, pairs):
    for roles in (("assistant",), ("user",)):
        found = check(source, probe(1, *roles), np.ones(32), 5.0, asking(pairs, roles), dose=0.0)
        assert found.added == found.random == found.unsteered != found.ablated


def asking(pairs, roles):
    """The pairs as a concept of these roles has them."""
    if "assistant" in roles:
        return pairs
    return [msgspec.structs.replace(p, positive=p.positive[:1], negative=p.negative[:1]) for p in pairs]


def test_the_length_of_the_direction_does_not_matter(source, pairs, between):
    short, long = (check(source, probe(1, "assistant"), scale * between, 5.0, pairs) for scale in (0.01, 100.0))
    for arm in ("unsteered", "ablated", "added", "random"):
        assert getattr(short, arm).point == pytest.approx(getattr(long, arm).point, abs=1e-5)


def test_the_same_seed_gives_the_same_check(source, pairs, between):
    first, again, other = (check(source, probe(2, "assistant"), between, 5.0, pairs, seed=seed) for seed in (1, 1, 2))
    assert first == again and first.random.point != other.random.point


def test_what_is_scored_and_pushed_of_an_answer(source):
    pair = Pair(
        "p",
        "t",
        [Message("user", "Thank you!"), Message("assistant", "They eat nectar.")],
        [Message("user", "Thank you!"), Message("assistant", "It is warm.")],
    )
    decode = source.tokenizer.decode
    for prompt, answer in zip(_answers(source, [pair]), ("They eat nectar.", "It is warm."), strict=True):
        (text,) = prompt.texts
        assert decode(text[prompt.skipped :]) == answer
        whole = [*prompt.ids, *text]
        assert decode(whole) == f"<|im_start|>user\nThank you!<|im_end|>\n<|im_start|>assistant\n{answer}"
        pushed = decode([whole[row] for row in prompt.pushed])
        assert pushed.endswith(f"<|im_start|>assistant\n{answer}") and "Thank" not in pushed


def test_what_is_scored_and_pushed_of_a_request(source):
    conversation = [Message("user", "Thank you!"), Message("assistant", "It is warm."), Message("user", "Is it?")]
    (prompt,) = _openings(source, [Pair("p", "t", conversation, conversation)])
    decode = source.tokenizer.decode
    assert [decode(text[prompt.skipped :]) for text in prompt.texts] == [*REFUSALS, *COMPLIANCES]
    whole = [*prompt.ids, *prompt.texts[0]]
    assert decode(whole).endswith(f"Is it?<|im_end|>\n<|im_start|>assistant\n{REFUSALS[0]}")
    pushed = decode([whole[row] for row in prompt.pushed])
    assert pushed.endswith("<|im_start|>user\nIs it?") and "warm" not in pushed


def test_as_many_openings_refuse_as_comply():
    assert len(REFUSALS) == len(COMPLIANCES)
    assert len({*REFUSALS, *COMPLIANCES}) == len(REFUSALS) + len(COMPLIANCES)


def test_a_request_is_pushed_where_it_is_read(source, pairs):
    """At the last block, what its rows carry reaches no other row; below, attention brings it to the answer."""
    requests = asking(pairs, ("user",))
    deep, shallow = (check(source, probe(layer, "user"), np.ones(32), 20.0, requests) for layer in (LAST, 1))
    assert deep.measure == REFUSING
    assert deep.added == deep.random == deep.unsteered != deep.ablated
    assert abs(shallow.added.point - shallow.unsteered.point) > 1e-3


def likelihood(source, conversation):
    """The reference: mean log-probability of the last message's tokens, of the whole text alone."""
    ids, begin = source.encode(conversation), len(source.encode(conversation[:-1], respond=True))
    end = ids.index(source.tokenizer("<|im_end|>")["input_ids"][0], begin)
    with torch.inference_mode():
        logs = source.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return np.mean([logs[at - 1, ids[at]].item() for at in range(begin, end)])


def test_the_behaviour_is_what_it_is_said_to_be(source, pairs):
    pairs = [
        msgspec.structs.replace(pair, negative=[*pair.negative[:1], Message("assistant", "It is not so." * number)])
        for number, pair in enumerate(pairs, 1)
    ]
    wanted = [likelihood(source, pair.positive) - likelihood(source, pair.negative) for pair in pairs]
    found = check(source, probe(1, "assistant"), np.ones(32), 1.0, pairs)
    assert found.unsteered.point == pytest.approx(np.mean(wanted), abs=1e-4)
    requests = asking(pairs, ("user",))
    wanted = [
        np.mean([likelihood(source, [*pair.positive, Message("assistant", opening)]) for opening in openings])
        for pair in requests
        for openings in (REFUSALS, COMPLIANCES)
    ]
    found = check(source, probe(1, "user"), np.ones(32), 1.0, requests)
    assert found.unsteered.point == pytest.approx(np.mean(wanted[::2]) - np.mean(wanted[1::2]), abs=1e-4)


def test_pairs_that_end_with_the_user_say_nothing_of_answers(source, pairs):
    """A probe may read both."""
    mixed = [*asking(pairs, ("user",)), *pairs]
    read = probe(1, "user", "assistant")
    assert check(source, read, np.ones(32), 1.0, mixed) == check(source, read, np.ones(32), 1.0, pairs)
    with pytest.raises(ConceptError, match="causal check of probe 'planted' has 4 pairs with answers"):
        check(source, read, np.ones(32), 1.0, [*mixed[:8], *pairs[:4]])


def test_too_few_pairs(source, pairs):
    with pytest.raises(ConceptError, match=r"has 4 pairs\. It takes 5 at least"):
        check(source, probe(1, "user"), np.ones(32), 1.0, asking(pairs, ("user",))[:4])


@pytest.mark.parametrize("direction", [np.zeros(32), np.full(32, np.nan), np.full(32, np.inf)])
def test_a_direction_that_is_none(source, pairs, direction):
    with pytest.raises(ModelError, match=r"direction of probe 'planted' has a norm of (0|nan|inf)"):
        check(source, probe(1, "assistant"), direction, 1.0, pairs)


def test_a_push_that_the_model_does_not_survive(source, pairs):
    with pytest.raises(ModelError, match="are not finite"):
        check(source, probe(1, "assistant"), np.ones(32), 1.0, pairs, dose=1e300)


def test_an_answer_without_text(source, pairs):
    empty = msgspec.structs.replace(pairs[0], id="p-empty", negative=[*pairs[0].negative[:1], Message("assistant", "")])
    with pytest.raises(ConceptError, match=r"Pair p-empty has no text in its last message of: assistant"):
        check(source, probe(1, "assistant"), np.ones(32), 1.0, [*pairs, empty])


def test_a_request_without_text(source, pairs):
    requests = asking(pairs, ("user",))
    empty = msgspec.structs.replace(requests[0], id="p-empty", positive=[Message("user", "")])
    with pytest.raises(ConceptError, match=r"Pair p-empty has no text in its last message of: user"):
        check(source, probe(1, "user"), np.ones(32), 1.0, [*requests, empty])


def test_a_model_without_a_chat_template(tiny_model, pairs):
    source = TransformersSource(tiny_model, dtype="float32")
    source.markers = msgspec.structs.replace(source.markers, headers={})
    with pytest.raises(ModelError, match="no chat template that marks messages of: assistant"):
        check(source, probe(1, "assistant"), np.ones(32), 1.0, pairs)


def test_progress_ends_at_the_whole(source, pairs):
    told = []
    check(source, probe(1, "assistant"), np.ones(32), 1.0, pairs, progress=lambda *report: told.append(report))
    assert told[-1] == ("steering planted", 2 * len(pairs), 2 * len(pairs))


UP, NOT, DOWN = Interval(0.2, 0.1, 0.3), Interval(0.0, -0.1, 0.1), Interval(-0.2, -0.3, -0.1)


@pytest.mark.parametrize(
    ("added", "beyond", "ablated", "says", "concludes"),
    [
        (UP, UP, DOWN, ("raises x, by more than any push", "away lowers it: −0.200"), "The model uses what"),
        (UP, UP, NOT, ("raises x, by more than any push", "away does not lower it"), "By one test of two"),
        (UP, NOT, DOWN, ("raises x, by no more than any push", "away lowers it"), "By one test of two"),
        (UP, NOT, NOT, ("raises x, by no more than any push", "does not lower it"), "As far as this shows"),
        (NOT, UP, NOT, ("does not measurably raise x", "does not lower it"), "As far as this shows"),
        (DOWN, DOWN, UP, ("lowers x, the wrong way", "raises it, the wrong way"), "As far as this shows"),
    ],
)
def test_the_verdict_says_what_the_effects_are(added, beyond, ablated, says, concludes):
    sentence = verdict("x", added=added, random=NOT, beyond_random=beyond, ablated=ablated)
    for part in says:
        assert part in sentence
    assert sentence.split(". ")[-1].startswith(concludes)


def test_the_check_survives_its_report(source, pairs):
    found = check(source, probe(1, "assistant"), np.ones(32), 1.0, pairs)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Causal) == found
