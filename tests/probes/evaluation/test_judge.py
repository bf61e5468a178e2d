"""A bundle judged on labelled requests: every figure is that of a count by hand, and what has no figure is named."""

import msgspec
import numpy as np
import pytest

from probes.bundle import Calibration, Evaluation, ModelIdentity, Probe, save_bundle
from probes.bundle.manifest import Probability, Provenance
from probes.data.requests import Request, RequestError
from probes.evaluation.cross_validated_baselines import CrossValidated, cross_validated
from probes.evaluation.heatmaps import SHOWN
from probes.evaluation.judge import judge, require_labels
from probes.evaluation.labelled import Labelled
from probes.evaluation.metrics import recall_at
from probes.evaluation.offline_scores import Scorer
from probes.evaluation.results import Report
from probes.models.activations import Reading
from probes.models.chat import Message
from probes.report import concluded
from probes.scoring.aggregate import Aggregate, running
from probes.scoring.roles import Markers, RoleReader

THRESHOLD = 5.0
MARKERS = Markers(headers={"user": [1, 2], "assistant": [1, 3]}, terminator=[4])
AGGREGATE = Aggregate(half_life=2.0, min_tokens=2)


class Words:
    """A tokenizer whose every word is a token, and a model in which a word that is a number is its own score."""

    chat_template = "{{ messages }}"
    all_special_ids = (1, 2, 3, 4)

    def __init__(self):
        self.words, self.read_texts = ["<pad>", "<|", "user|>", "assistant|>", "<end>"], []

    def __call__(self, text, add_special_tokens=True):
        known = {word: at for at, word in enumerate(self.words)}
        for word in text.split():
            if word not in known:
                known[word] = len(self.words)
                self.words.append(word)
        return {"input_ids": [known[word] for word in text.split()]}

    def get_chat_template(self, template, tools):
        return self.chat_template

    def apply_chat_template(self, messages, *, tools, chat_template, tokenize, add_generation_prompt):
        assert not tokenize
        text = " ".join(f"<| {message['role']}|> {message['content']} <end>" for message in messages)
        return text + " <| assistant|>" * add_generation_prompt

    def decode(self, ids, **options):
        return "".join(f"{self.words[token]} " for token in ids)

    def get_added_vocab(self):
        return {}

    def read(self, conversations, layers, progress=None):
        readings = []
        for ids in conversations:
            words = [self.words[token] for token in ids]
            self.read_texts.append(" ".join(words))
            values = [float(word) if word.lstrip("-").replace(".", "").isdigit() else 0.0 for word in words]
            states = np.zeros((len(layers), len(ids), 8), np.float32)
            states[..., 0] = values
            ids = np.asarray(ids, np.int64)
            readings.append(Reading(ids, RoleReader(MARKERS).prompt(ids), states))
        return readings


@pytest.fixture
def world(tmp_path):
    """``world(probability=…, context=…)``: a scorer of two probes that read the numbers in a text; ``.model`` is it."""
    model = Words()

    def make(*, probability=None, context=None, provenance=None, rate=0.01):
        bundle = save_bundle(
            tmp_path / "bundle",
            version="0",
            created="2026-01-01T00:00:00Z",
            model=ModelIdentity(name="words", hidden=8, layers=4, parts={"config": "c"}),
            markers=MARKERS,
            probes=[
                (
                    Probe(
                        name=name,
                        layer=layer,
                        roles=[role],
                        threshold=THRESHOLD,
                        aggregate=AGGREGATE,
                        calibration=Calibration(rate, 100, 1, (0.0, 0.05)),
                        evaluation=Evaluation(50, 60, 0.9, 0.6, 0.8),
                        probability=probability,
                    ),
                    np.eye(8)[0],
                    0.0,
                )
                for name, layer, role in (("asked", 1, "user"), ("said", 2, "assistant"))
            ],
            vectors=[],
            provenance=provenance or {},
        )
        return Scorer(bundle, model, model, context)

    make.model = model
    return make


