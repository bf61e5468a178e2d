r"""Who vouches for a bundle: an ed25519 signature (RFC 8032) that lies beside what it signs.

::

    bundle/
      signature.json       the public key and its fingerprint, the time, the signature

1. A bundle's digest is the SHA-256 of its manifest, which names that of every other file; :func:`load_bundle` has
   compared them all when it returns.
2. What is signed is ``plumbob bundle v1\n``, the digest in hexadecimal, ``\n`` and the time. The first line keeps a
   signature that the same key gave for something else from being taken for one of a bundle, and the reverse.
3. A file has one valid spelling, the bytes that this module writes: anything else is refused, even where it would mean
   the same, so that no byte of a signed bundle can be changed unnoticed.
4. The public key in the file says who signed; it does not say that they are to be trusted. That is decided by the keys
   that the caller names, and by nothing in the bundle.

Keys are PEM files: PKCS #8 for the private key, SubjectPublicKeyInfo for ``KEY.pub``, as openssl reads and writes them.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
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

from probes.bundle import SIGNATURE, Bundle
from probes.errors import BundleError, reason

CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far the clocks of the machines that fit, sign and verify may be apart."""

_CONTEXT: Final = b"plumbob bundle v1\n"
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_LIMIT: Final = 1 << 16
"""Bytes of a key or signature that are read; both take a few hundred."""
_KEYGEN: Final = "Make a pair with: plumbob keygen --out KEY"


class Signature(msgspec.Struct, frozen=True):
    """``signature.json``; bytes are base64 there."""

    key: str
    """Fingerprint of the public key, for people."""
    public_key: bytes
    """32 bytes."""
    signed: str
    """When, UTC, ISO 8601 with seconds."""
    signature: bytes
    """64 bytes."""

    def encode(self) -> bytes:
        """The file, in the only spelling that is valid."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


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
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _create(path, private, 0o600)
    try:
        _create(public_path(path), public, 0o644)
    except BaseException:
        path.unlink()
        raise
    return fingerprint(key.public_key())


def public_path(path: Path) -> Path:
    """Where the public key of a private key lies."""
    return path.with_name(f"{path.name}.pub")


def load_private_key(path: Path, passphrase: Callable[[], bytes]) -> Ed25519PrivateKey:
    """Read a key to sign with.

    Args:
        path: A PEM file.
        passphrase: Asked only where the key is encrypted.

    Raises:
        BundleError: Missing, no private ed25519 key, or not opened by the passphrase.
    """
    encoded = _read_key(path)
    if b"-----BEGIN PUBLIC KEY-----" in encoded:
        raise BundleError(f"{path} is a public key, and signing takes the private one.", "Name the file without .pub.")
    try:
        try:
            key = load_pem_private_key(encoded, None)
        except TypeError:
            # What cryptography raises for an encrypted key without a passphrase.
            if not (given := passphrase()):
                raise BundleError(
                    f"Key {path} is encrypted, and the passphrase is empty.", "Give the one it was made with."
                ) from None
            key = load_pem_private_key(encoded, given)
    except (ValueError, UnsupportedAlgorithm) as error:
        if b"ENCRYPTED" in encoded:
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
    """SHA-256 of the key's 32 bytes, in hexadecimal."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def sign_bundle(bundle: Bundle, key: Ed25519PrivateKey, *, now: datetime | None = None) -> Signature:
    """Sign a bundle as it was loaded, and write the signature beside it; an earlier one is replaced.

    Args:
        bundle: What to vouch for.
        key: Whose.
        now: UTC; ``None``: by this machine's clock.

    Raises:
        BundleError: The clock says that the bundle is not made yet, or the directory cannot be written.
    """
    now = now or datetime.now(UTC)
    public, signed = key.public_key(), now.strftime(_TIME)
    _require_time(bundle, signed, now)
    signature = Signature(
        key=fingerprint(public),
        public_key=public.public_bytes_raw(),
        signed=signed,
        signature=key.sign(_message(bundle, signed)),
    )
    target = bundle.path / SIGNATURE
    temporary = target.with_name(f".{SIGNATURE}.{secrets.token_hex(4)}")
    _create(temporary, signature.encode(), 0o644)
    try:
        temporary.replace(target)
    except OSError as error:
        temporary.unlink()
        raise BundleError(f"{target} cannot be written: {error.strerror}.", "Check its owner and its disk.") from error
    return signature


