"""A report says what its numbers say, shows what it was given and nothing else, and comes back from disk unchanged."""

import os
import re
from html.parser import HTMLParser
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from probes.errors import PlumbobError
from probes.evaluation.conclusions import sentences
from probes.evaluation.metrics import Interval, proportion, roc_points
from probes.evaluation.wording import number, percent
from probes.report import (
    HTML,
    JSON,
    NO_EVIDENCE,
    AtRate,
    Baseline,
    Causal,
    Controls,
    Given,
    Heatmap,
    Histogram,
    ProbeReport,
    Rate,
    Reliability,
    Report,
    ReportError,
    Roc,
    Split,
    SweepPoint,
    figures,
    read,
    render,
    require_renderer,
    templating,
    write,
)

replace = msgspec.structs.replace
HOSTILE = "<script>alert(1)</script> & \"quoted\" 'single' $x_1$ \x00 https://example.invalid/"


def split(name="grouped", kind="grouped", auroc=(0.9, 0.85, 0.94), recall=(0.6, 0.5, 0.7), tfidf=0.7, length=0.55):
    text = Baseline(tfidf, 0.3, length)
    return Split(name, kind, 120, 400, Interval(*auroc), recall and Interval(*recall), text, tokens_to_detect=9.0)


def probe(name="harmful_intent", **changes):
    """One of which everything was measured, and which is as good as can be."""
    random = np.random.default_rng(0)
    positive, negative = random.normal(2, 1, 120), random.normal(0, 1, 400)
    given = {
        "definition": "the user asks for help with doing harm",
        "layer": 12,
        "kind": "logistic",
        "roles": ["user"],
        "threshold": 1.25,
        "nominal": 0.01,
        "aggregate": "mean with a half-life of 12 tokens, after 4 tokens",
        "splits": [split(), split("leave-source: a", "leave-source"), split("leave-source: b", "leave-source")],
        "false_positives": [
            Rate.of("ifeval", 4, 500, 0.01, left_out=True),
            Rate.of("oasst", 3, 900, 0.01, left_out=False),
        ],
        "sweep": [
            SweepPoint(8, "logistic", 0.01, 0.4, 0.8),
            SweepPoint(12, "logistic", 0.01, 0.5, 0.85),
            SweepPoint(12, "logistic", 0.1, 0.6, 0.9),
            SweepPoint(12, "mass-mean", None, 0.3, 0.88),
        ],
        "roc": [Roc("leave-source: a", 120, 400, roc_points(positive, negative))],
        "scores": Histogram.of({"positive": positive, "benign": [*negative, -np.inf, -np.inf]}),
        "heatmaps": [
            Heatmap("A request", ["<s>", "Make", "\n", " it"], ["template", *["user"] * 3], [None, 1, -2, 0.5], 1)
        ],
        "causal": Causal(
            "the share refused",
            100,
            Interval(0.5, 0.4, 0.6),
            Interval(0.1, 0.05, 0.2),
            Interval(0.9, 0.8, 0.95),
            Interval(0.5, 0.4, 0.6),
            "The model uses it.",
        ),
        "controls": Controls(10, Interval(0.5, 0.45, 0.55), Interval(0.4, 0.35, 0.45), Interval(0.6, 0.55, 0.65)),
        "calibration": Reliability(500, 15, 0.031),
        "seconds_a_token": 2e-6,
    }
    return ProbeReport(name=name, **{**given, **changes})


def report(*probes, **changes):
    given = {
        "plumbob": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "model": "SmolLM2",
        "command": "plumbob eval BUNDLE --data X.jsonl",
    }
    return Report(probes=list(probes), **{**given, **changes})


def said(text, *parts):
    """The one sentence that begins so, which must hold the parts."""
    (sentence,) = [sentence for sentence in sentences(text) if sentence.startswith(parts[0])]
    for part in parts[1:]:
        assert part in sentence, sentence
    return sentence


def silent(text, *begins):
    assert not [sentence for sentence in sentences(text) if sentence.startswith(begins)]


FAULTS = (
    "No evidence",
    "No source",
    "Inverted",
    "Not told",
    "Does not beat",
    "Recall at",
    "Fires too often",
    "Not certified",
    "No benign source",
    "Not selective",
    "Random",
    "No causal",
    "Causal,",
    "Adding",
)


