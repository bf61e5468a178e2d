"""What drift means, and that a fit records what an engine of the same model measures."""

from itertools import pairwise

import numpy as np
import pytest

from probes.bundle import Calibration, Evaluation, Probe, WorkerProbe
from probes.bundle.canaries import CONVERSATIONS, MASSIVE, TOLERANCE, Canaries
from probes.scoring.aggregate import Aggregate
from probes.scoring.multimax import MultiMax

HIDDEN = 16
PROMPTS = ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11, 12])


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def recorded(random) -> tuple[Canaries, np.ndarray]:
    """Three probes and two prompts, and the scores that were recorded."""
    states = [random.normal(size=(3, len(prompt), HIDDEN)) for prompt in PROMPTS]
    weight, bias = random.normal(size=(3, HIDDEN)), np.array([0.5, 0.0, -2.0])
    scores = np.concatenate([np.einsum("pth,ph->tp", state, weight) for state in states]) + bias
    return Canaries.record(PROMPTS, states, weight, bias), scores


def test_scores_are_recorded_token_by_token(recorded):
    canaries, scores = recorded
    assert [prompt.tolist() for prompt in canaries.prompts] == [list(prompt) for prompt in PROMPTS]
    np.testing.assert_allclose(canaries.reference, scores, rtol=1e-6)
    assert canaries.drift(scores).max() < 1e-6


def test_drift_is_the_difference_in_units_of_the_probes_own_spread(recorded):
    canaries, scores = recorded
    spread = scores.std(axis=0)
    assert canaries.drift(scores + 0.25 * spread) == pytest.approx([0.25, 0.25, 0.25], rel=1e-5)
    scores[3, 1] += 2.0 * spread[1]
    assert canaries.drift(scores) == pytest.approx([0, 2.0 / np.sqrt(len(scores)), 0], rel=1e-5, abs=1e-6)


def test_scores_that_have_nothing_to_do_with_those_recorded_drift_by_more_than_one(recorded, random):
    canaries, scores = recorded
    assert canaries.drift(random.permuted(scores, axis=0)).min() > 1.0


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_infinitely_far(recorded, broken):
    canaries, scores = recorded
    scores[7, 2] = broken
    assert canaries.drift(scores).tolist() == pytest.approx([0, 0, np.inf], abs=1e-6)


def test_massive_activations_are_not_compared(random):
    """They would decide alone: the spread is theirs, and so is the error."""
    states = [random.normal(size=(2, len(prompt), HIDDEN)) for prompt in PROMPTS]
    states[0][1, 0] *= 100 * MASSIVE
    weight = random.normal(size=(2, HIDDEN))
    canaries = Canaries.record(PROMPTS, states, weight, np.zeros(2))
    assert np.argwhere(np.isnan(canaries.reference)).tolist() == [[0, 1]], "of the second probe's layer alone"
    scores = np.concatenate([np.einsum("pth,ph->tp", state, weight) for state in states])
    scores[0, 1] *= 2.0
    assert canaries.drift(scores).max() < 1e-6
    scores[1:, 1] = 0.0
    assert canaries.drift(scores)[1] > 0.9, "what is left still tells"


def test_what_is_massive_is_told_by_the_norms_of_the_same_layer(random):
    """Norms grow from layer to layer: late states are not massive beside early ones."""
    states = [random.normal(size=(3, len(prompt), HIDDEN)) * [[[1.0]], [[1.0]], [[100.0]]] for prompt in PROMPTS]
    states[1][0, 2] *= 2 * MASSIVE
    canaries = Canaries.record(PROMPTS, states, random.normal(size=(3, HIDDEN)), np.zeros(3))
    assert np.argwhere(np.isnan(canaries.reference)).tolist() == [[7, 0]]


def test_where_nothing_can_be_compared_nothing_passes(recorded):
    canaries, scores = recorded
    for reference in (np.full_like(canaries.reference, np.nan), np.ones_like(canaries.reference)):
        assert np.isinf(Canaries(canaries.prompts, reference).drift(scores)).all()


def test_prompts_are_cut_with_their_scores(recorded):
    canaries, scores = recorded
    cut = canaries.cut(6)
    assert [prompt.tolist() for prompt in cut.prompts] == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert cut.drift(scores[:-1]).max() < 1e-6
    assert Canaries.none(3).cut(6).reference.shape == (0, 3)


# Probes that workers read.


def network(random, hidden=HIDDEN, width=8, heads=3, window=4) -> MultiMax:
    shapes = (width, hidden), (width,), (width, width), (width,), (heads, width), (heads, width), (1,)
    return MultiMax(*((random.normal(size=shape) / 2).astype(np.float32) for shape in shapes), window=window)


def drift_of(canaries: Canaries, column: int, reader: MultiMax, states: np.ndarray) -> float:
    """The drift of a probe that reads these states."""
    measured = np.nan_to_num(canaries.reference)
    measured[:, column] = canaries.read(column, reader, states)
    return float(canaries.drift(measured)[column])


