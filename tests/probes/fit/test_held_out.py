"""What is reported of a probe is what was planted."""

import dataclasses
import re

import numpy as np
import pytest
from msgspec.structs import replace

from probes.data.concepts import Concept
from probes.data.corpus import Sample
from probes.data.examples import Benign, Example
from probes.data.variants import Variant
from probes.evaluation.conclusions import NO_EVIDENCE, sentences
from probes.evaluation.metrics import auroc
from probes.evaluation.results import ProbeReport
from probes.fit.controls import DRAWS
from probes.fit.held_out import SMALLEST, _grouped, evaluate, sweep
from probes.fit.linear import Spans
from probes.fit.material import Material, Ordinary, _material
from probes.fit.selection import Candidate, leave_out, leave_sources_out
from probes.models.activation_store import Rows
from probes.models.chat import Message
from probes.scoring.aggregate import Aggregate
from probes.scoring.roles import Role

pytest.importorskip("sklearn")

HIDDEN, TOKENS, RATE = 8, 6, 0.05
AGGREGATE = Aggregate(half_life=3.0, min_tokens=2)
CONCEPT = Concept("planted", "a test", (Role.USER,), None, aggregates=(AGGREGATE,))
SOURCES = ("one", "two", "three")
NOUNS = ("cat", "dog", "hen", "cow", "pig", "fox", "owl", "bee", "ant", "elk")


class Stored:
    """Rows by layer."""

    def __init__(self, layers):
        self.layers = layers

    def rows(self, layer):
        return self.layers[layer]


def stored(random, states):
    """Rows around the state of each conversation, by layer; ``states`` of shape ``(conversations, hidden)`` each."""
    layers = {}
    for layer, planted in states.items():
        count = len(planted) * TOKENS
        layers[layer] = Rows(
            (np.repeat(planted, TOKENS, axis=0) + random.normal(size=(count, HIDDEN))).astype(np.float32),
            np.full(count, Role.USER, np.uint8),
            np.ones(count, bool),
            np.arange(0, count + 1, TOKENS),
        )
    return Stored(layers)


