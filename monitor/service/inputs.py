"""The files that the monitor's configuration names, read and held against each other."""

from pathlib import Path

from monitor.policy import Policy, default_policy, load_policy
from monitor.service.config import MonitorConfig
from probes.bundle import Bundle, load_bundle


def read_bundle(config: MonitorConfig) -> Bundle:
    """The bundle, signed by a key that is trusted where any is named.

    Raises:
        BundleError: It cannot be read, or is not signed by any of them.
    """
    bundle = load_bundle(config.bundle)
    if config.trust:
        from probes.bundle.signing import require_signature

        require_signature(bundle, config.trust)
    return bundle


def read_policy(path: Path | None, bundle: Bundle) -> Policy:
    """The policy of a file, or the one where none is given.

    Raises:
        PolicyError: It cannot be read, or does not fit the bundle.
    """
    return default_policy(bundle) if path is None else load_policy(path, bundle)
