"""``plumbob keygen``, ``sign`` and ``verify``: who vouches for a bundle."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from monitor.cli.console import out
from probes.errors import BundleError

SignedBundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory of the bundle.")]
PassphraseVariable = Annotated[
    str | None,
    typer.Option(
        "--passphrase-env", metavar="NAME", help="Environment variable that has the passphrase; instead of asking."
    ),
]


def keygen(
    path: Annotated[Path, typer.Option("--out", "-o", help="File of the private key; the public one is KEY.pub.")],
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Encrypt it; the passphrase is asked for.")] = False,
    passphrase_env: PassphraseVariable = None,
) -> None:
    """Make a pair of keys to sign bundles with."""
    from probes.bundle.keys import generate_key, public_path

    encrypted = passphrase or passphrase_env is not None
    key = generate_key(path, _passphrase(passphrase_env, confirm=True) if encrypted else None)
    out.print(Text(f"private key {path} ({'' if encrypted else 'not '}encrypted): its holder signs in your name"))
    out.print(Text(f"public key {public_path(path)}: give it to those who verify"))
    out.print(Text(f"fingerprint {key}"))


def sign(
    bundle: SignedBundle,
    key: Annotated[Path, typer.Option("--key", "-k", help="File of your private key.")],
    passphrase_env: PassphraseVariable = None,
) -> None:
    """Vouch for a bundle with your key; an earlier signature is replaced."""
    from probes.bundle import load_bundle
    from probes.bundle.keys import load_private_key
    from probes.bundle.signing import sign_bundle

    loaded = load_bundle(bundle)
    signature = sign_bundle(loaded, load_private_key(key, lambda: _passphrase(passphrase_env)))
    out.print(
        Text(f"signed bundle {loaded.path} ({loaded.digest[:12]}) at {signature.signed} with key {signature.key}")
    )


def verify(
    bundle: SignedBundle,
    keys: Annotated[
        list[Path] | None,
        typer.Option("--key", "-k", help="File of a public key that you trust; may be repeated."),
    ] = None,
) -> None:
    """Check that a bundle is whole, and signed by a key that you trust: exit code 0, else 2."""
    from probes.bundle import load_bundle
    from probes.bundle.signing import require_signature

    loaded = load_bundle(bundle)
    signature = require_signature(loaded, keys or ())
    out.print(
        Text(
            f"valid: bundle {loaded.path} ({loaded.digest[:12]}), signed at {signature.signed} with key {signature.key}"
        )
    )


def _passphrase(variable: str | None, *, confirm: bool = False) -> bytes:
    """From the environment, or from the terminal.

    Raises:
        BundleError: The variable is empty, or there is no terminal.
    """
    if variable is not None:
        if not (value := os.environ.get(variable)):
            raise BundleError(f"The environment variable {variable} is empty.", "Set it to the passphrase.")
        return os.fsencode(value)
    if not sys.stdin.isatty():
        raise BundleError("There is no terminal to ask for the passphrase.", "Name a variable with --passphrase-env.")
    return os.fsencode(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True))
