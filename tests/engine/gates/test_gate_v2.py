"""The gate on Model Runner V2, scheduled asynchronously, as GPUs have it: all that is shown of it on V1 holds there.

The tests are those of :mod:`tests.engine.gates.test_gate_engine`, run on another engine. As in
:mod:`tests.engine.vllm.test_runner_v2`, the runner's kernels run in Triton's interpreter, and the model is tiny.
"""
# ruff: noqa: F401  What is imported is collected here as well.

import pytest

from tests.engine.gates.test_gate_engine import (
    crowd,
    plain,
    test_a_gate_that_was_disarmed_steers_nobody,
    test_a_prompt_from_the_cache_opens_the_gate_where_it_did_when_it_was_computed,
    test_an_engine_with_gates_and_none_armed_is_as_it_was,
    test_an_unsteered_continuation_finds_no_steered_block,
    test_each_row_is_that_of_a_forward_pass_that_steers_from_the_very_token_on,
    test_events_are_sent_until_they_are_confirmed,
    test_rows_downstream_are_marked,
    test_the_engine_decides_as_the_rules_say,
    test_the_first_changed_token_is_the_one_that_the_opening_row_yields,
    test_the_gate_works_with_no_monitor_and_a_later_one_learns_of_it,
)
from tests.harness.gated_engine import open_tiny
from tests.harness.runner_v2 import start

pytestmark = [pytest.mark.vllm, pytest.mark.long]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    yield from open_tiny(tmp_path_factory.mktemp("gate"), lambda name, folder, **engine: start(name, folder, engine))
