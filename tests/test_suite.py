"""The suite's closing line is the sum of its stages'."""

from tests.suite import STAGES, closing


def test_counts_add_up_and_what_was_left_to_another_stage_is_not_one():
    lines = [
        "=== 2 failed, 1998 passed, 30 skipped, 200 deselected, 1 warning in 312.10s (0:05:12) ===",
        "=== 200 passed, 2030 deselected, 1 error in 400.00s (0:06:40) ===",
    ]
    assert closing(lines, 3700.5).strip("= ") == (
        "2 failed, 2198 passed, 30 skipped, 1 warnings, 1 errors in 3700.50s (1:01:40)"
    )


def test_nothing_is_said_to_be_nothing():
    assert closing(["=== 2656 deselected in 3.20s ==="], 4).strip("= ") == "no tests ran in 4.00s (0:00:04)"


def test_every_test_is_in_one_stage():
    """A test is long or not, and those that are not start an engine or do not."""
    chosen = {stage: options[options.index("-m") + 1] for stage, options in STAGES.items()}
    assert chosen == {"parallel": "not vllm and not long", "engines": "vllm and not long", "long": "long"}
