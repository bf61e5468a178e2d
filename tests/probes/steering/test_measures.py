"""What answers show and what ordinary text suffers, and what follows for doses."""

import html
import math

import msgspec
import numpy as np
import pytest

from probes.data.concepts import CONCEPTS
from probes.data.examples import Example
from probes.data.requests import Request, RequestError
from probes.errors import SteeringError
from probes.evaluation.metrics import Interval
from probes.models.activations import TransformersSource
from probes.models.chat import Message
from probes.models.teacher_forcing import Prompt, log_likelihoods
from probes.report import ReportError
from probes.report.steering_page import HTML, JSON, decode, render, write
from probes.scoring.roles import Role
from probes.steering import add
from probes.steering.behaviour import Words, refuses, show
from probes.steering.comparison import Way, compare, shift
from probes.steering.conclusions import concluded
from probes.steering.damage import Bystanders, Text, facts, ordinary
from probes.steering.generation import Arm, generate
from probes.steering.questions import of_concept, of_requests, ordinary_of
from probes.steering.repetition import repetition
from probes.steering.results import Outcome, Shift, SteeringReport
from probes.steering.sweep import both_ways, cap, parse_doses, working_range
from tests.harness.steered_generation import edit, trigger

pytest.importorskip("torch")
pytest.importorskip("transformers")

BY_NAME = {concept.name: concept for concept in CONCEPTS}


@pytest.fixture(scope="module")
def source(tiny_model) -> TransformersSource:
    return TransformersSource(tiny_model, dtype="float32")


def text(number, answer="They eat nectar and pollen.", false=None):
    asked = Message("user", f"What do bees eat, {number}?")
    wrong = None if false is None else [asked, Message("assistant", false)]
    return Text(str(number), f"g{number}", [asked, Message("assistant", answer)], wrong)


TEXTS = [text(number, answer) for number, answer in enumerate(["They eat nectar.", "It is warm in the house.", "Bees"])]
FACTS = [text(number, "They eat nectar.", "They eat the house.") for number in range(4)]


@pytest.mark.parametrize(
    "said",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I cannot assist you with this request.",
        "Sorry, no. I won't help anybody break in.",
        "I have to decline. That would hurt people.",
        "I'm not able to give medical doses.",
        "As an AI, I do not engage in hate.",
        "I'm sorry for any misunderstanding, but as an AI, I don't have the capability to create that.",
        "I refuse to write that.",
    ],
)
def test_what_refuses(said):
    assert refuses(said)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "Sure, here is how: first, sort the list.",
        "Sorry for the wait. Here's a small script.",
        "I'm sorry to hear that. What happened?",
        "You can't help everybody, but you can help one person.".replace("can't help", "cannot save"),
        "The court refused the appeal.",
        "It is warm. " * 30 + "I can't help with that.",
    ],
)
def test_what_does_not(said):
    assert not refuses(said)


def test_repetition_is_the_share_of_what_was_said_before():
    assert repetition([]) == repetition([1, 2]) == repetition([1, 2, 3]) == 0
    assert repetition(range(20)) == 0
    assert repetition([7] * 12) == pytest.approx(1 - 1 / 10)
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)


def test_words_know_their_concept_and_say_how_well():
    words = Words(BY_NAME["toxicity"])
    insult, kind = words.score(["You are a stupid, pathetic idiot, shut up.", "Thank you, that was helpful."])
    assert insult > kind
    assert 0.55 < words.auroc() < 1, "on topics that it has not seen"


def test_words_learn_what_they_are_given_beside_the_pairs():
    """Texts of another kind, which the pairs say nothing about."""
    told = [
        Example(
            f"{n}{label}", "set", f"g{n}", "any", label, [Message("user", f"{'glorp' if label else 'marn'} {thing}")]
        )
        for n, thing in enumerate(("tree", "boat", "lamp", "coat", "fork", "hill", "ship", "door"))
        for label in (True, False)
    ]
    alone, taught = Words(BY_NAME["toxicity"]), Words(BY_NAME["toxicity"], told)
    texts = ["glorp river", "marn river"]
    assert np.diff(alone.score(texts)) == 0
    assert np.diff(taught.score(texts)) < 0
    assert taught.auroc() > alone.auroc()


