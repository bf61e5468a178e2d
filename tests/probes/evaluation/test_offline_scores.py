"""Offline verdicts: those of a straightforward recomputation, and those of the monitor."""

import dataclasses
import shutil
from itertools import pairwise
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from monitor.verdicts import VerdictTable
from monitor.wire.frames import Started
from probes.bundle import load_bundle, save_bundle
from probes.bundle.manifest import Probability
from probes.data.requests import Request, RequestError
from probes.errors import BundleError, ModelError
from probes.evaluation import offline_scores as scoring
from probes.evaluation.offline_scores import Scorer, Scores, open_scorer, score_requests
from probes.models.activations import TransformersSource
from probes.models.chat import Message
from probes.scoring.aggregate import running
from probes.scoring.roles import Role, RoleReader
from tests.harness.frames import make_frame
from tests.harness.offline_bundles import WINDOW, assistant, bundle, user, with_workers  # noqa: F401

torch = pytest.importorskip("torch")


REQUESTS = (
    Request("question", (user("What do bees eat today?"),)),
    Request(7, (user("Tell me about the little red boat."), assistant("It is warm in the red house."))),
    Request("long", (user("Is it warm in the red house or the blue house? " * 6),)),
    Request("plain", prompt="Tell me about the little blue boat. "),
    Request("short", (user("It"), assistant("They eat nectar."))),
    Request("turns", (Message("system", "You answer."), user("Thank you!"), assistant("Thank you!"), user("Is it?"))),
)


@pytest.fixture(scope="module")
def source(tiny_model):
    return TransformersSource(tiny_model, dtype="float32")


@pytest.fixture
def scorer(bundle, source):
    return Scorer(bundle, source, source.tokenizer)


def recomputed(bundle, source, request, tokens=None):
    """Token ids, roles and scores ``(tokens, probes)``: one request, alone, as the definitions say."""
    if request.messages:
        written = [{"role": message.role, "content": message.content} for message in request.messages]
        answered = written[-1]["role"] == "assistant"
        text = source.tokenizer.apply_chat_template(written, tokenize=False, add_generation_prompt=not answered)
        ids = source.tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]
    else:
        ids = source.tokenizer(request.prompt)["input_ids"][:tokens]
    with torch.inference_mode():
        states = source.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    columns = [
        states[probe.layer + 1][0].numpy().astype(np.float64) @ weight + bias
        for probe, weight, bias in zip(bundle.probes, bundle.weight, bundle.bias, strict=True)
    ]
    return ids, RoleReader(bundle.manifest.markers).prompt(ids), np.array(columns).reshape(-1, len(ids)).T


def expected(bundle, source, request, tokens=None):
    """``(peak, tokens, fired_at)`` of each probe."""
    _, roles, scores = recomputed(bundle, source, request, tokens)
    found = []
    for column, probe in enumerate(bundle.probes):
        at = np.flatnonzero(np.isin(roles, [Role[name.upper()] for name in probe.roles]))
        aggregate = running(scores[at, column], probe.aggregate)
        over = np.flatnonzero(aggregate >= probe.threshold)
        found.append((aggregate.max(initial=-np.inf), len(at), at[over[0]] if len(over) else -1))
    return [np.array(column) for column in zip(*found, strict=True)]


def assert_equal(scores: Scores, wanted):
    for row, (peak, tokens, fired_at) in enumerate(wanted):
        np.testing.assert_allclose(scores.peak[row], peak, rtol=1e-4, atol=1e-4)
        assert scores.tokens[row].tolist() == tokens.tolist()
        assert scores.fired_at[row].tolist() == fired_at.tolist()
    assert len(scores) == len(wanted)


def test_verdicts_are_those_of_a_recomputation(bundle, source, scorer):
    wanted = [expected(bundle, source, request) for request in REQUESTS]
    fired = np.array([fired_at for _, _, fired_at in wanted]) >= 0
    peaks = np.array([peak for peak, _, _ in wanted])
    assert fired.any(axis=0).all() and not fired.all(axis=0).any(), "the test would show little"
    assert np.isinf(peaks).any() and np.isfinite(peaks).any(axis=0).all()
    assert_equal(score_requests(scorer, REQUESTS), wanted)


