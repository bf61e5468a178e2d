"""The monitor's branch of the error tree (see :mod:`probes.errors`)::

    PlumbobError
    ├── PolicyError             a policy file that is malformed or does not fit the bundle
    ├── PrerequisiteError       something is not installed, or of an unsupported version
    ├── PortError               an address that is in use
    ├── EngineError             a vLLM configuration that cannot be tapped
    └── FrameError              a message that is not a frame of a known version
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


class FrameError(PlumbobError):
    """A message that is not a frame, or of an unknown version. Counted and skipped, never fatal."""