def test_answers_are_read_without_steering(source):
    prompts = [source.encode([Message("user", name)], respond=True) for name in ("Is it warm?", "Tell me")]
    reader = trigger(3, threshold=0.0)
    answers = generate(source, prompts, [Arm(), Arm([edit(1, 1, add(0.6))])], 6)
    unsteered, steered = show(source, prompts, answers, reader, Words(BY_NAME["toxicity"]))
    for shown, said in zip((unsteered, steered), answers, strict=True):
        for row, answer in enumerate(said):
            (reading,) = source.read([[*prompts[row], *answer.token_ids]], [3])
            of = reading.states[0][len(prompts[row]) :]
            assert shown.probe[row] == pytest.approx(reader.scores(of).mean(), abs=1e-4)
            assert shown.words is not None and np.isfinite(shown.words[row])
    user = trigger(3, roles=("user",))
    (blind, _) = show(source, prompts, answers, user, None)
    assert blind.probe is None and blind.fired is None and blind.words is None


def test_an_empty_answer_has_no_score(source):
    from probes.steering.generation import Answer

    prompt = source.encode([Message("user", "Tell me")], respond=True)
    answers = [[Answer([40, 41, 42], 0, None), Answer([], 0, None)]]
    (shown,) = show(source, [prompt, prompt], answers, trigger(1), Words(BY_NAME["toxicity"]))
    assert np.isnan(shown.probe).tolist() == np.isnan(shown.words).tolist() == [False, True]
    assert shown.refused.tolist() == [0, 0]
    found = shift(np.array([1.0, 2.0, np.nan]), np.array([1.5, np.nan, 4.0]), ["a", "b", "c"])
    assert (found.mean, found.change.point) == (1.5, 0.5)
    assert shift(np.array([np.nan]), np.array([1.0]), ["a"]) is None


def test_perplexity_is_of_the_answers_alone(source):
    way = edit(2, 1, add(0.4))
    (damage,) = Bystanders(source, TEXTS, FACTS).suffer([(way, None)])
    prompts = []
    for one in TEXTS:
        ids = source.encode(one.messages)
        first = len(source.encode(one.messages[:1], respond=True)) - 1
        end = len(ids) - 2  # the template's end of the message, and its line
        assert source.tokenizer.decode(ids[first + 1 : end]) == one.messages[-1].content
        prompts.append(Prompt(ids[:first], [ids[first:end]], 1, range(first, end)))
    before, after = log_likelihoods(source.hooked, prompts, [None, way])[..., 0]
    np.testing.assert_allclose(damage.lost, before - after, atol=1e-5)
    assert damage.tokens.tolist() == [len(prompt.texts[0]) - 1 for prompt in prompts]
    tokens = damage.tokens
    expected = math.exp((after * tokens).sum() / -tokens.sum()) / math.exp((before * tokens).sum() / -tokens.sum())
    assert damage.perplexity().point == pytest.approx(expected, rel=1e-4) != pytest.approx(1, abs=1e-3)
    assert damage.steered == 1 and damage.right is not None and len(damage.right) == len(FACTS)


def test_a_policy_that_never_fires_does_no_damage_and_one_that_always_does_all_of_it(source):
    way = edit(3, 1, add(0.4))
    never, at_once = trigger(1, threshold=1e6), trigger(1, threshold=-1e6, roles=("user",))
    silent, always, fired = Bystanders(source, TEXTS, FACTS).suffer([(way, never), (way, None), (way, at_once)])
    assert silent.steered == 0 and not silent.lost.any() and silent.perplexity() == Interval(1, 1, 1)
    assert np.array_equal(silent.right, silent.right_before)
    np.testing.assert_allclose(fired.lost, always.lost, atol=1e-6)
    assert fired.steered == always.steered == 1


def test_damage_begins_where_the_answer_is_seen_to_fire(source):
    """As in generation: the row of the token that fired for a layer behind the probe, the next one before it."""
    gate = trigger(2, threshold=-1e6, min_tokens=2)
    texts = TEXTS[:2]
    behind, before = Bystanders(source, texts).suffer([(edit(3, 1, add(0.4)), gate), (edit(1, 1, add(0.4)), gate)])
    rows = sum(len(source.tokenizer(one.messages[-1].content)["input_ids"]) for one in texts)
    # Row 0 is the header's last; the answer's second token is row 2 of the answer's rows.
    assert behind.steered == pytest.approx((rows - 2 * 2) / rows)
    assert before.steered == pytest.approx((rows - 2 * 3) / rows)


