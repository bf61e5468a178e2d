"""Faults inside the engine: counted, and the last one in words that hold nothing of a prompt."""

import threading
import traceback
from pathlib import Path


class Faults:
    """Faults of one engine process; counted from any thread.

    Attributes:
        count: Since the start.
        last: The last one; empty before the first.
        untapped: The taps are switched off for good: nothing is scored any more.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last = ""
        self.untapped = False
        self._lock = threading.Lock()

    def note(self, part: str, error: BaseException) -> None:
        """Count a fault.

        Args:
            part: What failed.
            error: Why. Its text is left to the log of the process: it may name what a client wrote.
        """
        with self._lock:
            self.count += 1
            self.last = f"{part}: {describe(error)}"


def describe(error: BaseException) -> str:
    """The kind of an error and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