def test_verdicts_are_those_of_the_monitor(bundle, scorer, source):
    """The same rows and scores in a frame give the same peaks, counts and tokens."""
    scores = score_requests(scorer, REQUESTS)
    table = VerdictTable(bundle)
    for row, request in enumerate(REQUESTS):
        ids, roles, measured = recomputed(bundle, source, request)
        started = [Started(0, str(request.id), "", len(ids))]
        # A step to compute half of the prompt, and one a token from there.
        cuts = [0, len(ids) // 2, *range(len(ids) // 2 + 1, len(ids) + 1)]
        for at, (begin, end) in enumerate(pairwise(cuts)):
            rows = [(0, position, roles[position], 0) for position in range(begin, end)]
            table.apply(make_frame(at, rows, measured[begin:end], started=started if not at else []), "tiny")
        readings = table.apply(make_frame(99, finished=[0]), "tiny").finished[0].readings
        assert [reading.tokens for reading in readings] == scores.tokens[row].tolist()
        assert [-1 if reading.fired_at is None else reading.fired_at for reading in readings] == scores.fired_at[
            row
        ].tolist()
        peaks = [-np.inf if reading.peak is None else reading.peak for reading in readings]
        np.testing.assert_allclose(scores.peak[row], peaks, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("most", "room"), [(1, 1 << 30), (2, 1 << 30), (64, 1), (64, 2 * 4 * 32 * 60)])
def test_chunks_change_nothing_and_hold_no_more_than_they_may(bundle, source, scorer, monkeypatch, most, room):
    wanted = [expected(bundle, source, request) for request in REQUESTS]
    monkeypatch.setattr(scoring, "_CHUNK_REQUESTS", most)
    monkeypatch.setattr(scoring, "_CHUNK_BYTES", room)
    read = []

    def recording(conversations, layers, progress):
        assert layers == [1, 3], "no more layers than are needed"
        read.append([len(ids) for ids in conversations])
        return source.read(conversations, layers, progress)

    scorer._source = SimpleNamespace(read=recording)
    assert_equal(score_requests(scorer, REQUESTS), wanted)
    assert all(len(chunk) <= most for chunk in read)
    assert all(len(chunk) == 1 or 4 * 2 * 32 * sum(chunk) <= room for chunk in read)
    assert len(read) > 1 and sum(map(len, read)) == len(REQUESTS)


def test_a_conversation_ends_where_the_answer_begins(scorer, source):
    asked, answered, plain = (
        source.tokenizer.decode(encoded.token_ids) for encoded in scorer.encode([REQUESTS[0], REQUESTS[1], REQUESTS[3]])
    )
    assert asked.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert answered.endswith("red house.<|im_end|>\n")
    assert plain == REQUESTS[3].prompt


def test_a_text_longer_than_the_context_is_read_from_its_beginning(bundle, source):
    context = 30
    short = Scorer(bundle, source, source.tokenizer, context)
    encoded = short.encode(REQUESTS)
    lengths = [len(recomputed(bundle, source, request)[0]) for request in REQUESTS]
    assert [one.truncated for one in encoded] == [length > context for length in lengths]
    assert 0 < sum(one.truncated for one in encoded) < len(REQUESTS)
    assert_equal(score_requests(short, REQUESTS), [expected(bundle, source, request, context) for request in REQUESTS])
    exact = Scorer(bundle, source, source.tokenizer, lengths[0]).encode(REQUESTS[:1])
    assert not exact[0].truncated and len(exact[0].token_ids) == lengths[0]


def test_lines_say_what_has_no_verdict(scorer):
    encoded = scorer.encode(REQUESTS)
    scores = score_requests(scorer, REQUESTS)
    lines = {
        line.id: line.verdicts
        for line in (scorer.describe(REQUESTS[row], encoded[row], scores, row) for row in range(len(REQUESTS)))
    }
    assert list(lines) == [request.id for request in REQUESTS] and list(lines[7]) == ["asked", "said", "either"]
    absent, short = lines["question"]["said"], lines["short"]["asked"]
    assert (absent.scored, absent.tokens, absent.score, absent.fired, absent.token) == (False, 0, None, False, None)
    assert not short.scored and 0 < short.tokens < 3 and short.score is None and not short.fired
    for name, probe in lines["turns"].items():
        assert probe.scored and probe.score is not None and probe.threshold == 25.0
        assert probe.fired == (probe.score >= 25.0) == (probe.token is not None), name


def test_a_probability_is_given_where_it_was_fitted_and_is_asked_for(bundle, source):
    """It is the logistic function of the aggregate."""
    sure, unsure = Probability(scale=0.1, offset=-1.0, ece=0.0), Probability(scale=1e6, offset=0.0, ece=0.0)
    probes = [
        msgspec.structs.replace(probe, probability=fitted)
        for probe, fitted in zip(bundle.probes, (sure, None, unsure), strict=True)
    ]
    manifest = msgspec.structs.replace(bundle.manifest, probes=probes)
    scorer = Scorer(dataclasses.replace(bundle, manifest=manifest), source, source.tokenizer)
    ones = np.ones((2, 3), int)
    scores = Scores(np.array([[30.0, 30.0, -1.0], [-np.inf] * 3]), ones, -ones, 0 * ones)
    encoded = scorer.encode(REQUESTS[:2])
    given, none = (scorer.describe(REQUESTS[row], encoded[row], scores, row, probability=True) for row in (0, 1))
    assert given.verdicts["asked"].probability == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert given.verdicts["said"].probability is None and given.verdicts["either"].probability == 0.0
    assert [verdict.probability for verdict in none.verdicts.values()] == [None] * 3
    plain = scorer.describe(REQUESTS[0], encoded[0], scores, 0)
    assert b"probability" in msgspec.json.encode(given) and b"probability" not in msgspec.json.encode(plain)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_unscored_and_told(bundle, source, monkeypatch, bad):
    """The probe's verdict is of the others; both other probes are as they were."""
    scorer = Scorer(bundle, source, source.tokenizer)
    request, computed = REQUESTS[1], scorer.token_scores
    (encoded,) = scorer.encode([request])
    roles = recomputed(bundle, source, request)[1]
    (at, *_) = np.flatnonzero(bundle.all_read_mask[roles][:, 0])

    def broken(states, reads):
        found = computed(states, reads)
        found[at, 0] = bad
        return found

    before = score_requests(scorer, [request])
    monkeypatch.setattr(scorer, "token_scores", broken)
    after = score_requests(scorer, [request])
    assert (before.unscored.tolist(), after.unscored.tolist()) == ([[0, 0, 0]], [[1, 0, 0]])
    assert (before.tokens - after.tokens).tolist() == [[1, 0, 0]]
    assert np.array_equal(before.peak[:, 1:], after.peak[:, 1:]) and np.isfinite(after.peak).all()
    said = msgspec.json.decode(msgspec.json.encode(scorer.describe(request, encoded, after, 0)))["verdicts"]
    assert [verdict.get("unscored") for verdict in said.values()] == [1, None, None]


def test_a_text_of_which_no_token_is_left_has_no_verdict(bundle, source):
    tokenizer = lambda text, **_: {"input_ids": source.tokenizer(text)["input_ids"] if text.strip() else []}  # noqa: E731
    scorer = Scorer(bundle, source, tokenizer)
    scores = score_requests(scorer, [Request(0, prompt=" "), REQUESTS[3], Request(2, prompt=" ")])
    assert scores.tokens[[0, 2]].tolist() == [[0] * 3] * 2 and np.isinf(scores.peak[[0, 2]]).all()
    one = Scores(scores.peak[1:2], scores.tokens[1:2], scores.fired_at[1:2], scores.unscored[1:2])
    assert_equal(one, [expected(bundle, source, REQUESTS[3])])


def test_a_conversation_that_the_template_refuses_is_named(scorer, source, monkeypatch):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}{{ messages }}"
    monkeypatch.setattr(source.tokenizer, "chat_template", refusing)
    with pytest.raises(RequestError, match="Request 'turns' cannot be encoded for the model: No system role"):
        scorer.encode(REQUESTS)