def test_a_probe_without_fault_is_told_its_worst_figures_and_no_fault():
    good = probe()
    said(good, "Beats words (TF-IDF) and length on 2 of 2 left-out sources.")
    said(good, "Worst split: 'grouped'", "recall 60% (50% to 70%) at the threshold, 120 positives and 400 negatives.")
    said(good, "Highest false-positive rate: 0.8% (", "'ifeval' (4 of 500 requests), nominal 1%.")
    said(good, "Causal check on 100 prompts")
    silent(good, *FAULTS)


@pytest.mark.parametrize(
    ("low", "tfidf", "length", "beats"),
    [(0.71, 0.7, 0.7, True), (0.7, 0.7, 0.5, False), (0.7, 0.5, 0.7, False), (0.6, 0.7, 0.7, False)],
)
def test_to_beat_a_baseline_the_whole_interval_must_lie_above_it(low, tfidf, length, beats):
    only = split("leave-source: a", "leave-source", auroc=(0.8, low, 0.9), tfidf=tfidf, length=length)
    text = probe(splits=[split(), only])
    assert sentences(text)[0].startswith(NO_EVIDENCE) is not beats
    assert any("(TF-IDF) on 'leave-source: a'" in sentence for sentence in sentences(text)) is (low <= tfidf)
    assert any("length on 'leave-source: a'" in sentence for sentence in sentences(text)) is (low <= length)


def test_the_first_sentence_counts_left_out_sources_alone():
    poor = split("leave-source: a", "leave-source", auroc=(0.8, 0.6, 0.9))
    said(probe(splits=[split(), poor]), f"{NO_EVIDENCE} On none of 1 left-out source does it")
    said(probe(splits=[poor, split("leave-source: b", "leave-source")]), "Beats words (TF-IDF) and length on 1 of 2")
    assert sentences(probe(splits=[split()]))[0].startswith("No source was left out")
    said(
        probe(splits=[poor]),
        "Does not beat words (TF-IDF) on 'leave-source: a'",
        "AUROC 0.800 (0.600 to 0.900)",
        "0.700",
    )


def test_an_inverted_split_is_named_and_not_merely_weak():
    text = probe(splits=[split("negation", "negation", auroc=(0.04, 0.02, 0.07))])
    assert "chance" not in said(text, "Inverted on 'negation': AUROC 0.040 (0.020 to 0.070)", "against 0.700 for words")
    silent(text, "Does not beat")
    said(probe(splits=[split(auroc=(0.48, 0.4, 0.56))]), "Inverted on", "the interval includes chance")


def test_the_worst_split_is_that_of_the_lowest_recall_and_without_any_of_the_lowest_auroc():
    one = split("one", recall=(0.5, 0.4, 0.6), auroc=(0.7, 0.6, 0.8))
    two = split("two", recall=(0.4, 0.3, 0.5))
    none = split("none", recall=None, auroc=(0.1, 0.0, 0.2))
    said(probe(splits=[one, none, two]), "Worst split: 'two'", "recall 40%")
    said(probe(splits=[replace(one, recall=None), none]), "Worst split: 'none', AUROC 0.100")
    silent(probe(splits=[]), "Worst split")


def test_too_few_negatives_are_named_with_how_many_it_takes():
    text = probe(splits=[split("one", recall=None), split("two", recall=None), split("three")])
    said(text, "Recall at 1% false positives is not certifiable on 'one' and 'two': it takes 300 negatives.")


def test_false_positives_above_the_nominal_rate_beyond_chance_are_named():
    rates = [
        Rate.of("surely", 55, 500, 0.01, left_out=True),
        Rate.of("perhaps", 8, 500, 0.01, left_out=True),
        Rate.of("few", 30, 100, 0.01, left_out=True),
    ]
    text = probe(false_positives=rates)
    said(text, "Fires too often on 'surely': 11% (", "500 requests", "nominal 1%")
    silent(text, "Fires too often on 'perhaps'")
    said(text, "Fires too often on 'few'")
    said(text, "Highest false-positive rate: 30%", "'few' (30 of 100 requests)")
    said(text, "Not certified at 1%: 'few'. It takes 300 requests")


def test_a_rate_that_was_not_measured_or_not_left_out_is_owned_to():
    said(probe(false_positives=[]), "False positives on benign requests were not measured.")
    silent(probe(false_positives=[]), "Highest", "No benign source")
    said(probe(false_positives=[Rate.of("a", 0, 400, 0.01, left_out=False)]), "No benign source was left out")