def plant(
    random,
    *,
    strength=2.0,
    words=False,
    each=60,
    requests=150,
    loud=None,
    negated=False,
    turns=1,
):
    """Examples of three data sets, of which layer 1 shows nothing and layer 2 the label along the first axis.

    Args:
        random: Generator.
        strength: How far the sides are from the middle.
        words: Whether a word gives the label away.
        each: Examples of a data set; two make a group.
        requests: Of each of three benign data sets.
        loud: A benign data set that lies where positives lie.
        negated: Whether half of the examples are, and lie the other way round.
        turns: Messages of a conversation.
    """
    examples, states = [], []
    for source in SOURCES:
        for number in range(each):
            label, turned = number % 2 == 0, negated and number % 4 >= 2
            noun, tone = NOUNS[random.integers(10)], ("red" if label else "blue") if words else "green"
            said = Message("user", f"the {noun} by the {NOUNS[random.integers(10)]} is {tone}")
            examples.append(
                Example(
                    f"{source}-{number}",
                    source,
                    f"{source}:{number // 2}",
                    f"{source} {number % 7}",
                    label,
                    [Message("user", "hello"), Message("assistant", "yes")] * (turns // 2) + [said],
                    ["negated"] if turned else [],
                )
            )
            states.append(strength * (1 if label != turned else -1) * np.eye(HIDDEN)[0])
    benign, quiet = [], []
    for source in ("calm", "plain", "still"):
        for number in range(requests):
            benign.append(Benign(f"{number}", "t", [Message("user", f"what is a {NOUNS[number % 10]}")], source))
            quiet.append((3 if source == loud else -1) * strength * np.eye(HIDDEN)[0])
    states, quiet = np.array(states), np.array(quiet)
    ordinary = Ordinary(
        Sample(benign, [[]] * len(benign), 0, 0, len(benign)),
        stored(random, {1: 0 * quiet, 2: quiet}),
        np.ones(len(benign), bool),
        np.arange(len(benign)) % 5 < 3,
    )
    return _material(
        CONCEPT,
        Sample(examples, [[]] * len(examples), 0, 0, len(examples)),
        stored(random, {1: 0 * states, 2: states}),
        ordinary,
    )


def judge(material: Material, kinds=("mean_difference",), layers=(1, 2)):
    """As :class:`probes.fit.concept_fit.ConceptFit` does."""
    candidates = [Candidate(layer, kind, 1e-2, AGGREGATE) for layer in layers for kind in kinds]
    folds = leave_sources_out(material.data)
    table = leave_out(material.rows, CONCEPT.roles, material.data, candidates, folds, RATE)

    def spans(candidate):
        return Spans(material.rows(candidate.layer), CONCEPT.roles, candidate.aggregate)

    def quiet(candidate):
        rows, which = material.calibration_rows(candidate.layer)
        return Spans(rows, CONCEPT.roles, candidate.aggregate), which

    done = []
    found = evaluate(material, spans, quiet, table, folds, RATE, lambda: done.append(1))
    return found, table, len(done)


def report(found, table):
    return ProbeReport(
        "planted",
        "a test",
        2,
        "mean_difference",
        ["user"],
        0.0,
        RATE,
        "",
        found.splits,
        found.rates,
        sweep=sweep(table),
        roc=found.roc,
        scores=found.scores,
        controls=found.controls,
        calibration=found.reliability,
    )


@pytest.fixture(scope="module")
def planted():
    """A probe that reads what words do not say, and what was found of it."""
    material = plant(np.random.default_rng(0))
    return material, *judge(material)


def test_there_is_a_split_for_each_data_set_and_one_within(planted):
    material, found, _, done = planted
    assert [(split.name, split.kind) for split in found.splits] == [
        *((f"leave-source: {name}", "leave-source") for name in sorted(SOURCES)),
        ("grouped: all sources", "grouped"),
    ]
    assert [(split.n_positive, split.n_negative) for split in found.splits] == [(30, 30)] * 3 + [(90, 90)]
    assert done == len(SOURCES) + 5
    assert [roc.split for roc in found.roc] == sorted(SOURCES)
    assert {name: sum(counts) for name, counts in found.scores.counts.items()} == {
        "shows the concept": 180,
        "does not": 180,
        # Each request of the teaching part is left out by a split once, and once within.
        "benign": 2 * int(material.data.benign.sum()),
    }


def test_a_probe_that_reads_is_shown_to_read(planted):
    _, found, table, _ = planted
    for split in found.splits:
        assert split.auroc.point > 0.97 and split.recall.point > 0.9
        assert split.auroc.low <= split.auroc.point <= split.auroc.high
        assert 0.3 < split.text.tfidf_auroc < 0.7 and 0.3 < split.text.length_auroc < 0.7
        assert split.beats_baselines
        # The first token at which it may fire.
        assert split.tokens_to_detect == (2 if split.kind == "leave-source" else None)
    assert sentences(report(found, table))[0] == "Beats words (TF-IDF) and length on 3 of 3 left-out sources."


def test_the_sweep_tells_the_layers_apart(planted):
    _, _, table, _ = planted
    blind, sighted = sweep(table)
    assert (blind.layer, sighted.layer) == (1, 2)
    assert abs(blind.auroc - 0.5) < 0.1 and blind.recall < 0.3
    assert sighted.auroc > 0.97 and sighted.recall > 0.9
    assert sighted.penalty is None, "a mean difference has none"


def test_controls_show_nothing(planted):
    _, found, _, _ = planted
    controls = found.controls
    assert controls.draws == DRAWS
    assert abs(controls.random_label.point - 0.5) < 0.2
    assert controls.random_label.low <= controls.random_label.point <= controls.random_label.high
    assert controls.selectivity.point > 0.3
    assert controls.selectivity.point == pytest.approx(1.0 - controls.random_label.point, abs=0.05)
    # In whichever sense is better, of eight dimensions one of which tells.
    assert 0.5 < controls.random_direction.point < 0.95


def test_rates_are_of_requests_that_set_no_threshold(planted):
    material, found, _, _ = planted
    assert [rate.source for rate in found.rates] == ["calm", "plain", "still"]
    for rate in found.rates:
        assert rate.requests == 90, "the calibrating part of the source"
        assert rate.left_out and rate.certified, "60 would be enough"
        assert rate.fired / rate.requests <= 3 * RATE and rate.interval.low <= RATE
    assert (material.ordinary.calibrating.sum(), material.data.benign.sum()) == (270, 180)


def test_probabilities_are_true_to_their_word(planted):
    _, found, _, _ = planted
    assert found.reliability.n == 180 and found.reliability.ece < 0.1
    scale, offset = found.probability
    assert scale > 0
    # Of the margin above the threshold: positives are well above, negatives below.
    assert 1 / (1 + np.exp(-(scale * 0 + offset))) < 0.9
    assert 0 < found.seconds_a_token < 1e-3


def test_a_benign_source_that_looks_like_the_concept_is_told():
    found, table, _ = judge(plant(np.random.default_rng(1), loud="plain"))
    fired = {rate.source: rate.fired / rate.requests for rate in found.rates}
    assert fired["plain"] > 0.9
    assert max(fired["calm"], fired["still"]) < 0.1
    text = " ".join(sentences(report(found, table)))
    assert "Fires too often on 'plain'" in text and "Fires too often on 'calm'" not in text


def test_a_probe_that_reads_nothing_is_said_to_read_nothing():
    found, table, _ = judge(plant(np.random.default_rng(2), strength=0.0))
    for split in found.splits:
        assert abs(split.auroc.point - 0.5) < 0.2 and split.auroc.low < 0.5
        assert split.recall.point < 0.3
        assert not split.beats_baselines
    assert abs(found.splits[-1].auroc.point - 0.5) < 0.12
    assert found.controls.selectivity.low <= 0.1
    said = sentences(report(found, table))
    assert said[0].startswith(NO_EVIDENCE)
    assert any(text.startswith("Not selective") for text in said)


def test_words_beat_a_probe_where_they_give_the_label_away():
    found, table, _ = judge(plant(np.random.default_rng(3), strength=0.3, words=True))
    for split in found.splits:
        assert split.text.tfidf_auroc > 0.99 > split.auroc.point > 0.55
        assert split.text.length_auroc < 0.1 or split.text.length_auroc > 0.9, "blue is longer than red"
        assert not split.beats_baselines
    said = sentences(report(found, table))
    assert said[0].startswith(NO_EVIDENCE)
    assert sum(text.startswith("Does not beat words (TF-IDF)") for text in said) == len(found.splits)


def test_negation_that_turns_a_probe_is_told():
    """Where half of the statements lie the other way round, what is read of the others is wrong of these."""
    material = plant(np.random.default_rng(4), negated=True, each=200)
    # Taught mostly by statements that are not negated.
    keep = np.array(["negated" not in item.tags or index % 8 < 4 for index, item in enumerate(material.sample.items)])
    assert keep.mean() == pytest.approx(0.75)
    chosen = [item for item, kept in zip(material.sample.items, keep, strict=True) if kept]
    material = _material(
        CONCEPT,
        Sample(chosen, [[]] * len(chosen), 0, 0, len(chosen)),
        Stored({layer: material.stored.rows(layer).of(keep) for layer in (1, 2)}),
        material.ordinary,
    )
    found, table, _ = judge(material, layers=(2,))
    negations = [split for split in found.splits if split.kind == "negation"]
    assert [split.name for split in negations] == [f"negation: negated of {name}" for name in sorted(SOURCES)]
    for split in negations:
        assert split.auroc.point < 0.1
        assert SMALLEST <= split.n_positive < 30 and SMALLEST <= split.n_negative < 30
    assert any(text.startswith("Inverted on 'negation: negated of one'") for text in sentences(report(found, table)))


def test_conversations_of_several_turns_are_a_slice_of_their_own():
    found, _, _ = judge(plant(np.random.default_rng(5), turns=3), layers=(2,))
    several = [split for split in found.splits if split.kind == "multi-turn"]
    assert len(several) == 3
    for split in several:
        whole = next(other for other in found.splits if other.name == f"leave-source: {split.name.split()[-1]}")
        assert split.auroc == whole.auroc, "all of them are"


def test_slices_too_small_to_tell_are_left_out():
    found, _, _ = judge(plant(np.random.default_rng(6), turns=3, each=2 * SMALLEST - 2), layers=(2,))
    assert {split.kind for split in found.splits} == {"leave-source", "grouped"}


@pytest.mark.parametrize("groups", [5, 6, 9, 50])
def test_each_part_of_the_grouped_split_has_whole_groups_of_either_label(groups):
    material = plant(np.random.default_rng(7), each=2 * groups)
    mine = np.isin(material.data.sources, ["one"]) | material.data.benign
    data = material.data.__class__(
        **{name: getattr(material.data, name)[mine] for name in material.data.__dataclass_fields__}
    )
    small = Material(CONCEPT, material.sample, material.ordinary, data, material.stored)
    folds = _grouped(small)
    assert (np.stack([fold.test for fold in folds]).sum(axis=0) == 1).all()
    for fold in folds:
        assert np.array_equal(fold.fitted, ~fold.test)
        assert not set(data.groups[fold.test]) & set(data.groups[fold.fitted])
        for part in (fold.test, fold.fitted):
            assert (part & data.labels).any() and (part & ~data.labels & ~data.benign).any()
            assert (part & data.benign).any()


def test_the_probe_that_is_judged_was_made_without_what_it_is_judged_on(monkeypatch):
    from probes.fit import held_out as evaluating

    material = plant(np.random.default_rng(8))
    genuine, seen = evaluating.make, []

    def recorded(spans, data, chosen, candidate):
        seen.append(np.flatnonzero(chosen))
        return genuine(spans, data, chosen, candidate)

    monkeypatch.setattr(evaluating, "make", recorded)
    judge(material, layers=(2,))
    sources = material.data.sources
    for at, name in enumerate(sorted(SOURCES)):
        assert name not in set(sources[seen[at]]), "leave-source"
    for at in range(3, 8):
        left = np.setdiff1d(np.arange(len(sources)), seen[at])
        assert not set(material.data.groups[left]) & set(material.data.groups[seen[at]])


def test_variants_are_judged_by_probes_that_saw_neither_them_nor_their_like(monkeypatch):
    """Of a probe that reads the state, one style hides what it reads, and the other leaves it as it is."""
    from probes.fit import held_out as evaluating

    random = np.random.default_rng(11)
    material = plant(random, words=True)
    chosen = material.sample.items[:80]
    varied = [
        Variant("style", name, replace(example, id=f"{example.id} {name}"))
        for name in ("kept", "hidden")
        for example in chosen
    ]
    sign = np.where([variant.example.label for variant in varied], 1.0, -1.0)
    sign[len(chosen) :] = 0
    states = 2.0 * sign[:, None] * np.eye(HIDDEN)[0]
    material = dataclasses.replace(
        material, variants=varied, _variants_stored=stored(random, {1: 0 * states, 2: states})
    )
    genuine, seen = evaluating.make, []

    def recorded(spans, data, chosen, candidate):
        seen.append(set(data.groups[chosen].tolist()))
        return genuine(spans, data, chosen, candidate)

    monkeypatch.setattr(evaluating, "make", recorded)
    read, genuine_peaks = [], Spans.peaks

    def peaks(spans, probe):
        if len(spans.counts) == len(varied):
            read.append(len(seen) - 1)
        return genuine_peaks(spans, probe)

    monkeypatch.setattr(Spans, "peaks", peaks)
    found, _, _ = judge(material, layers=(2,))
    by_name = {split.name: split for split in found.splits if split.kind == "style"}
    assert set(by_name) == {"style: kept", "style: hidden"}
    assert all((split.n_positive, split.n_negative) == (40, 40) for split in by_name.values())
    assert by_name["style: kept"].auroc.point > 0.9
    assert by_name["style: hidden"].auroc.low < 0.5 < by_name["style: hidden"].auroc.high
    # The words are the same in both.
    assert by_name["style: kept"].text == by_name["style: hidden"].text
    # Each was scored with the five probes of the grouped split, of which one had not seen its group.
    assert read == [3, 4, 5, 6, 7]
    for variant in varied:
        assert sum(variant.example.group not in seen[at] for at in read) == 1


def test_choosing_looks_at_the_other_folds_only(monkeypatch):
    """Layer, kind and penalty of a split's probe are those that the other folds would have taken."""
    from probes.fit import held_out as evaluating

    genuine, asked = evaluating.choose, []
    monkeypatch.setattr(
        evaluating, "choose", lambda table, without=None: asked.append(without) or genuine(table, without)
    )
    judge(plant(np.random.default_rng(9)))
    assert asked == [0, 1, 2, None]


def test_scores_are_margins_over_the_threshold(planted):
    _, found, _, _ = planted
    edges, counts = np.array(found.scores.edges), found.scores.counts
    middle = (edges[1:] + edges[:-1]) / 2
    over = {name: float(np.array(row)[middle > 0].sum() / np.sum(row)) for name, row in counts.items()}
    assert over["shows the concept"] > 0.9 and over["benign"] < 0.15


def test_curves_have_the_area_that_their_split_reports(planted):
    _, found, _, _ = planted
    for roc, split in zip(found.roc, found.splits, strict=False):
        rates, recalls = np.array(roc.points).T
        # Steps lie on or below the curve.
        area = float((np.diff(rates) * recalls[:-1]).sum())
        assert split.auroc.point - 0.1 < area <= split.auroc.point + 1e-9


def test_a_single_data_set_is_judged_by_topic():
    material = plant(np.random.default_rng(10), each=140)
    mine = np.isin(material.data.sources, ["one"])
    chosen = [item for item in material.sample.items if item.source == "one"]
    material = _material(
        CONCEPT,
        Sample(chosen, [[]] * len(chosen), 0, 0, len(chosen)),
        Stored({layer: material.stored.rows(layer).of(mine[: len(material.sample.items)]) for layer in (1, 2)}),
        material.ordinary,
    )
    found, table, _ = judge(material, layers=(2,))
    assert {split.kind for split in found.splits} == {"leave-topic", "grouped"}
    assert sentences(report(found, table))[0].startswith("No source was left out of fitting")
    assert all(re.fullmatch(r"leave-topic: topics \d", split.name) for split in found.splits[:-1])


def test_the_data_of_these_tests_are_what_they_say():
    """Or what is shown of probes would be of something else."""
    material = plant(np.random.default_rng(11))
    ends = Spans(material.rows(2), CONCEPT.roles, AGGREGATE).means(np.arange(TOKENS - 1, 180 * TOKENS, TOKENS))
    labels = material.data.labels[:180]
    assert auroc(ends[labels, 0], ends[~labels, 0]) > 0.99
    assert abs(auroc(ends[labels, 1], ends[~labels, 1]) - 0.5) < 0.15