def request(index, content, label, probe="asked", **more):
    labels = {} if label is None else {probe: bool(label)}
    return Request(index, (Message("user", content),), labels=labels, **more)


def drawn(count, shift=0.0, seed=0, **more):
    """Requests of two equal words each, so that the verdict is the number: every fifth positive."""
    values = np.random.default_rng(seed).normal(3, 2, count).round(3)
    return [
        request(f"{seed}-{at}", f"{value + shift * (at % 5 == 0):g} " * 2, at % 5 == 0, **more)
        for at, value in enumerate(values.tolist())
    ]


def value_of(request):
    return float(request.messages[0].content.split()[0])


def label_of(request):
    return request.labels["asked"]


def split(requests):
    return tuple(np.array([value_of(one) for one in requests if label_of(one) is label]) for label in (True, False))


def wins(high, low):
    """The area under the curve, by its definition."""
    return ((high[:, None] > low).sum() + 0.5 * (high[:, None] == low).sum()) / (len(high) * len(low))


def one(judgement, name="asked"):
    return next(probe for probe in judgement.probes if probe.name == name)


def test_figures_of_all_and_of_each_part_are_those_of_a_count(world):
    requests = [
        *drawn(200, 1.0, 1, source="a", slices={"language": "de"}),
        *drawn(100, 2.0, 2, source="b"),
        *drawn(95, 0.0, 3, source="few"),
        *(msgspec.structs.replace(quiet, labels={"asked": False}) for quiet in drawn(30, 0.0, 4, source="quiet")),
        *(
            msgspec.structs.replace(loud, labels={"asked": at < 20})
            for at, loud in enumerate(drawn(39, 0.0, 5, source="loud"))
        ),
    ]
    probe = one(judge(world(), requests))
    parts = {
        "all": requests,
        "source=a": requests[:200],
        "source=b": requests[200:300],
        "source=loud": requests[-39:],
        "language=de": requests[:200],
    }
    assert {part.name for part in probe.given} == set(parts), "19 positives, or none, are too few"
    assert probe.given[0].name == "all"
    for part in probe.given:
        high, low = split(parts[part.name])
        assert (part.n_positive, part.n_negative) == (len(high), len(low))
        assert part.recall.point == pytest.approx((high >= THRESHOLD).mean())
        assert part.recall.low < part.recall.point < part.recall.high
        assert part.tokens_to_detect == 2.0
        if part.name == "source=loud":
            assert part.auroc is None and part.text is None and part.at_rates == []
            continue
        assert part.auroc.point == pytest.approx(wins(high, low))
        assert part.auroc.low < part.auroc.point < part.auroc.high
    rates = {rate.source: rate for rate in probe.false_positives}
    sources = {f"source={name}" for name in ("a", "b", "few", "quiet", "loud")}
    assert set(rates) == {"all", "language=de"} | sources
    for name, rate in rates.items():
        mine = [
            r for r in requests if name in ("all", f"source={r.source}", *(f"{k}={v}" for k, v in r.slices.items()))
        ]
        low = split(mine)[1]
        assert (rate.requests, rate.fired) == (len(low), (low >= THRESHOLD).sum())
        assert rate.left_out is None and rate.certified == (len(low) >= 300)
    assert {curve.split for curve in probe.roc} == {"all", "source=a", "source=b", "language=de"}
    high, low = split(requests)
    assert probe.roc[0].recall(0.05) == pytest.approx(recall_at(high, low, 0.05))
    assert {name: sum(counts) for name, counts in probe.scores.counts.items()} == {
        "shows the concept": len(high),
        "does not": len(low),
    }
    assert probe.threshold == THRESHOLD and probe.nominal == 0.01 and probe.seconds_a_token > 0


