"""The bundle that ships with Plumbob: that of the demo model, with its report, signed.

::

    probes/bundle/
      demo/       the bundle, as ``make demo-bundle KEY=…`` makes it of public data sets
      demo.pub    the public key of its signer

A signature by a key that lies beside what it signs shows that nobody has changed one without the other; it says nothing
of who made both. That is the package's to say.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from probes.bundle.artefact import Bundle
from probes.models.identity import DEMO

DEMO_BUNDLE: Final = Path(__file__).parent / "demo"
DEMO_KEY: Final = Path(__file__).parent / "demo.pub"


def shipped_bundle(model: str) -> Path | None:
    """Find the bundle that ships for a model: its directory, or ``None`` where none does.

    Args:
        model: As users name it.
    """
    return DEMO_BUNDLE if model == DEMO else None


def bundle_directory(name: Path | str) -> Path:
    """Resolve what a user names as a bundle: a directory, or ``demo`` where there is none of that name."""
    path = Path(name).expanduser()
    shipped = shipped_bundle(str(name))
    return shipped if shipped is not None and not path.exists() else path.resolve()


def require_trusted(bundle: Bundle, trusted: Sequence[Path]) -> None:
    """Check that a bundle is signed with one of the keys that the user trusts, where any are named.

    The bundle that ships is checked in any case: with :data:`DEMO_KEY`, where no other key is named.

    Args:
        bundle: As :func:`probes.bundle.load_bundle` returned it.
        trusted: Files of public keys; none: the bundle need not be signed.

    Raises:
        BundleError: It is not signed with any of them.
    """
    keys = trusted or ([DEMO_KEY] if bundle.path == DEMO_BUNDLE else [])
    if keys:
        # Where it is used: cryptography takes a tenth of a second to import.
        from probes.bundle.signing import require_signature

        require_signature(bundle, keys)
