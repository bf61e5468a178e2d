"""``plumbob fit --reader``: fitting gets what is asked for, and what is not there is refused before any work."""

from functools import partial

import pytest

from monitor.engine.vllm import versions as compat
from monitor.offline.source import VllmSource
from tests.harness.command_line import assert_one_error, vllm_is

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sklearn")


@pytest.fixture
def asked(monkeypatch, tiny_bundle):
    """The options that fitting was called with."""
    calls = []

    def fit(*arguments, **options):
        calls.append(options)
        return tiny_bundle()

    monkeypatch.setattr("probes.fit.bundle_fit.fit_bundle", fit)
    return calls


def test_transformers_reads_unless_something_else_is_asked_for(plumbob, asked, monkeypatch):
    vllm_is(monkeypatch, None)
    assert plumbob("fit", "demo", "--out", "b").code == 0
    assert plumbob("fit", "demo", "--out", "b", "--reader", "transformers").code == 0
    assert [options["reader"] for options in asked] == [None, None]


@pytest.mark.parametrize("untested", [False, True])
def test_the_engine_reads_where_it_is_asked_for(plumbob, asked, monkeypatch, untested):
    vllm_is(monkeypatch, "0.0.1" if untested else compat.TESTED["cpu"][0])
    options = ["--allow-untested"] if untested else []
    assert plumbob("fit", "demo", "--out", "b", "--reader", "vllm", *options).code == 0
    reader = asked[0]["reader"]
    assert isinstance(reader, partial) and reader.func is VllmSource
    assert reader.keywords == {"allow_untested": untested}


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, "vLLM is not installed. Run: pip install 'plumbob[cpu]'"),
        ("0.0.1", "vLLM 0.0.1 for cpu is installed; the tap is tested on: "),
    ],
)
def test_an_engine_that_cannot_read_is_refused_before_any_work(plumbob, asked, monkeypatch, version, message):
    vllm_is(monkeypatch, version)
    assert_one_error(plumbob("fit", "demo", "--out", "b", "--reader", "vllm"), message)
    assert asked == []


def test_an_unknown_reader_is_refused(plumbob, asked):
    result = plumbob("fit", "demo", "--out", "b", "--reader", "jax")
    assert result.code == 2 and all(word in result.err for word in ("'jax'", "'transformers', 'vllm'"))
    assert asked == []
