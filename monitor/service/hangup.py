"""SIGHUP, which means two things: a terminal is gone, or, to a service, that its files are to be read again."""

import os
import signal
from typing import Final

_TERMINAL: Final = "/dev/tty"
"""Opens to a process that has a terminal, and to no other."""


class Terminal:
    """The terminal that this process was started from, if it was from one; to be made before SIGHUP is handled.

    A process that was told to ignore SIGHUP, as by ``nohup``, goes on without its terminal.
    """

    def __init__(self) -> None:
        self._had = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()

    @property
    def gone(self) -> bool:
        """True where it was closed meanwhile: SIGHUP then means an end."""
        return self._had and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
