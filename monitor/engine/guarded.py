"""Our part of a step, in the model runner: what goes wrong there fails no request, and is told.

A part that fails is logged once, counted, and told to the monitor with the next frame (:mod:`monitor.engine.faults`).
The step's rows are unscored; the next step is read again. After :data:`FAILURES` steps in a row the taps are switched
off for good, and the monitor is told with every second of steps that nothing is scored any more.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor
from torch.profiler import record_function

from monitor.engine.tapped import RunnerTap

FAILURES: Final = 10
"""Steps in a row of which a part failed, after which the taps stay off."""

logger = logging.getLogger("vllm.plumbob")


def tap_of(runner: Any) -> RunnerTap | None:
    """The tap of a model runner, ``None`` where it has none or was switched off."""
    return runner.__dict__.get("plumbob_tap")


def guarded(runner: Any, name: str, part: Callable[[RunnerTap], None], missed: Any = None) -> None:
    """Run our part of a step.

    Args:
        runner: The model runner.
        name: Of the part, in profiles and in what is told of it.
        part: What is run.
        missed: The scheduler's output, where the part takes it in: with the next step it is taken in again.
    """
    tap = tap_of(runner)
    if tap is None:
        return
    try:
        with record_function(f"plumbob: {name}"):
            part(tap)
    except Exception as error:
        _note(tap, name, error)
        _or_switch_off(runner, tap, lambda: tap.fail(missed))


def close_step(runner: Any, rows: int, kv_slots: Callable[[int], Tensor], rejected: Tensor | None = None) -> None:
    """Run the last part of a step; one of which any part failed is passed over.

    Args:
        runner: The model runner.
        rows: Of the step.
        kv_slots: As of :meth:`RunnerTap.end`.
        rejected: As of :meth:`RunnerTap.end`.
    """
    tap = tap_of(runner)
    if tap is None:
        untapped: RunnerTap | None = runner.__dict__.get("plumbob_untapped")
        if untapped is not None:
            untapped.tell_untapped(rows)
        return
    guarded(runner, "send", lambda tap: tap.end(kv_slots, rejected))
    if not tap.failing:
        runner.plumbob_failures = 0
        return
    runner.plumbob_failures = runner.__dict__.get("plumbob_failures", 0) + 1
    if runner.plumbob_failures >= FAILURES:
        _switch_off(runner, tap)
    elif tap_of(runner) is not None:
        _or_switch_off(runner, tap, lambda: tap.pass_over(kv_slots))


def _or_switch_off(runner: Any, tap: RunnerTap, cleaning: Callable[[], None]) -> None:
    """Clean up behind a failure; where that fails too, rows might be taken for others', so nothing goes on."""
    try:
        cleaning()
    except Exception as error:
        _note(tap, "recover", error)
        _switch_off(runner, tap)


def _note(tap: RunnerTap, name: str, error: Exception) -> None:
    first = tap.faults.count == 0
    tap.faults.note(name, error)
    if first:
        logger.exception("Plumbob failed inside the engine ('%s'); further failures are counted, serving goes on", name)


def _switch_off(runner: Any, tap: RunnerTap) -> None:
    if tap_of(runner) is None:
        return
    logger.error("Plumbob fails again and again and is switched off; serving goes on, unmonitored: %s", tap.faults.last)
    runner.plumbob_tap, runner.plumbob_untapped = None, tap
    try:
        tap.disarm()
    except Exception:
        logger.exception("Plumbob could not switch off all of its taps")