def test_controls_that_do_as_well_are_named():
    controls = Controls(10, Interval(0.85, 0.8, 0.9), Interval(0.05, 0.0, 0.1), Interval(0.8, 0.7, 0.86))
    text = probe(controls=controls)
    said(text, "Not selective", "0.050 (0.000 to 0.100), 10 draws")
    said(text, "Random directions come near it on 'grouped'", "0.800 (0.700 to 0.860)")
    said(probe(controls=None), "Random labels and random directions were not tried.")


def test_the_causal_check_speaks_for_itself():
    causal = Causal("it", 100, Interval(0.5, 0.4, 0.6), None, Interval(0.9, 0.8, 1.0), None, "Adding it raises it.")
    said(probe(causal=causal), "Causal check on 100 prompts: Adding it raises it.")


@pytest.mark.parametrize(
    "causal", [None, Causal("it", 100, Interval(0.5, 0.4, 0.6), None, None, None, "Nothing was tried.")]
)
def test_a_causal_check_that_tried_nothing_is_none(causal):
    said(probe(causal=causal), "No causal check was made")
    silent(probe(causal=causal), "Causal check on")


def part(name="all", auroc=(0.9, 0.85, 0.94), recall=(0.6, 0.5, 0.7), tfidf=0.7, at=(0.4, None), **changes):
    given = {
        "auroc": auroc and Interval(*auroc),
        "recall": recall and Interval(*recall),
        "at_rates": [
            AtRate(rate, value and Interval(value, 0.1, 0.8)) for rate, value in zip((0.01, 0.001), at, strict=True)
        ],
        "text": tfidf and Baseline(tfidf, None, min(tfidf, 0.5)),
        "tokens_to_detect": 7.5,
    }
    return Given(name, changes.pop("n_positive", 50), changes.pop("n_negative", 320), **given, **changes)


def judged(*parts, **changes):
    """A probe on data of a user's: no splits, controls or causes."""
    nothing = {"splits": [], "controls": None, "causal": None, "sweep": [], "heatmaps": [], "calibration": None}
    rates = [Rate.of("all", 20, 320, 0.01, left_out=None), Rate.of("source=a", 1, 40, 0.01, left_out=False)]
    return probe(given=list(parts), **{**nothing, "false_positives": rates, **changes})


def test_data_that_were_given_are_spoken_of_as_such():
    text = judged(part(), part("source=a", recall=(0.3, 0.2, 0.4), auroc=(0.8, 0.6, 0.9)))
    assert sentences(text)[0].startswith("Beats words (TF-IDF) and length on 1 of 2 parts of the data given.")
    assert "learnt on the data themselves" in sentences(text)[0]
    said(text, "Lowest recall: 30% (20% to 40%) at the threshold, on 'source=a', 50 positives and 320 negatives.")
    said(text, "Does not beat words (TF-IDF) on 'source=a': AUROC 0.800 (0.600 to 0.900)", "against 0.700")
    said(text, "Recall at 0.1% false positives of these data is not certifiable: it takes 3,000 negatives", "are 320.")
    said(text, "Fires too often on 'all'")
    silent(text, "No source", "No evidence", "Random", "No causal", "No benign source", "Recall at 1%", "Worst split")
    assert sentences(judged(part(auroc=(0.8, 0.6, 0.9))))[0].startswith(
        "Does not beat words (TF-IDF) and length on any"
    )


def test_of_data_with_one_label_only_what_is_known_is_said():
    one_sided = {"auroc": None, "tfidf": None}
    positive = judged(replace(part(**one_sided), n_negative=0, at_rates=[]), false_positives=[])
    assert sentences(positive)[0] == (
        "No request is labelled 0: of the data given, recall alone is known (50 positives and 0 negatives)."
    )
    assert len(sentences(positive)) == 2, sentences(positive)
    negative = judged(replace(part(recall=None, **one_sided), n_positive=0, at_rates=[]))
    assert sentences(negative)[0].startswith(
        "No request is labelled 1: of the data given, the false-positive rate alone"
    )
    silent(negative, "Lowest recall", "Does not")
    lucky = judged(part(auroc=(0.52, 0.45, 0.6), tfidf=0.3), part("source=a"))
    assert sentences(lucky)[0].startswith("Beats words (TF-IDF) and length on 1 of 2 parts"), "to beat less than chance"
    said(lucky, "Not told from chance on 'all': AUROC 0.520 (0.450 to 0.600)")
    none = judged(part(tfidf=None))
    assert sentences(none)[0].startswith("On the data given, no baseline could be made")
    said(
        judged(part(tfidf=None, auroc=(0.3, 0.2, 0.4))), "Inverted on 'all': AUROC 0.300 (0.200 to 0.400), 50 positives"
    )


