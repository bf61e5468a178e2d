"""Scores to verdicts: what each probe has read of each request in flight, and when it fired.

Knows nothing of sockets, policies or how engines work: frames in, verdicts out.
"""

from monitor.verdicts.table import Tally, Verdicts, VerdictTable

__all__ = ["Tally", "VerdictTable", "Verdicts"]