def test_what_ships_to_measure_damage_on():
    texts = ordinary("sycophancy")
    assert len(texts) == 40 and not any(one.id.startswith("sycophancy") for one in texts)
    assert all(one.messages[-1].role == "assistant" for one in texts)
    assert any(one.id.startswith("sycophancy") for one in ordinary("toxicity"))
    known = facts(BY_NAME["toxicity"])
    assert len(known) == 40 and all(one.false and one.false != one.messages for one in known)
    for name in ("false_statement", "instructed_lie"):
        assert facts(BY_NAME[name]) == [], "they would be the behaviour itself"
    with pytest.raises(SteeringError, match="no ordinary answers"):
        Bystanders(None, [])


def request(number, *roles, group=None):
    return Request(number, tuple(Message(role, f"Is it warm, {number}?") for role in roles), group=group)


def test_questions_end_where_the_answer_begins(source):
    asked = [request(number, "user") for number in range(5)]
    asked += [request(number, "user", "assistant") for number in range(5, 10)]
    found = of_requests(source, asked, 8)
    assert all(source.tokenizer.decode(one.token_ids).endswith("<|im_start|>assistant\n") for one in found)
    assert len({len(one.token_ids) for one in found}) == 1, "an answer at the end is left out"
    prompt = of_requests(source, [*asked, Request("p", prompt="house")], 8)[-1]
    assert source.tokenizer.decode(prompt.token_ids) == "house"
    found = of_concept(source, BY_NAME["toxicity"], 8)
    assert len({tuple(one.token_ids) for one in found}) == len(found) > 20


def test_bad_questions(source):
    asked = [request(number, "user") for number in range(9)]
    with pytest.raises(SteeringError, match="9 prompts in 9 groups"):
        of_requests(source, asked, 8)
    with pytest.raises(SteeringError, match="12 prompts in 1 groups"):
        of_requests(source, [request(number, "user", group="g") for number in range(12)], 8)
    with pytest.raises(RequestError, match=r"'only'.*nothing before its answer"):
        of_requests(source, [*asked, request("only", "assistant")], 8)
    with pytest.raises(RequestError, match="no room for 600 more"):
        of_requests(source, asked, 600)
    with pytest.raises(RequestError, match="does not end with an answer"):
        ordinary_of([request(1, "user")])
    with pytest.raises(SteeringError, match="1 ordinary answers"):
        ordinary_of([request(1, "user", "assistant")])


def outcome(size, ratio=1.0, high=None, repeated=0.0, **more):
    none = Shift(0.0, Interval(0.0, 0.0, 0.0))
    fields = {
        "name": f"dose {size:+g}",
        "dose": size,
        "probe": none,
        "fired": none,
        "words": none,
        "refused": none,
        "repetition": Shift(repeated, Interval(repeated, repeated, repeated)),
        "perplexity": Interval(ratio, ratio, ratio if high is None else high) if size else None,
        "accuracy": None,
        "tokens": 10,
        "steered": 10 if size else 0,
        "triggered": None,
        "empty": 0,
        "ordinary_steered": 1.0,
        **more,
    }
    return Outcome(**fields)


def test_the_working_range_ends_before_the_first_dose_that_harms():
    swept = [outcome(0), outcome(0.1, 1.01), outcome(0.2, 1.04, 1.06), outcome(0.3, 1.0), outcome(-0.1, 1.049)]
    assert working_range(swept) == (-0.1, 0.1), "a lucky larger dose does not count, nor one that is only probably good"
    assert cap(swept) == 0.3
    assert working_range([outcome(0.1, 1.0, repeated=0.06), outcome(-0.1, 2.0)]) == (0, 0)
    assert cap([outcome(0.1, 1.0, repeated=0.19), outcome(0.2, 1.0, repeated=0.21)]) == 0.1
    assert cap([outcome(-0.2, 1.2), outcome(0.1, 3.0)]) == 0.2
    with pytest.raises(SteeringError, match=r"dose of 0\.1 does more damage.*--doses"):
        cap([outcome(0), outcome(0.1, 1.3), outcome(-0.1, 1.3)])


def test_doses():
    assert parse_doses("0.2, 0.1,0.2") == [-0.2, -0.1, 0.1, 0.2] == both_ways([0.1, 0.2])
    for wrong in ("", "a", "0", "-0.1", "1.5", "nan", "inf", "0.1;0.2"):
        with pytest.raises(SteeringError, match=r"such as 0\.05"):
            parse_doses(wrong)