def test_a_part_that_is_all_of_the_data_is_not_told_twice(world):
    probe = one(judge(world(), drawn(150, 1.0, source="a")))
    assert [part.name for part in probe.given] == ["all"]
    assert [rate.source for rate in probe.false_positives] == ["all", "source=a"]


@pytest.mark.parametrize(
    ("negatives", "certified"), [(299, [False, False]), (300, [True, False]), (3000, [True, True])]
)
def test_recall_at_a_rate_takes_enough_negatives(world, negatives, certified):
    random = np.random.default_rng(0)
    requests = [
        *(request(f"p{at}", f"{value:g} " * 2, 1) for at, value in enumerate(random.normal(6, 2, 40).round(2))),
        *(request(f"n{at}", f"{value:g} " * 2, 0) for at, value in enumerate(random.normal(2, 2, negatives).round(2))),
    ]
    whole = one(judge(world(), requests)).given[0]
    assert [at.rate for at in whole.at_rates] == [0.01, 0.001]
    assert [at.recall is not None for at in whole.at_rates] == certified
    high, low = split(requests)
    for at in whole.at_rates:
        if at.recall:
            assert at.recall.point == recall_at(high, low, at.rate)
            assert at.recall.low < at.recall.point < at.recall.high


def test_a_perfect_recall_at_a_rate_still_has_an_interval(world):
    requests = [
        *(request(f"p{at}", "9 9", 1) for at in range(40)),
        *(request(f"n{at}", f"{at % 3} " * 2, 0) for at in range(300)),
    ]
    recall = one(judge(world(), requests)).given[0].at_rates[0].recall
    assert recall.point == 1.0 and 0.9 < recall.low < 0.93, "of 40 in 40"


def test_tokens_to_detect_are_those_that_the_probe_read(world):
    """Not the position: templates, system messages and other roles are not read."""
    said = [
        Request(
            at,
            (Message("user", "0 0 0 0"), Message("assistant", "0 " * quiet + "9 " * 9)),
            labels={"said": True, "asked": False},
        )
        for at, quiet in enumerate((1, 2, 8))
    ]
    found = judge(world(), said)
    wanted = [
        int((running(np.array([0.0] * quiet + [9.0] * 9), AGGREGATE) >= THRESHOLD).argmax()) + 1 for quiet in (1, 2, 8)
    ]
    assert len(set(wanted)) == 3
    assert one(found, "said").given[0].tokens_to_detect == wanted[1]
    assert one(found, "asked").given[0].tokens_to_detect is None


def test_requests_count_only_for_the_probes_they_are_labelled_for(world):
    requests = [*drawn(60, 1.0), *(request(f"u{at}", "9 9", None) for at in range(7))]
    scorer = world()
    judged = judge(scorer, requests)
    assert [probe.name for probe in judged.probes] == ["asked"]
    whole = judged.probes[0].given[0]
    assert (whole.n_positive, whole.n_negative) == (12, 48)
    assert any("7 of 67 requests have no labels" in note for note in judged.notes)
    assert "No request is labelled for: said." in judged.notes
    assert not any("9 9" in text for text in world.model.read_texts), "what is not labelled is not read"


def test_one_label_alone_gives_recall_or_the_false_positive_rate(world):
    requests = [
        *(request(f"a{at}", f"{at % 10} " * 2, 1) for at in range(60)),
        *(
            Request(f"s{at}", (Message("user", "0 0"), Message("assistant", f"{at % 10} " * 2)), labels={"said": False})
            for at in range(60)
        ),
    ]
    judged = judge(world(), requests)
    report = concluded(Report("0", "", "words", "", judged.probes))
    positive, negative = one(report), one(report, "said")
    assert positive.given[0].recall.point == 0.5 and positive.given[0].auroc is None
    assert positive.false_positives == [] and positive.roc == []
    assert positive.verdict_says[0].startswith("No request is labelled 0")
    assert not any("False positives on benign" in text for text in positive.verdict_says)
    assert negative.given[0].recall is None and negative.given[0].auroc is None
    assert (negative.false_positives[0].requests, negative.false_positives[0].fired) == (60, 30)
    assert negative.verdict_says[0].startswith("No request is labelled 1")
    assert positive.remarks == negative.remarks == [], "a baseline is not missed where there is nothing to tell apart"


