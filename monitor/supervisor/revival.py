"""Revival: the times at which a monitor that died is started again, and the end of trying."""

import time
from typing import Final

REFUSED: Final = 2
"""The exit code of a process that says what is wrong, and cannot start until somebody mends it."""
REFUSALS: Final = 4
"""So many in a row are believed; what the one before it held (its socket, its log) may take a moment to be free."""
FIRST_SECONDS: Final = 0.5
LONGEST_SECONDS: Final = 30.0
AGAIN_SECONDS: Final = 300.0
"""The same reason is told again after so long."""


class Revival:
    """Attempts to start one monitor again, since it died."""

    def __init__(self) -> None:
        self.attempts = self.failures = 0
        self.due = 0.0
        """When to try next, on the monotonic clock."""
        self._refusals = 0
        self._said, self._say_at = "", 0.0

    def failed(self, code: int | None) -> bool:
        """Take an attempt that failed; true where the monitor has said often enough that it cannot start.

        Args:
            code: The exit code that it left; ``None``: it did not end.
        """
        self.failures += 1
        self._refusals = self._refusals + 1 if code == REFUSED else 0
        self.due = time.monotonic() + min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(self.failures - 1, 10))
        return self._refusals >= REFUSALS

    def tells(self, why: str) -> bool:
        """True where a reason is to be told: it is another than before, or was told long ago."""
        now = time.monotonic()
        if why == self._said and now < self._say_at:
            return False
        self._said, self._say_at = why, now + AGAIN_SECONDS
        return True