@pytest.fixture
def read_by_a_network(random):
    """A linear probe and a network, what was recorded of them, and the states that the network reads."""
    states = [random.normal(size=(2, len(prompt), HIDDEN)) for prompt in PROMPTS]
    states[1][1, 2] *= 100 * MASSIVE
    reader = network(random)
    canaries = Canaries.record(PROMPTS, states, random.normal(size=(1, HIDDEN)), np.zeros(1), [reader])
    return canaries, reader, np.concatenate([one[1] for one in states])


def test_a_network_reads_each_prompt_from_its_beginning_and_nothing_massive(read_by_a_network):
    canaries, reader, states = read_by_a_network
    begins, massive = (0, len(PROMPTS[0]), len(states)), len(PROMPTS[0]) + 2
    assert np.argwhere(np.isnan(canaries.reference)).tolist() == [[massive, 1]]
    for begin, end in pairwise(begins):
        kept = [token for token in range(begin, end) if token != massive]
        expected = reader.scores(states[kept], reader.begin())
        np.testing.assert_allclose(canaries.reference[kept, 1], expected, rtol=1e-6)


def test_what_a_network_reads_again_drifts_as_its_states_do(read_by_a_network, random):
    canaries, reader, states = read_by_a_network

    def drift(states) -> float:
        return drift_of(canaries, 1, reader, states)

    assert drift(states) < 1e-6
    changed = states.copy()
    changed[len(PROMPTS[0]) + 2] = 0.0
    assert drift(changed) < 1e-6, "a massive state is in no window"
    assert 1e-6 < drift(states + 0.01 * random.normal(size=states.shape)) < TOLERANCE / 2
    assert drift(np.roll(states, 1, axis=0)) > 2 * TOLERANCE
    assert drift(np.zeros_like(states)) > 2 * TOLERANCE, "nothing was streamed"
    assert np.isinf(drift(np.full_like(states, np.nan)))


def test_the_beginnings_of_prompts_are_read_alike(read_by_a_network):
    canaries, reader, states = read_by_a_network
    cut, kept = canaries.cut(4), [0, 1, 2, 3, 5, 6, 7, 8]
    assert drift_of(cut, 1, reader, states[kept]) < 1e-6


def test_there_may_be_none():
    assert not Canaries.none(3)


def probe(layer: int, index: int) -> Probe:
    calibration, evaluation = Calibration(0.1, 10, 1, (0.0, 0.5)), Evaluation(10, 10, 0.9, 0.6, 0.8)
    return Probe(f"probe-{layer}-{index}", layer, ["user"], 0.0, Aggregate(), calibration, evaluation)


@pytest.fixture(scope="module")
def source(tiny_model):
    from probes.models.activations import TransformersSource

    return TransformersSource(tiny_model, dtype="float32")


def test_what_a_fit_records_is_what_the_model_computes(source):
    from probes.fit.bundle_fit import record_canaries

    random = np.random.default_rng(1)
    # Not in the order of their layers, as concepts are fitted.
    probes = [(probe(layer, index), random.normal(size=source.hidden), 0.5) for index, layer in enumerate((3, 1, 3))]
    canaries = record_canaries(source, probes)
    assert len(canaries.prompts) == len(CONVERSATIONS)

    # One by one and layer by layer, where the recording batched.
    measured = [
        np.stack([source.read([prompt], [one.layer])[0].states[0] @ weight + bias for one, weight, bias in probes], 1)
        for prompt in canaries.prompts
    ]
    assert canaries.drift(np.concatenate(measured)).max() < 1e-3
    shifted = [np.roll(scores, 1, axis=0) for scores in measured]
    assert canaries.drift(np.concatenate(shifted)).min() > 2 * TOLERANCE


@pytest.mark.parametrize("linear", [0, 2])
def test_a_fit_records_what_worker_probes_read_behind_the_linear_ones(source, linear):
    from probes.fit.bundle_fit import record_canaries

    random = np.random.default_rng(2)
    probes = [(probe(1, index), random.normal(size=source.hidden), 0.5) for index in range(linear)]
    workers = [WorkerProbe(probe(layer, 9), network(random, source.hidden)) for layer in (4, 2)]
    canaries = record_canaries(source, probes, workers=workers)
    assert canaries.reference.shape[1] == linear + 2
    for column, worker in enumerate(workers, linear):
        states = {
            layer: np.concatenate([source.read([prompt], [layer])[0].states[0] for prompt in canaries.prompts])
            for layer in (worker.probe.layer, worker.probe.layer - 1)
        }
        drift = {layer: drift_of(canaries, column, worker.reader, found) for layer, found in states.items()}
        assert drift[worker.probe.layer] < 1e-3
        assert drift[worker.probe.layer - 1] > 2 * TOLERANCE, "the layer before"
