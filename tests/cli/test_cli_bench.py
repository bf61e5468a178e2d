"""``plumbob bench``: what is refused, before anything is started, in one line."""

import pytest

from monitor.engine.vllm import versions as compat
from tests.harness.command_line import assert_one_error, vllm_is

ENGINE = {
    "one pair": (["--pairs", "1"], "1 pairs have no spread", "--pairs"),
    "an unknown arm": (["--arms", "scoring,hooks"], "There is no arm 'hooks'", "monitor-off"),
    "stock against stock": (["--arms", "stock"], "Nothing is compared with stock", "scoring"),
    "no arm": (["--arms", ""], "Nothing is compared with stock", "scoring"),
    "a batch of words": (["--batch", "1,many"], "--batch is a list of numbers, not '1,many'", "1,8"),
    "a batch of nobody": (["--batch", "0"], "1 request or more", "--batch"),
    "no batch": (["--batch", ""], "1 request or more", "--batch"),
    "one token": (["--tokens", "1"], "2 tokens or more", "--tokens"),
    "layers of words": (["--layers", "first"], "--layers is a list of numbers, not 'first'", "1,8"),
    "layers that are not there": (["--shape", "llama-tiny", "--layers", "4"], "layers 0 to 3, not 4", "--layers"),
    "too many probes": (["--shape", "llama-tiny", "--probes", "300"], "300 probes do not fit 3 layers", "--probes"),
    "an unknown shape": (["--shape", "gpt-5"], "There is no shape 'gpt-5'", "llama-8b"),
    "a bundle of dummy weights": (["--shape", "llama-tiny", "--bundle", "x"], "dummy weights", "--bundle"),
    "a figure without a format": (["--plot", "figure"], "figure is not the name of a picture", ".png"),
    "a figure nowhere": (["--plot", "/no/such/folder/x.png"], "no directory /no/such/folder", "--plot"),
    "a result nowhere": (["--json", "/no/such/folder/x.json"], "no directory /no/such/folder", "--json"),
}

SERVE = {
    "one pair": (["--pairs", "1"], "1 pairs have no spread", "--pairs"),
    "fewer requests than at once": (["--requests", "4", "--batch", "8"], "4 requests are never 8 at once", "--batch"),
    "a result nowhere": (["--json", "/no/such/folder/x.json"], "no directory /no/such/folder", "--json"),
    "an unknown model": (["nosuch"], "There is no model 'nosuch'", "local directory"),
}


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """A vLLM that the tap was tested on, so that its absence is not what is told."""
    vllm_is(monkeypatch, compat.TESTED["cpu"][0])


@pytest.mark.parametrize("mistake", ENGINE)
def test_a_benchmark_that_cannot_be_is_refused_in_one_line(plumbob, mistake):
    options, *said = ENGINE[mistake]
    assert_one_error(plumbob("bench", "engine", "--eager", *options), *said)


@pytest.mark.parametrize("mistake", SERVE)
def test_a_benchmark_of_servers_that_cannot_be_is_refused_in_one_line(plumbob, mistake):
    options, *said = SERVE[mistake]
    assert_one_error(plumbob("bench", "serve", "--eager", *options), *said)


def test_the_options_of_these_tests_would_start_something(plumbob):
    """Otherwise they would show nothing: here the first thing that is wrong is that nothing may be started."""
    with pytest.raises(AssertionError, match="started"):
        plumbob("bench", "engine", "--shape", "llama-tiny", "--eager", "--pairs", "2", "--batch", "1")


@pytest.mark.parametrize("command", ["engine", "serve"])
def test_help(plumbob, command):
    result = plumbob("bench", command, "--help")
    assert (result.code, result.err) == (0, "") and "Usage: " in result.out
