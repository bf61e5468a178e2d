"""The monitor's branch of the error tree (see :mod:`probes.errors`)::

PlumbobError
├── ConfigError             a setting that is unknown, malformed or given twice, and the source that has it
├── PolicyError             a policy file that is malformed or does not fit the bundle
├── InvalidSteering         steering that makes no sense, is beyond a cap, or does not fit the bundle
├── PrerequisiteError       something is not installed, or of an unsupported version
├── PortError               an address that is in use
├── EngineError             a vLLM configuration that cannot be tapped
│   └── OrderError          an order that an engine refuses
├── AuditError              an audit log that cannot be written, or is not what was written
└── FrameError              a message that is not of the protocol between engine and monitor
    └── FrameVersionError   a message of a version that this monitor does not read
"""

from typing import Literal

from probes.errors import PlumbobError

Cause = Literal[
    "vector",
    "dose",
    "operation",
    "conflict",
    "request",
    "slots",
    "layer",
    "gate",
    "stop",
    "admission",
    "guard",
    "lease",
    "expired",
]
"""Why an engine refuses an order: it has no such vector; the dose is over the cap; what is to be done makes no sense;
it conflicts with what was ordered before; the request has ended or has no slot; too much is steered at once; the layer
is not streamed; the gate cannot be armed, or is not there; the generation cannot be stopped; a request
asks for steering that it may not have; the engine's guard has released the request for good; its lease was over
before it could take effect; it was carried out, until its lease ended."""


class ConfigError(PlumbobError):
    """A setting that is unknown, malformed or given twice; the message begins with the source that has it."""


class PolicyError(PlumbobError):
    """A policy file that is malformed, or names what the bundle does not have."""


class InvalidSteering(PlumbobError):
    """Steering that makes no sense, is beyond a cap, or names what the bundle does not have.

    Args:
        field: Keys that lead to what is wrong, as a policy file has them.
        message: What is wrong with it, without a stop at the end.
        fix: What to do about it.
    """

    def __init__(self, field: tuple[str, ...], message: str, fix: str = "") -> None:
        super().__init__(message, fix)
        self.field = field


class PrerequisiteError(PlumbobError):
    """Something that is not installed, or of an unsupported version."""


class PortError(PlumbobError):
    """An address that is in use or cannot be bound."""


class EngineError(PlumbobError):
    """A vLLM configuration that cannot be tapped."""


class OrderError(EngineError):
    """An order that an engine refuses; the request is served without it.

    Args:
        cause: Why, as a word that is counted by.
        message: What is wrong, naming the object.
        fix: What the one who orders does about it.
    """

    def __init__(self, cause: Cause, message: str, fix: str = "") -> None:
        super().__init__(message, fix)
        self.cause: Cause = cause


class AuditError(PlumbobError):
    """An audit log that cannot be written, or is not what was written."""


class FrameError(PlumbobError):
    """A message that is not of the protocol between engine and monitor. Counted and skipped, never fatal."""


class FrameVersionError(FrameError):
    """A message of a version that this monitor does not read: engine and monitor are of different releases."""