def test_a_rate_knows_its_interval_and_whether_it_is_certified():
    rate = Rate.of("a", 2, 299, 0.01, left_out=True)
    assert rate.interval == proportion(2, 299) and not rate.certified
    assert Rate.of("a", 2, 300, 0.01, left_out=True).certified


def test_a_histogram_counts_every_request_once():
    scores = {"positive": np.linspace(-3, 5, 90), "benign": np.array([0.0, 1.0, -np.inf])}
    histogram = Histogram.of(scores)
    assert {name: sum(counts) for name, counts in histogram.counts.items()} == {"positive": 90, "benign": 2}
    assert histogram.silent == {"positive": 0, "benign": 1}
    assert (histogram.edges[0], histogram.edges[-1]) == (-3.0, 5.0)
    assert sum(map(sum, Histogram.of({"benign": [-np.inf]}).counts.values())) == 0
    with pytest.raises(ValueError, match=r"finite|autodetected"):
        Histogram.of({"benign": [np.nan]})


@pytest.mark.parametrize(
    ("rate", "shown"),
    [
        (0, "0%"), (1e-7, "< 0.001%"), (0.00031, "0.031%"), (0.0044, "0.44%"), (0.01, "1%"), (0.1149, "11.5%"),
        (0.999, "99.9%"), (0.9996, "> 99.9%"), (1, "100%"),
    ],
)  # fmt: skip
def test_a_rate_is_not_rounded_to_none_or_all(rate, shown):
    assert percent(rate) == shown


def test_what_rounds_to_nought_has_no_sign():
    assert [number(value) for value in (-0.0004, -0.25, 0.25)] == ["0.000", "−0.250", "0.250"]


# What is drawn.


class Page(HTMLParser):
    """A page as a browser reads it: elements balanced, text of tables by cell, ids, and what is loaded."""

    VOID = ("meta", "br", "hr")

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.ids, self.references, self.rows = [], [], [], [], []
        self.tokens, self.text = [], ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.references += [value for name, value in attrs if name in ("href", "xlink:href", "src")]
        self.references += re.findall(r"url\(([^)]*)\)", attributes.get("clip-path") or "")
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            assert "@import" not in data and "url(" not in data
            return
        self.text += data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, first):
        (found,) = [row for row in self.rows if row[0] == first]
        return found


@pytest.fixture(scope="module")
def drawn():
    pytest.importorskip("matplotlib")
    return render(report(probe(), probe("toxicity"), notes=["Read on two cores."], fingerprint={"weights": "ab12"}))


@pytest.fixture(scope="module")
def page(drawn):
    return Page(drawn)


def test_the_page_is_whole_and_loads_nothing(drawn, page):
    assert "://" not in drawn
    assert "<script" not in drawn
    assert page.of("meta")[1]["content"].startswith("default-src 'none'")
    assert len(page.ids) == len(set(page.ids))
    assert page.references, "figures refer to their own parts"
    assert {reference.removeprefix("#") for reference in page.references} <= set(page.ids)
    assert len(page.of("svg")) == 6
    assert all(svg["role"] == "img" and svg["aria-label"] and svg["viewbox"] for svg in page.of("svg"))
    assert len(page.of("caption")) == len(page.of("table")) == 15
    assert {head["scope"] for head in page.of("th")} == {"col", "row"}


def test_ink_follows_the_page_into_the_dark(drawn):
    figure = drawn[drawn.index("<svg") : drawn.index("</svg>")]
    assert "currentColor" in figure and figures.INK not in figure
    assert "#000000" not in figure and "#ffffff" not in figure
    assert "font-family" not in figure and "<style" not in figure


def test_the_first_thing_said_of_a_probe_is_its_verdict(page):
    section = page.text[page.text.index("A high score means") :]
    said_first = section[: section.index("Splits, with baselines")]
    for sentence in sentences(probe()):
        assert sentence in said_first
    assert page.row("toxicity")[-1] == sentences(probe())[0]