def test_arms_side_by_side(source):
    questions = of_requests(source, [request(number, "user") for number in range(10)], 6)
    never = trigger(1, threshold=1e6)
    strong = edit(2, 1, add(0.9))
    found = compare(
        source,
        questions,
        [Way("nothing", 0.1, edit(2, 1, add(0.0))), Way("always", 0.9, strong), Way("policy", 0.9, strong, never)],
        Bystanders(source, TEXTS, FACTS),
        reader=trigger(3),
        words=Words(BY_NAME["toxicity"]),
        max_tokens=6,
    )
    unsteered, nothing, always, policy = found.outcomes
    for same in (nothing, policy):
        assert same.probe == unsteered.probe and same.words == unsteered.words and same.refused == unsteered.refused
        assert same.perplexity == Interval(1, 1, 1)
    assert unsteered.perplexity is None and unsteered.triggered is None and unsteered.steered == 0
    assert policy.triggered == policy.steered == 0 and policy.ordinary_steered == 0
    assert always.probe.change.point != 0 and always.steered >= always.tokens and always.perplexity.point != 1
    low, high = always.probe.change.low, always.probe.change.high
    assert low < always.probe.change.point < high


def report(**more):
    up = Shift(1.0, Interval(0.5, 0.2, 0.9))
    down = Shift(-1.0, Interval(-0.5, -0.9, -0.2))
    fields = {
        "kind": "sweep",
        "plumbob": "0",
        "created": "2026-01-01T00:00:00+00:00",
        "model": "<b>tiny</b>",
        "fingerprint": {"weights": "w"},
        "bundle": "d",
        "command": "plumbob steer",
        "vector": "toxicity",
        "layer": 2,
        "hidden_norm": 10.0,
        "method": "mean",
        "concept": "toxicity",
        "probe": "toxicity",
        "trigger": None,
        "words_auroc": 0.55,
        "prompts": 32,
        "ordinary": 40,
        "ordinary_perplexity": 20.0,
        "facts": 0,
        "facts_right": None,
        "outcomes": [
            outcome(-0.1, 1.02, probe=down, words=None),
            outcome(0),
            outcome(0.1, 1.03, probe=up, words=down),
        ],
        "working": (-0.1, 0.1),
        "max_dose": 0.1,
        **more,
    }
    return SteeringReport(**fields)


def test_sentences_follow_from_the_numbers():
    says = " ".join(concluded(report()).says)
    assert "Working range: −0.1 to +0.1" in says and "Cap: 0.1" in says and "They are no witness." in says
    assert "+0.1: the probe's score moves +0.500 (+0.200 to +0.900) and the words' score moves the wrong way:" in says
    assert "−0.1: the probe's score moves −0.500 (−0.900 to −0.200)." in says
    none = concluded(report(working=(0.0, 0.0), words_auroc=0.9)).says
    assert none[0].startswith("No dose that was swept works") and "witness" not in " ".join(none)
    still = Shift(0.1, Interval(0.1, -0.1, 0.3))
    arms = [outcome(0), outcome(-0.1, 1.01, name="policy", probe=still, words=None, triggered=3)]
    (said, _) = concluded(report(kind="trial", outcomes=arms)).says
    assert "does not measurably move +0.100" in said and "fired on 3 of 32" in said


def test_the_page_holds_every_arm_and_nothing_unescaped(tmp_path):
    made = report()
    write(made, tmp_path / "r")
    assert decode((tmp_path / "r" / JSON).read_bytes(), "r") == concluded(made)
    page = (tmp_path / "r" / HTML).read_text()
    assert page == render(made) and page.count("<svg") == 2
    assert "<b>tiny" not in page and "&lt;b&gt;tiny" in page and "<script" not in page
    for name in ("dose -0.1", "dose +0", "dose +0.1"):
        assert name in page
    trial = report(kind="trial", working=None, max_dose=None, trigger="toxicity")
    assert "'toxicity' fires" in html.unescape(render(trial))


def test_damaged_reports(tmp_path):
    good = msgspec.json.encode(report())
    for wrong, match in (
        (b"{}", "no report"),
        (good[:50], "no report"),
        (good.replace(b'"format":1', b'"format":9'), "format 9"),
        (b"\xff", "no report"),
    ):
        with pytest.raises(ReportError, match=match):
            decode(wrong, "r")
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="cannot be written"):
        write(report(), tmp_path / "file")
    with pytest.raises(ReportError, match="no finite number"):
        write(report(hidden_norm=math.inf), tmp_path / "r")


def test_roles_of_triggers():
    gate = trigger(1, roles=("user",))
    assert gate.reads(np.array([Role.USER, Role.ASSISTANT, Role.TEMPLATE])).tolist() == [True, False, False]
