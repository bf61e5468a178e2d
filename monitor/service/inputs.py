"""The files that the monitor's configuration names, read and held against each other."""

from pathlib import Path

from monitor.policy import Policy, default_policy, load_policy
from monitor.service.config import MonitorConfig
from probes.bundle import Bundle, load_bundle
from probes.bundle.shipped import require_trusted


def read_bundle(config: MonitorConfig) -> Bundle:
    """Read the bundle, and check that it is signed by a trusted key, where any is named or it is the one that ships.

    Raises:
        BundleError: It cannot be read, or is not signed by any of them.
    """
    bundle = load_bundle(config.bundle)
    require_trusted(bundle, config.trust)
    return bundle


def read_policy(path: Path | None, bundle: Bundle) -> Policy:
    """The policy of a file, or the one where none is given.

    Raises:
        PolicyError: It cannot be read, or does not fit the bundle.
    """
    return default_policy(bundle) if path is None else load_policy(path, bundle)