def test_progress_is_told_of_all_tokens(scorer, monkeypatch):
    monkeypatch.setattr(scoring, "_CHUNK_REQUESTS", 2)
    told = []
    score_requests(scorer, REQUESTS, lambda *step: told.append(step))
    total = sum(len(encoded.token_ids) for encoded in scorer.encode(REQUESTS))
    done = [step[1] for step in told]
    assert {(what, all_of_it) for what, _, all_of_it in told} == {("scoring requests (tokens)", total)}
    assert done == sorted(done) and done[-1] == total and len(done) >= 3


def test_a_scorer_is_opened_with_the_model_of_its_bundle(bundle, tiny_model):
    """By the name it was fitted under, in the precision and with the context of the model."""
    scorer = open_scorer(bundle)
    # The model of the fixture reads 512 tokens.
    (long,) = scorer.encode([Request(0, prompt="bees " * 600)])
    assert len(long.token_ids) == 512 and long.truncated
    rough, exact = (
        score_requests(one, REQUESTS).peak
        for one in (scorer, Scorer(bundle, TransformersSource(tiny_model, "float32"), scorer._tokenizer))
    )
    finite = np.isfinite(exact)
    assert np.array_equal(np.isfinite(rough), finite)
    assert np.abs(rough[finite] - exact[finite]).max() < 0.1 * exact[finite].std()


