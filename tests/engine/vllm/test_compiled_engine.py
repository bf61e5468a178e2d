"""A real engine, compiled: the op survives the compiler, and costs the output no more than compiling does."""

import numpy as np
import pytest

from tests.harness.engines import check_scores, settings, start

pytestmark = [pytest.mark.vllm, pytest.mark.long]

TOKENS = 8


@pytest.fixture(scope="module")
def stock(model_path, prompts, tmp_path_factory):
    """Log-probabilities of the prompts' tokens, by stock vLLM: eager, and compiled."""
    folder = tmp_path_factory.mktemp("stock")
    logprobs = []
    # One after the other: engines that are resident together spin on the same cores while they compile.
    for name, eager in (("eager", True), ("compiled", False)):
        with start(name, folder, **settings(model_path, enforce_eager=eager)) as arm:
            logprobs.append(np.concatenate(arm.generate(prompts, 1, logprobs=True).logprobs))
    return logprobs


@pytest.fixture(scope="module")
def tapped(stock, model_path, bundle, wire, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tapped")
    tap = {"plumbob": {"bundle": str(bundle.path), "endpoint": wire.endpoint}}
    with start("tapped", folder, **settings(model_path, enforce_eager=False, additional_config=tap)) as arm:
        yield arm


def test_scores_leave_the_compiled_graph_as_they_should(tapped, wire, prompts, source, bundle):
    answer, seen = wire.run(tapped, prompts, TOKENS)
    check_scores(prompts, answer.tokens, seen, source, bundle)


def test_the_tap_changes_log_probabilities_no_more_than_compiling_does(stock, tapped, wire, prompts, capsys):
    eager, compiled = stock
    answer, _ = wire.run(tapped, prompts, 1, logprobs=True)
    by_compiling = np.abs(eager - compiled).max()
    by_tapping = np.abs(np.concatenate(answer.logprobs) - compiled).max()
    with capsys.disabled():
        print(f"largest difference of a log-probability: {by_compiling:.5f} compiling, {by_tapping:.5f} tapping")
    assert by_compiling > 0
    assert by_tapping <= by_compiling