def require_signature(bundle: Bundle, trusted: Sequence[Path], *, now: datetime | None = None) -> Signature:
    """Check that a bundle, as it was loaded, is signed by somebody who is trusted.

    Args:
        bundle: What :func:`load_bundle` returned, which has checked every file against the manifest.
        trusted: Files of public keys. Where there is none, every bundle is refused.
        now: UTC; ``None``: by this machine's clock.

    Returns:
        The signature, valid and trusted.

    Raises:
        BundleError: Not signed, not by a trusted key, not this bundle, or at a time that cannot be.
    """
    keys = {load_public_key(path).public_bytes_raw() for path in trusted}
    signature = _read_signature(bundle)
    try:
        key = Ed25519PublicKey.from_public_bytes(signature.public_key)
        key.verify(signature.signature, _message(bundle, signature.signed))
    except (ValueError, InvalidSignature) as error:
        raise BundleError(
            f"Bundle {bundle.path} is not what was signed: its {SIGNATURE} is of another bundle, or one of the two was "
            "changed.",
            "Fetch it again from where it was signed.",
        ) from error
    if fingerprint(key) != signature.key:
        raise _damaged(bundle, "it names another key than it holds")
    _require_time(bundle, signature.signed, now or datetime.now(UTC))
    if signature.public_key not in keys:
        which = f"none of the {len(keys)} trusted" if keys else "not known: no public key was named"
        raise BundleError(
            f"Bundle {bundle.path} is whole and was signed at {signature.signed} with key {signature.key}, "
            f"which is {which}.",
            "Get the public key from whoever signed it, and name it: verify --key KEY.pub, or serve --trust KEY.pub",
        )
    return signature


def _message(bundle: Bundle, signed: str) -> bytes:
    return _CONTEXT + bundle.digest.encode() + b"\n" + signed.encode()


def _read_signature(bundle: Bundle) -> Signature:
    path = bundle.path / SIGNATURE
    try:
        encoded = _read(path)
    except FileNotFoundError as error:
        raise BundleError(
            f"Bundle {bundle.path} is not signed: it has no {SIGNATURE}.",
            f"Sign it with: plumbob sign {bundle.path} --key KEY",
        ) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.", "Check its owner.") from error
    try:
        signature = msgspec.json.decode(encoded, type=Signature)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _damaged(bundle, reason(error)) from error
    if signature.encode() != encoded:
        raise _damaged(bundle, "it is not as plumbob sign writes it")
    return signature


def _require_time(bundle: Bundle, signed: str, now: datetime) -> None:
    """Raise BundleError where a bundle would be signed before it was made, or in the future."""
    moment = _moment(bundle, "signed", signed)
    if moment - _moment(bundle, "made", bundle.manifest.created) < -CLOCK_SKEW:
        raise BundleError(
            f"Bundle {bundle.path} was made at {bundle.manifest.created}, and signed at {signed}, before that.",
            "Set the clock of the machine that signs, and sign it again.",
        )
    if moment - now > CLOCK_SKEW:
        raise BundleError(
            f"Bundle {bundle.path} was signed at {signed}, and this machine's clock says {now.strftime(_TIME)}.",
            "Set the clock that is wrong; if it was the signer's, sign the bundle again.",
        )


def _moment(bundle: Bundle, what: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BundleError(
            f"Bundle {bundle.path} says that it was {what} at '{text}', which is no time.", "Fit and sign it again."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _damaged(bundle: Bundle, why: str) -> BundleError:
    return BundleError(
        f"The signature of bundle {bundle.path} is damaged: {why}.",
        f"Fetch it again, or sign it with: plumbob sign {bundle.path} --key KEY",
    )


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LIMIT)


def _read_key(path: Path) -> bytes:
    try:
        return _read(path.expanduser())
    except OSError as error:
        raise BundleError(f"Key {path} cannot be read: {error.strerror}.", "Check its path and its owner.") from error


def _create(path: Path, content: bytes, mode: int) -> None:
    """Write a file that does not exist, with its mode from the first moment on; nothing is left where it fails."""
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
