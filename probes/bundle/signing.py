r"""The signature of a bundle: ed25519 (RFC 8032), in a file beside what it signs.

::

    bundle/
      signature.json       the public key and its fingerprint, the time, the signature

1. A bundle's digest is the SHA-256 of its manifest, which names that of every other file; :func:`load_bundle` has
   compared them all when it returns.
2. The signed message is ``plumbob bundle v1\n``, the digest in hexadecimal, ``\n`` and the time. The first line keeps
   a signature that the same key gave for something else from being taken for one of a bundle, and the reverse.
3. The file has one valid spelling, the bytes that this module writes: anything else is refused, even where it would
   mean the same, so that no byte of a signed bundle can be changed unnoticed.
4. The public key in the file says who signed, and nothing about trust. The caller names the keys that are trusted.

OpenSSF's ``model-signing`` was tried for this (1.1.1, with a key, without network) and left: it takes no ed25519 keys,
only NIST curves; it brings 21 distributions that Plumbob has no other use for (sigstore, TUF, in-toto, …), and does not
import without one that it does not name (pyOpenSSL); importing it takes 0.9 s and 60 MB, against 0.1 s and 21 MB for
what is used here; and it hashes again every file that :func:`load_bundle` has just compared with the manifest.
"""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from probes.bundle import SIGNATURE, Bundle
from probes.bundle.keys import LIMIT, create_file, fingerprint, load_public_key
from probes.errors import BundleError, reason

CLOCK_SKEW: Final = timedelta(minutes=5)
"""Allowed difference of the clocks of the machines that fit, sign and verify."""

_CONTEXT: Final = b"plumbob bundle v1\n"
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


class Signature(msgspec.Struct, frozen=True):
    """``signature.json``; bytes are base64 there."""

    key: str
    """Fingerprint of the public key, for people."""
    public_key: bytes
    """32 bytes."""
    signed: str
    """Time, UTC, ISO 8601 with seconds."""
    signature: bytes
    """64 bytes."""

    def encode(self) -> bytes:
        """Encode the file, in the only spelling that is valid."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def sign_bundle(bundle: Bundle, key: Ed25519PrivateKey, *, now: datetime | None = None) -> Signature:
    """Sign a bundle as it was loaded, and write the signature beside it; an earlier one is replaced.

    Args:
        bundle: To sign.
        key: To sign with.
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
    create_file(temporary, signature.encode(), 0o644)
    try:
        temporary.replace(target)
    except OSError as error:
        temporary.unlink()
        raise BundleError(f"{target} cannot be written: {error.strerror}.", "Check its owner and its disk.") from error
    return signature


def require_signature(bundle: Bundle, trusted: Sequence[Path], *, now: datetime | None = None) -> Signature:
    """Check that a bundle, as it was loaded, is signed with a trusted key.

    Args:
        bundle: As :func:`load_bundle` returned it, which has checked every file against the manifest.
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
            "Get the public key of its signer, and name it: verify --key KEY.pub, or serve --trust KEY.pub",
        )
    return signature


def _message(bundle: Bundle, signed: str) -> bytes:
    return _CONTEXT + bundle.digest.encode() + b"\n" + signed.encode()


def _read_signature(bundle: Bundle) -> Signature:
    path = bundle.path / SIGNATURE
    try:
        with path.open("rb") as file:
            encoded = file.read(LIMIT)
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
