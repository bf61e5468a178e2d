"""Key files: PEM as openssl reads and writes it, PKCS #8 for a private key and SubjectPublicKeyInfo for ``KEY.pub``.

Only ed25519 (RFC 8032): one kind of key, 32 bytes, deterministic signatures, nothing to choose.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from probes.errors import BundleError

LIMIT: Final = 1 << 16
"""Bytes of a key or signature that are read; both take a few hundred."""
_KEYGEN: Final = "Make a pair with: plumbob keygen --out KEY"


def generate_key(path: Path, passphrase: bytes | None = None) -> str:
    """Write a new pair of keys: ``path``, which its owner alone may read, and ``path.pub``.

    Args:
        path: Of the private key; neither file may exist.
        passphrase: Encrypts the private key with AES-256, by a PBKDF2 of few rounds (cryptography 50 makes 2048): let
            it be long. A file that openssl encrypted with more rounds is read too. ``None``: no encryption.

    Returns:
        The fingerprint.

    Raises:
        BundleError: A file exists or cannot be written; nothing is left behind.
    """
    path = path.expanduser()
    if passphrase == b"":
        raise BundleError("The passphrase is empty.", "Choose a longer one.")
    key = Ed25519PrivateKey.generate()
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    create_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption), 0o600)
    try:
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        create_file(public_path(path), public, 0o644)
    except BaseException:
        path.unlink()
        raise
    return fingerprint(key.public_key())


def public_path(path: Path) -> Path:
    """Name the file of a private key's public key."""
    return path.with_name(f"{path.name}.pub")


def load_private_key(path: Path, passphrase: Callable[[], bytes]) -> Ed25519PrivateKey:
    """Read a key to sign with.

    Args:
        path: A PEM file.
        passphrase: Called only where the key is encrypted.

    Raises:
        BundleError: Missing, no private ed25519 key, or not opened by the passphrase.
    """
    encoded = _read_key(path)
    if b"-----BEGIN PUBLIC KEY-----" in encoded:
        raise BundleError(f"{path} is a public key, and signing takes the private one.", "Name the file without .pub.")
    encrypted = b"ENCRYPTED" in encoded
    secret = passphrase() if encrypted else None
    if secret == b"":
        raise BundleError(f"Key {path} is encrypted, and the passphrase is empty.", "Give the one it was made with.")
    try:
        key = load_pem_private_key(encoded, secret)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise BundleError(
                f"Key {path} cannot be opened: another passphrase, or a damaged file.", "Try again, or: plumbob keygen"
            ) from error
        raise BundleError(f"{path} is not a private key in PEM.", _KEYGEN) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"{path} is a private key of another kind than ed25519.", _KEYGEN)
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a key to verify with.

    Raises:
        BundleError: Missing, or no public ed25519 key.
    """
    encoded = _read_key(path)
    if b"PRIVATE KEY-----" in encoded:
        raise BundleError(f"{path} is a private key, and verifying takes the public one.", "Name its .pub file.")
    try:
        key = load_pem_public_key(encoded)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(f"{path} is not a public key in PEM.", "Name a file that plumbob keygen wrote.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"{path} is a public key of another kind than ed25519.", _KEYGEN)
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """Compute the SHA-256 of the key's 32 bytes, in hexadecimal."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def create_file(path: Path, content: bytes, mode: int) -> None:
    """Write a file that does not exist, with its mode from the first moment on; nothing is left where it fails.

    Raises:
        BundleError: It exists, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
        except BaseException:
            path.unlink()
            raise
    except FileExistsError as error:
        raise BundleError(f"{path} exists, and is not overwritten.", "Name another file.") from error
    except OSError as error:
        raise BundleError(
            f"{path} cannot be written: {error.strerror}.", "Check its directory, its owner and its disk."
        ) from error


def _read_key(path: Path) -> bytes:
    try:
        with path.expanduser().open("rb") as file:
            return file.read(LIMIT)
    except OSError as error:
        raise BundleError(f"Key {path} cannot be read: {error.strerror}.", "Check its path and its owner.") from error