def test_the_tables_hold_the_numbers_with_n_and_interval():
    pytest.importorskip("matplotlib")
    page = Page(render(report(probe(splits=[split(), split("few", recall=None)], remarks=["Too small a model."]))))
    assert page.row("few") == [
        "few", "120", "400", "0.900 (0.850 to 0.940)", "0.700", "0.550", "yes", "not certifiable", "30%", "9",
    ]  # fmt: skip
    assert page.row("grouped")[7] == "60% (50% to 70%)"
    assert page.row("ifeval") == ["ifeval", "500", "4", "0.8% (0.22% to 2%)", "agrees", "left out"]
    assert page.row("harmful_intent")[1:5] == [
        "none was left out",
        "grouped: recall 60% (50% to 70%)",
        "0.8% (0.22% to 2%), ifeval, n 500",
        "layer 12, logistic",
    ]
    assert page.row("mass-mean") == ["mass-mean", "12", "none", "30%", "0.880", ""]
    assert ["logistic", "12", "0.1", "60%", "0.900", "chosen"] in page.rows
    assert page.row("leave-source: a")[:5] == ["leave-source: a", "120", "400", "from 0.75%", "not certifiable"]
    assert page.row("benign") == ["benign", "400", "2"]
    assert page.row("direction added") == ["direction added", "0.900 (0.800 to 0.950)"]
    assert page.row("Random direction, AUROC") == ["Random direction, AUROC", "0.600 (0.550 to 0.650)"]
    assert "off by 3.1% on average" in page.text and "Too small a model." in page.text and "2 µs a token" in page.text


def test_the_figures_on_given_data_are_a_table_of_their_own():
    pytest.importorskip("matplotlib")
    parts = [part(), part("source=a", auroc=None, tfidf=None, at=(None, None)), part("source=b", recall=None)]
    parts[1] = replace(parts[1], at_rates=[], tokens_to_detect=None)
    page = Page(render(report(judged(*parts))))
    assert page.row("Part of the data")[7:10] == ["Recall at the threshold", "Recall at 1%", "Recall at 0.1%"]
    rows = [row for row in page.rows if row[0] in ("all", "source=a", "source=b") and len(row) == 11]
    assert rows[:2] == [
        ["all", "50", "320", "0.900 (0.850 to 0.940)", "0.700", "0.500", "yes", "60% (50% to 70%)", "40% (10% to 80%)",
         "not certifiable", "7.5"],
        ["source=a", "50", "320", "too few", "none", "none", "", "60% (50% to 70%)", "", "", "never fired"],
    ]  # fmt: skip
    assert rows[2][7] == "no positives"
    summary = page.row("harmful_intent")
    assert summary[1:3] == ["2 of 2 parts of the data given", "all: recall 60% (50% to 70%)"]
    assert Page(render(report(judged(part(tfidf=None))))).row("harmful_intent")[1] == "not compared"
    known = [row[-1] for row in page.rows if len(row) == 6 and row[0] in ("all", "source=a")]
    assert known == ["not known", "used"]
    assert "False positives on requests labelled 0" in page.text


def test_each_token_is_shown_with_its_score_and_where_the_probe_fired(page):
    spans = [span for span in page.of("span") if "title" in span][:4]
    assert [span["title"] for span in spans] == ["not read (template)", "1.000 (user)", "−2.000 (user)", "0.500 (user)"]
    assert [span.get("class") for span in spans] == ["unread", "fired", None, None]
    assert [span.get("style") for span in spans] == [
        None,
        "background:rgb(var(--high)/0.30)",
        "background:rgb(var(--low)/0.60)",
        "background:rgb(var(--high)/0.15)",
    ]
    assert "<s>userMakefired here⏎\n it" in page.text
    assert "The probe fired at token 2 of 4. Highest scores a token: ‘Make’ 1.000, ‘ it’ 0.500" in page.text


