"""Says that no engine has come: a monitor that nothing reaches looks like one that has nothing to tell."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from monitor.telemetry.stats import Stats

FIRST_SECONDS: Final = 10.0
"""After so long without an engine it is said, to those who look."""
LONGEST_SECONDS: Final = 3600.0
"""At most so long between two warnings."""

logger = logging.getLogger("plumbob")


async def tell_of_no_engine(stats: Stats, where: Callable[[], str], warn_seconds: float) -> None:
    """Log that no engine has said HELLO, until one does: once soon, then as warnings, ever more rarely.

    Args:
        stats: Knows the models of engines that did.
        where: Says where the monitor listens, and who may connect.
        warn_seconds: After so long it is a warning.
    """
    began, due = time.monotonic(), min(FIRST_SECONDS, warn_seconds)
    while True:
        await asyncio.sleep(max(0.0, began + due - time.monotonic()))
        if stats.models:
            return
        warns = due >= warn_seconds
        logger.log(
            logging.WARNING if warns else logging.INFO,
            "no engine has connected for %.0f s: nothing is read. The monitor %s; an engine connects with "
            '--additional-config \'{"plumbob": {"bundle": …, "endpoint": …}}\'',
            time.monotonic() - began,
            where(),
        )
        due = warn_seconds if not warns else due + min(max(due, warn_seconds), LONGEST_SECONDS)