def test_what_has_no_verdict_counts_as_not_fired_and_is_counted(world):
    loud = [request(f"p{at}", "9 9", 1) for at in range(30)]
    short = [request(f"s{at}", "9", 1) for at in range(10)]
    quiet = [request(f"n{at}", "1 1", 0) for at in range(30)]
    probe = one(judge(world(), [*loud, *short, *quiet]))
    assert probe.given[0].recall.point == 0.75
    assert probe.given[0].auroc.point == 0.75, "below every other"
    assert probe.scores.silent == {"shows the concept": 10, "does not": 0}
    assert any(remark.startswith("10 of 70 labelled requests have no verdict") for remark in probe.remarks)


def test_groups_are_resampled_whole_and_too_few_are_named(world):
    alone = one(judge(world(), drawn(200, 1.0))).given[0].auroc
    twins = [
        msgspec.structs.replace(one, id=f"{copy} {one.id}", group=str(one.id))
        for copy in range(8)
        for one in drawn(200, 1.0)
    ]
    copied = one(judge(world(), twins)).given[0].auroc
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.2), "copies are no evidence"
    few = [msgspec.structs.replace(r, group="g" if label_of(r) else None) for r in drawn(200, 1.0)]
    probe = one(judge(world(), few))
    assert (probe.given[0].auroc.low, probe.given[0].auroc.high) == (0.0, 1.0)
    assert "All positives are of 1 group: too few for an interval." in probe.remarks
    assert any("all requests of one label are of one group" in remark for remark in probe.remarks)
    assert probe.given[0].text is None


def test_a_group_has_not_the_name_of_a_request_without_one(world):
    requests = [
        msgspec.structs.replace(r, group=f"request {at - 1}") if at % 2 else r for at, r in enumerate(drawn(10, 1.0))
    ]
    nothing = np.zeros(10)
    groups = Labelled.of(world().bundle.probes[0], requests, nothing, nothing.astype(int)).groups
    assert len(set(groups.tolist())) == 10


def test_the_probability_is_judged_as_the_bundle_has_it(world):
    requests = [request(at, f"{2 * (at % 2)} " * 2, at % 4 == 1) for at in range(100)]
    probe = one(judge(world(probability=Probability(0.5, -1.0, 0.0)), requests))
    # Of the half at 2 logits, half are positive, and the probability is 0.5; of the others none, and it is 0.27.
    assert probe.calibration.n == 100 and probe.calibration.ece == pytest.approx(0.5 / (1 + np.e))
    assert one(judge(world(), requests)).calibration is None


def test_a_source_of_the_bundles_own_is_named(world):
    made = {"asked": [Provenance("a", "", {}, 1)], "said": [Provenance("b", "", {}, 1)]}
    requests = [*drawn(150, 1.0, 1, source="a"), *drawn(150, 1.0, 2, source="b")]
    probe = one(judge(world(provenance=made), requests))
    assert {rate.source: rate.left_out for rate in probe.false_positives} == {
        "all": None,
        "source=a": False,
        "source=b": None,
    }
    assert any(
        remark.startswith("source=a: of the same name as data that it was made from") for remark in probe.remarks
    )


def test_what_was_cut_off_is_counted(world):
    requests = [*drawn(60, 1.0), request("long", "0 " * 40 + "9 9 9 9", 1)]
    notes = judge(world(context=20), requests).notes
    assert any(note.startswith("1 of 61 requests exceed the model's context") for note in notes)
    assert not any("exceed" in note for note in judge(world(), requests).notes)