def test_the_curve_is_thick_only_where_the_negatives_can_show_it(monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    def axes_of(draw, *_, **__):
        axes = Figure().add_subplot()
        draw(axes)
        return axes

    monkeypatch.setattr(figures, "svg", axes_of)
    curve = Roc("a", 10, 100, [(0.0, 0.2), (0.01, 0.4), (0.05, 0.7), (1.0, 1.0)])
    axes = figures.roc([curve], 0.01, "x")
    thin, thick, nominal = axes.lines
    assert thin.get_xydata().tolist() == [[0.0005, 0.2], [0.01, 0.4], [0.05, 0.7], [1.0, 1.0], [1.0, 1.0]]
    assert thick.get_xydata().tolist() == [[0.03, 0.4], [0.05, 0.7], [1.0, 1.0], [1.0, 1.0]]
    assert nominal.get_xdata() == [0.01, 0.01]
    assert axes.get_xscale() == "log" and axes.get_xlim() == (1e-3, 1.0)


def test_a_class_that_was_half_silent_is_drawn_half_as_high(monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(figures, "svg", lambda draw, *_, **__: draw(drawn.append(Figure().add_subplot()) or drawn[-1]))
    figures.histogram(Histogram([0.0, 1.0, 2.0], {"benign": [1, 3]}, {"benign": 4}), 1.5, "x")
    filled, outline = drawn[0].patches
    assert filled.get_data().values.tolist() == outline.get_data().values.tolist() == [1 / 8, 3 / 8]


def test_no_two_lines_of_a_figure_look_alike():
    styles = [figures.line_style(index) for index in range(18)]
    assert len(set(styles)) == 18
    assert all(one.colour != two.colour and one.dash != two.dash for one, two in pairwise(styles[:6]))


def test_what_a_report_holds_is_text_and_never_markup():
    pytest.importorskip("matplotlib")
    hostile = probe(
        HOSTILE,
        definition=HOSTILE,
        kind=HOSTILE,
        roles=[HOSTILE],
        aggregate=HOSTILE,
        splits=[split(HOSTILE, "leave-source")],
        false_positives=[Rate.of(HOSTILE, 0, 10, 0.01, left_out=True)],
        sweep=[SweepPoint(1, HOSTILE, None, 0.5, 0.5)],
        roc=[Roc(HOSTILE, 3, 4, [(0.0, 0.5), (1.0, 1.0)])],
        scores=Histogram.of({HOSTILE: [1.0, 2.0]}),
        heatmaps=[Heatmap(HOSTILE, [HOSTILE], [HOSTILE], [1.0], 0)],
        causal=Causal(HOSTILE, 1, Interval(0, 0, 1), Interval(0, 0, 1), None, None, HOSTILE),
        remarks=[HOSTILE],
    )
    drawn = render(report(hostile, model=HOSTILE, command=HOSTILE, notes=[HOSTILE], fingerprint={HOSTILE: HOSTILE}))
    page = Page(drawn)
    assert not page.of("script") and "\x00" not in drawn
    assert page.text.count("<script>alert(1)</script> & \"quoted\" 'single' $x_1$ \N{REPLACEMENT CHARACTER}") > 20
    # In an attribute, a quote would end it.
    assert any(span.get("title", "").endswith("invalid/)") for span in page.of("span"))


def test_a_value_that_a_page_was_not_given_is_an_error_and_not_a_gap():
    jinja2 = pytest.importorskip("jinja2")
    with pytest.raises(jinja2.UndefinedError, match="report"):
        templating.render_template("report.html", title="A page", probes=[])


def test_what_was_not_measured_is_not_drawn():
    bare = probe(sweep=[], roc=[], scores=None, heatmaps=[], causal=None, controls=None, calibration=None)
    page = Page(render(report(replace(bare, splits=[], false_positives=[], seconds_a_token=None))))
    assert not page.of("svg") and len(page.of("table")) == 1
    assert page.row("harmful_intent")[1:4] == ["none was left out", "none", "not measured"]
    assert "no probes" in Page(render(report())).text


# On disk.


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_what_is_written_is_read_back_and_drawn_again_byte_for_byte(tmp_path):
    pytest.importorskip("matplotlib")
    written = report(probe(remarks=["So it is."]))
    for name in ("one", "two"):
        write(written, tmp_path / "new" / name)
    one, two = tmp_path / "new" / "one", tmp_path / "new" / "two"
    assert contents(one).keys() == {HTML, JSON}
    assert contents(one) == contents(two)
    back = read(one)
    assert back == read(one / JSON)
    assert back.probes[0].verdict_says == sentences(probe())
    assert replace(back, probes=[replace(back.probes[0], verdict_says=[])]) == written
    assert render(back).encode() == (one / HTML).read_bytes()


def test_a_verdict_that_contradicts_its_numbers_is_not_shown(tmp_path):
    flattering = probe(splits=[], roc=[], sweep=[], scores=None, verdict_says=["Perfect."])
    assert "Perfect." not in render(report(flattering))
    write(report(flattering), tmp_path)
    assert "Perfect." not in (tmp_path / JSON).read_text()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"threshold": float("nan")}, r"report\.probes\[0\]\.threshold"),
        ({"splits": [split(auroc=(0.9, float("-inf"), 1.0))]}, r"report\.probes\[0\]\.splits\[0\]\.auroc\.low"),
        ({"seconds_a_token": float("nan")}, "seconds_a_token"),
        ({"definition": "\ud800"}, "surrogates"),
        ({"layer": "twelve"}, r"layer"),
        ({"nominal": 1.5}, "nominal"),
        ({"remarks": [object()]}, "object"),
    ],
)
def test_what_cannot_be_read_back_is_not_written(tmp_path, changes, names):
    (tmp_path / JSON).write_text("the earlier one")
    with pytest.raises(ReportError, match=names):
        write(report(probe(**changes)), tmp_path)
    assert contents(tmp_path) == {JSON: b"the earlier one"}


