"""The monitor's branch of the error tree (see :mod:`probes.errors`)::

PlumbobError
├── PolicyError             a policy file that is malformed or does not fit the bundle
├── PrerequisiteError       something is not installed, or of an unsupported version
├── PortError               an address that is in use
├── EngineError             a vLLM configuration that cannot be tapped
├── AuditError              an audit log that cannot be written, or is not what was written
└── FrameError              a message that is not of the protocol between engine and monitor
    └── FrameVersionError   a message of a version that this monitor does not read
"""

from probes.errors import PlumbobError


class PolicyError(PlumbobError):
    """A policy file that is malformed, or names what the bundle does not have."""


class PrerequisiteError(PlumbobError):
    """Something that is not installed, or of an unsupported version."""


class PortError(PlumbobError):
    """An address that is in use or cannot be bound."""


class EngineError(PlumbobError):
    """A vLLM configuration that cannot be tapped."""


class AuditError(PlumbobError):
    """An audit log that cannot be written, or is not what was written."""


class FrameError(PlumbobError):
    """A message that is not of the protocol between engine and monitor. Counted and skipped, never fatal."""


class FrameVersionError(FrameError):
    """A message of a version that this monitor does not read: engine and monitor are of different releases."""
