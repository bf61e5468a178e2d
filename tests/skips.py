"""Skips that a complete machine may have; any other fails where ``CI`` is set.

A test that is skipped shows nothing, and nobody reads the list of those that were. So each reason is written down here,
with why the tests behind it need not run, or where they do.
"""

import os
import re

import pytest

ALLOWED = {
    r"runs in the child process of test_in_the_interpreter": "it does run there, in Triton's interpreter",
    r"runs as it is": "the child process runs the kernels where there is no GPU",
    r"the interpreter compiles nothing": "compiling is tested outside the interpreter",
    r"takes a GPU": "the machines that run this have none",
    r"only root may start processes of other users": "the machines that run this are root's",
    r"nothing may be mounted here": "mounting takes privileges, which the machines that build images have",
    r"the public (data )?sets are not beside the (repository|checkout)": "they are too large to be in it",
}
"""Reasons, as regular expressions, and why they are no gap."""


def is_allowed(reason: str) -> bool:
    """Tell whether a test may be skipped for that reason."""
    return any(re.search(pattern, reason) for pattern in ALLOWED)


def refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip that is not allowed into a failure, where ``CI`` is set.

    Args:
        report: Of a test, or of a module whose collection was skipped; changed in place.
    """
    if not report.skipped or hasattr(report, "wasxfail") or os.environ.get("CI") not in ("1", "true"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not is_allowed(reason):
        report.outcome = "failed"
        reason = reason.removeprefix("Skipped: ")
        report.longrepr = f"{report.nodeid} is not to be skipped here: {reason}. What may be is in tests/skips.py."
