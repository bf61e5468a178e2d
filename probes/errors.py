"""Every error that a user can cause or mend, as a tree::

    PlumbobError                what happened, on which object, and what to do
    ├── ModelError              a model that cannot be found, read, or tapped
    ├── BundleError             a bundle that is damaged, or of another model
    ├── ConceptError            contrast data that cannot be used
    ├── SteeringError           a direction, a dose or an operation that cannot be used
    ├── (probes.data.requests)       RequestError, a file of requests that cannot be used
    ├── (probes.report)         ReportError, a report that is damaged or cannot be written
    └── (monitor.errors)        PolicyError, PrerequisiteError, PortError, EngineError

The command line prints one line for each of them, without a traceback, and exits with 2.
"""

from typing import Final

_REASON: Final = 300
"""Characters of another library's message that are shown."""


class PlumbobError(Exception):
    """Base of all errors with a remedy.

    Args:
        message: What is wrong, naming the object.
        fix: What the user does about it, as an imperative sentence or a command.
    """

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(f"{message} {fix}".strip())
        self.message = message
        self.fix = fix


def reason(error: Exception) -> str:
    """The message of another library's error, in one line that fits into ours."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= _REASON else f"{text[:_REASON]}…"


class ModelError(PlumbobError):
    """A model that cannot be found, read, or tapped."""


class BundleError(PlumbobError):
    """A bundle that is damaged, of an unknown format, or bound to another model."""


class ConceptError(PlumbobError):
    """Contrast data that cannot be used: missing, malformed, or too little."""


class SteeringError(PlumbobError):
    """A direction, a dose or an operation on the residual stream that cannot be used."""