def test_requests_without_labels_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"in\.jsonl has no labels"):
        require_labels([request(0, "1", None)], tmp_path / "in.jsonl")
    require_labels([request(0, "1", None), request(1, "1", 0)], tmp_path / "in.jsonl")


# Words and length.


def test_words_are_learnt_on_other_groups_alone():
    """Texts of a group share a word that tells their label; of no other text does it tell anything."""
    random = np.random.default_rng(0)
    labels = np.repeat(random.random(40) < 0.5, 5)
    groups = np.repeat([f"g{at}" for at in range(40)], 5)
    telling = cross_validated([f"word{at // 5} and so on" for at in range(200)], labels, groups)
    alone = cross_validated([f"word{at // 5} and so on" for at in range(200)], labels, np.arange(200).astype(str))
    found = [one.baseline(labels, ~labels, 0.5).tfidf_auroc for one in (telling, alone)]
    assert found[0] < 0.65 and found[1] > 0.95
    assert all(len(np.unique(telling.fold[groups == group])) == 1 for group in groups)


def test_words_and_length_that_tell_are_found_and_held_against_the_probe(world):
    marked = [
        request(at, f"{value:g} {value:g} {'please do it now' if label else 'thank you'}", label)
        for at, (value, label) in enumerate(
            zip(np.random.default_rng(0).normal(3, 2, 120).round(2), [0, 1] * 60, strict=True)
        )
    ]
    report = concluded(Report("0", "", "words", "", judge(world(), marked).probes))
    text = one(report).given[0].text
    assert text.tfidf_auroc > 0.99 and text.length_auroc > 0.9 and text.tfidf_recall is None
    assert one(report).verdict_says[0].startswith("Does not beat words (TF-IDF) and length on any of 1 part")
    assert any(said.startswith("Does not beat words (TF-IDF) on 'all'") for said in one(report).verdict_says)


def test_only_what_the_probe_reads_is_held_against_it(world):
    """The user's words tell all, the assistant's nothing; the probe reads the assistant."""
    told = [
        Request(
            at,
            (Message("user", "please" if label else "thanks"), Message("assistant", f"{9 * label} " * 2 + "so")),
            labels={"said": bool(label)},
        )
        for at, label in enumerate([0, 1] * 60)
    ]
    blind = [msgspec.structs.replace(r, messages=(r.messages[0], Message("assistant", "1 1 so"))) for r in told]
    assert one(judge(world(), blind), "said").given[0].text.tfidf_auroc == 0.5
    prompts = [Request(r.id, prompt=r.messages[0].content + " 1 1", labels={"asked": r.labels["said"]}) for r in told]
    assert one(judge(world(), prompts)).given[0].text.tfidf_auroc == 1.0, "a prompt is the user's"


@pytest.mark.parametrize(("count", "learnt"), [(49, False), (50, True)])
def test_too_few_requests_have_no_baseline_and_say_so(world, count, learnt):
    report = concluded(Report("0", "", "words", "", judge(world(), drawn(count, 3.0)).probes))
    probe = one(report)
    assert (probe.given[0].text is not None) is learnt
    assert any("49 labelled requests, and it takes 50" in remark for remark in probe.remarks) is not learnt
    assert probe.verdict_says[0].startswith("On the data given, no baseline could be made") is not learnt


@pytest.mark.parametrize("text", ["", "a", "? !"])
def test_texts_without_words_have_no_baseline(text):
    labels = np.arange(60) % 2 == 0
    assert "has no words to learn" in cross_validated([text] * 60, labels, np.arange(60).astype(str))


def test_folds_that_leave_one_label_alone_have_no_baseline(monkeypatch):
    class Unlucky:
        def __init__(self, *arguments, **options):
            pass

        def split(self, *arguments):
            yield np.arange(30, 60), np.arange(30)

    monkeypatch.setattr("sklearn.model_selection.StratifiedGroupKFold", Unlucky)
    assert "leave one label alone" in cross_validated(["word"] * 60, np.arange(60) < 30, np.arange(60).astype(str))


