"""Scores to verdicts: what each probe has read of each request in flight, and when it fired.

Knows nothing of sockets, policies or how engines work: frames in, verdicts out.
"""

from monitor.verdicts.running import RunningVerdicts
from monitor.verdicts.table import EnteredRows, Tally, Verdicts, VerdictTable

__all__ = ["EnteredRows", "RunningVerdicts", "Tally", "VerdictTable", "Verdicts"]