def test_another_model_is_refused_before_it_is_loaded(bundle, tiny_model, tmp_path, monkeypatch):
    def loaded(*arguments, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(scoring, "TransformersSource", loaded)
    other = shutil.copytree(tiny_model, tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(BundleError, match=r"not to '.*other': chat_template differ"):
        open_scorer(bundle, str(other))
    with pytest.raises(ModelError, match="There is no model 'nosuch'"):
        open_scorer(bundle, "nosuch")
    with pytest.raises(AssertionError, match="was loaded"):
        open_scorer(bundle)


def test_a_bundle_without_probes_is_refused(bundle, source, tmp_path):
    empty = save_bundle(
        tmp_path / "empty",
        version="0",
        created="",
        model=bundle.manifest.model,
        markers=bundle.manifest.markers,
        probes=[],
        vectors=[],
    )
    with pytest.raises(BundleError, match="has no probes"):
        Scorer(load_bundle(empty.path), source, source.tokenizer)


def expected_of_workers(bundle, source, request):
    """``(peak, tokens, fired_at)`` of each worker probe, one token and one head at a time."""
    ids, roles, _ = recomputed(bundle, source, request)
    with torch.inference_mode():
        states = source.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    found = []
    for worker in bundle.worker_probes:
        net, probe = worker.reader, worker.probe
        at = np.flatnonzero(np.isin(roles, [Role[name.upper()] for name in probe.roles]))
        inner = np.maximum(states[probe.layer + 1][0].numpy().astype(float)[at] @ net.w1.T + net.b1, 0)
        outer = np.maximum(inner @ net.w2.T + net.b2, 0)
        scores = np.full(len(at), float(net.bias[0]))
        for token in range(len(at)):
            for head in range(net.heads):
                window = outer[max(0, token + 1 - WINDOW) : token + 1]
                weights = np.exp(window @ net.attention[head])
                scores[token] += (weights / weights.sum()) @ (window @ net.value[head])
        aggregate = running(scores, probe.aggregate)
        over = np.flatnonzero(aggregate >= probe.threshold)
        found.append((aggregate.max(initial=-np.inf), len(at), at[over[0]] if len(over) else -1))
    return [np.array(column) for column in zip(*found, strict=True)]


def test_worker_probes_have_verdicts_beside_the_linear_ones(bundle, source, tmp_path):
    both = with_workers(bundle, tmp_path / "both")
    wanted = [expected_of_workers(both, source, request) for request in REQUESTS]
    fired = np.array([fired_at for _, _, fired_at in wanted]) >= 0
    assert fired.any(axis=0).all() and not fired.all(axis=0).any(), "the test would show little"
    scorer = Scorer(both, source, source.tokenizer)
    scores = score_requests(scorer, REQUESTS)
    first = [np.s_[:, :3], np.s_[:, 3:]]
    linear, workers = (
        Scores(scores.peak[part], scores.tokens[part], scores.fired_at[part], scores.unscored[part]) for part in first
    )
    assert_equal(linear, [expected(both, source, request) for request in REQUESTS])
    assert_equal(workers, wanted)
    line = scorer.describe(REQUESTS[1], scorer.encode(REQUESTS[1:2])[0], scores, 1)
    assert list(line.verdicts) == [probe.name for probe in both.all_probes]
    assert line.verdicts["either at length"].threshold == 150.0


def test_a_bundle_of_worker_probes_alone_is_scored(bundle, source, tmp_path):
    alone = with_workers(bundle, tmp_path / "alone", probes=False)
    scorer = Scorer(alone, source, source.tokenizer)
    assert_equal(score_requests(scorer, REQUESTS), [expected_of_workers(alone, source, one) for one in REQUESTS])