def test_scores_of_two_fits_are_not_compared():
    """Within each fold the order is perfect; between folds it is upside down."""
    labels, fold = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
    scores = CrossValidated(np.array([1.0, 0.0, 101.0, 100.0]), np.array([0.0, 1.0, 0.0, 1.0]), fold)
    found = scores.baseline(labels, ~labels, 0.01)
    assert (found.tfidf_auroc, found.length_auroc, found.tfidf_recall) == (1.0, 0.0, None)
    assert scores.baseline(labels & (fold == 0), ~labels & (fold == 1), 0.01) is None


# Example conversations.


def shown(world, requests, **options):
    return [heat for probe in judge(world(**options), requests, examples=True).probes for heat in probe.heatmaps]


MIXED = [
    request("quiet", "1 1", 0),
    request("alarm", "7 7", 0),
    request("loud alarm", "8 -1 9 9 9 9", 0),
    request("silent", "1", 1),
    request("miss", "3 3", 1),
    request("worst miss", "-2 -2", 1),
    request("hit", "6 6", 1),
    request("middling hit", "7 7", 1),
    request("best hit", "9 9", 1),
]


def test_examples_are_shown_only_where_they_are_asked_for(world):
    assert all(probe.heatmaps == [] for probe in judge(world(), MIXED).probes)
    judged = judge(world(), MIXED)
    assert "worst" not in str(judged), "nor any id or text of a request"


def test_examples_are_the_worst_errors_and_a_typical_hit(world):
    assert [heat.title for heat in shown(world, MIXED)] == [
        "Highest false alarm: request 'loud alarm'",
        "Lowest miss: request 'worst miss'",
        "A typical hit: request 'middling hit'",
    ]
    assert [heat.title for heat in shown(world, MIXED[:2])] == ["Highest false alarm: request 'alarm'"]
    assert shown(world, [MIXED[0], MIXED[3]]) == [], "nothing is wrong, or nothing was read"


def test_an_example_has_its_tokens_roles_scores_and_where_it_fired(world):
    alarm = shown(world, MIXED)[0]
    words = ["<|", "user|>", "8", "-1", "9", "9", "9", "9", "<end>", "<|", "assistant|>"]
    assert alarm.tokens == [f"{word} " for word in words]
    assert alarm.roles == ["template"] * 2 + ["user"] * 6 + ["template"] * 3
    assert alarm.scores == [None, None, 8.0, -1.0, 9.0, 9.0, 9.0, 9.0, None, None, None]
    average = running(np.array([8.0, -1.0, 9.0, 9.0, 9.0, 9.0]), AGGREGATE)
    assert alarm.fired_at == 2 + int((average >= THRESHOLD).argmax()) > 3


@pytest.mark.parametrize("before", [0, 100, 1000])
def test_of_a_long_example_the_part_that_matters_is_shown(world, before):
    (alarm,) = shown(world, [request("long", "0 " * before + "99 99 " + "0 " * 900, 0)])
    assert len(alarm.tokens) == len(alarm.scores) == SHOWN
    assert alarm.tokens[alarm.fired_at] == "99 " and alarm.scores[alarm.fired_at] == 99.0
    assert f" of {before + 907:,}" in alarm.title
    # A miss is shown where it came nearest.
    (miss,) = shown(world, [request("long", "0 " * before + "1 " + "0 " * 900, 1)])
    assert miss.fired_at is None and "1 " in miss.tokens


def test_the_fake_tokenizer_is_read_as_the_definition_says(world):
    """The verdict of what this file scores is that of the reference."""
    scorer = world()
    encoded = scorer.encode([MIXED[2]])
    (scores,) = scorer.score(encoded)
    assert scores.peak[0, 0] == pytest.approx(running(np.array([8.0, -1.0, 9.0, 9.0, 9.0, 9.0]), AGGREGATE).max())