def test_numbers_of_numpy_are_numbers(tmp_path):
    bare = {"roc": [], "sweep": [], "scores": None, "heatmaps": []}
    for threshold in (np.float32(1.25), np.float64(1.25)):
        write(report(probe(threshold=threshold, layer=np.int64(12), **bare)), tmp_path)
        assert read(tmp_path).probes[0] == replace(probe(**bare), verdict_says=sentences(probe(**bare)))


@pytest.mark.parametrize("fits", [0, 1])
def test_a_full_disk_leaves_the_earlier_report_whole(tmp_path, monkeypatch, fits):
    bare = probe(roc=[], sweep=[], scores=None)
    write(report(bare), tmp_path)
    before, opened, really = contents(tmp_path), [], os.fdopen

    def full(handle, mode):
        opened.append(handle)
        if len(opened) > fits:
            os.close(handle)
            raise OSError(28, "No space left on device")
        return really(handle, mode)

    monkeypatch.setattr("probes.report.files.os.fdopen", full)
    with pytest.raises(ReportError, match="No space left on device"):
        write(report(replace(bare, name="other")), tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no report"),
        (b"{}", "is no report"),
        (b'{"format": 2}', r"has format 2; this plumbob reads format 1"),
        (b'{"format": 1, "probes": []}', "is no report.*missing"),
        (b"\xff\xfe", "is no report"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, content, says):
    (tmp_path / JSON).write_bytes(content)
    with pytest.raises(ReportError, match=says):
        read(tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["probes", 0, "splits", 0, "kind"], "leave-nothing"),
        (["probes", 0, "splits", 0, "text", "tfidf_auroc"], 1.2),
        (["probes", 0, "splits", 0, "auroc", "low"], None),
        (["probes", 0, "false_positives", 0, "fired"], -1),
        (["probes", 0, "roc", 0, "points"], []),
        (["probes", 0, "scores", "counts", "positive"], [1]),
        (["probes", 0, "scores", "edges", 0], 1e9),
        (["probes", 0, "heatmaps", 0, "tokens"], ["one"]),
        (["probes", 0, "heatmaps", 0, "fired_at"], 4),
    ],
)
def test_a_report_that_was_tampered_with_is_refused(tmp_path, path, value):
    from probes.report.files import encode

    plain = msgspec.json.decode(encode(report(probe())))
    inner = plain
    for step in path[:-1]:
        inner = inner[step]
    assert inner[path[-1]] != value
    inner[path[-1]] = value
    (tmp_path / JSON).write_bytes(msgspec.json.encode(plain))
    with pytest.raises(ReportError, match="is no report"):
        read(tmp_path)


def test_a_missing_report_and_a_directory_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ReportError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="cannot be written"):
        write(report(), tmp_path / "file")


def test_figures_that_cannot_be_drawn_are_refused_before(monkeypatch, tmp_path):
    monkeypatch.setattr(templating.importlib.util, "find_spec", lambda name: None if name == "jinja2" else True)
    with pytest.raises(PlumbobError, match=r"needs jinja2\..*plumbob\[bench\]"):
        require_renderer()
    monkeypatch.setattr(templating.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlumbobError, match="matplotlib"):
        write(report(), tmp_path / "new")
    assert not (tmp_path / "new").exists()
