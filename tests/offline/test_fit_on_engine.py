"""A bundle whose probes were fitted on what the engine reads."""

from contextlib import contextmanager

import numpy as np
import pytest

from monitor.offline.source import VllmSource
from probes.errors import ModelError
from probes.fit import concept_fit
from probes.models.activations import TransformersSource
from tests.harness.models import tiny_model
from tests.harness.small_fit import Reads, concepts, few_benign, fit, quick  # noqa: F401  (fixtures)

pytestmark = pytest.mark.vllm

POISON = 300
"""A token whose embedding is not a number."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", "llama")


@pytest.fixture
def poisoned(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    path = tiny_model(tmp_path / "poisoned", "llama")
    loaded = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        loaded.get_input_embeddings().weight[POISON] = torch.nan
    loaded.save_pretrained(path)
    return path


class Opened:
    """Opens readers, and keeps count of what they read."""

    def __init__(self):
        self.layers, self.read, self.answered = [], 0, 0

    def __call__(self, path, layers):
        self.layers.append(list(layers))
        return Counting(self, path, layers, "float32")


class Counting(VllmSource):
    def __init__(self, opened, *arguments):
        super().__init__(*arguments)
        self._opened = opened

    def read(self, conversations, *rest):
        self._opened.read += len(conversations)
        return super().read(conversations, *rest)

    def respond(self, prompts, *rest):
        self._opened.answered += len(prompts)
        return super().respond(prompts, *rest)


def test_probes_fitted_on_the_engine_are_those_fitted_on_transformers(model, quick, tmp_path, monkeypatch):
    theirs = fit(model, tmp_path / "theirs", quick)
    by_transformers, opened = Reads(monkeypatch), Opened()
    ours = fit(model, tmp_path / "ours", quick, reader=opened)
    assert [probe.layer for probe in ours.probes] == [probe.layer for probe in theirs.probes]
    cosine = (ours.weight * theirs.weight).sum(1) / np.linalg.norm(ours.weight) / np.linalg.norm(theirs.weight)
    # transformers reads in bfloat16, whose rounding of 2**-9 an operation leaves some percent of a state, and less of a
    # mean.
    assert cosine.min() > 0.99
    # The engine read and answered; transformers read canaries and examples, and answered nothing.
    assert opened.layers == [sorted({*opened.layers[0]})]
    assert opened.read > 80 and opened.answered > 0
    assert 0 < len(by_transformers.read) < 20 and by_transformers.answered == []


def test_what_another_reader_has_read_is_not_gone_on_with(model, quick, tmp_path, monkeypatch):
    class Another(TransformersSource):
        """Enough to be told apart."""

    @contextmanager
    def opened(path, layers):
        yield Another(path)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    reads, counts = Reads(monkeypatch), []
    for reader in (opened, None, None):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(concept_fit, "evaluate", interrupted)
            fit(model, tmp_path / "bundle", quick, reader=reader)
        counts.append(len(reads.read))
    assert counts == [counts[0], 2 * counts[0], 2 * counts[0]]


def test_states_that_are_not_numbers_are_a_model_that_cannot_be_read(poisoned):
    with VllmSource(poisoned, [1, 3], "float32") as engine:
        good = engine.read([[5, 6, 7]], [1, 3])
        with pytest.raises(ModelError, match=r"^Activations of .* in float32 are not finite\. Check its weights\."):
            engine.read([[5, 6, 7], [5, POISON, 7]], [1, 3])
        (again,) = engine.read([[5, 6, 7]], [1, 3])
        (reference,) = TransformersSource(poisoned, dtype="float32").read([[5, 6, 7]], [1, 3])
    np.testing.assert_array_equal(good[0].states, again.states)
    np.testing.assert_allclose(good[0].states, reference.states, rtol=0, atol=1e-4)
