"""A signature stands for every byte of a bundle, and for nothing else."""

import base64
import hashlib
import os
import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.bundle import MANIFEST, TENSORS, load_bundle, signing
from probes.bundle.keys import fingerprint, generate_key, load_private_key, load_public_key, public_path
from probes.bundle.signing import CLOCK_SKEW, SIGNATURE, Signature, require_signature, sign_bundle
from probes.errors import BundleError
from tests.harness.bundles import make_bundle

MADE = datetime(2026, 1, 1, tzinfo=UTC)
"""When the bundles of these tests were made."""
NOW = MADE + timedelta(days=30)


def never():
    raise AssertionError("no passphrase is needed")


def signed(folder, name="bundle", **options):
    """A signed bundle in ``folder``, with its key beside it; the signature as it was written."""
    bundle = make_bundle(folder / name, **options)
    key = folder / "key"
    if not key.exists():
        generate_key(key)
    return bundle, sign_bundle(bundle, load_private_key(key, never), now=NOW)


@pytest.fixture(scope="module")
def signed_folder(tmp_path_factory):
    """A folder with a signed bundle and its key, that tests leave as it was."""
    folder = tmp_path_factory.mktemp("signed")
    signed(folder)
    return folder


def check(folder, name="bundle", now=NOW):
    """What ``plumbob verify`` does."""
    return require_signature(load_bundle(folder / name), [folder / "key.pub"], now=now)


def test_a_signed_bundle_is_valid_and_loads_as_before(tmp_path):
    bundle, signature = signed(tmp_path)
    assert check(tmp_path) == signature
    assert load_bundle(bundle.path).digest == bundle.digest
    key = load_public_key(tmp_path / "key.pub")
    assert (signature.key, signature.public_key) == (fingerprint(key), key.public_bytes_raw())
    assert signature.signed == "2026-01-31T00:00:00Z"


def test_the_signature_is_over_the_context_the_digest_and_the_time(tmp_path):
    """Made again from the files alone, as somebody without plumbob would."""
    bundle, _ = signed(tmp_path)
    written = msgspec.json.decode((bundle.path / SIGNATURE).read_bytes())
    digest = hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()
    public = base64.b64decode(written["public_key"], validate=True)
    Ed25519PublicKey.from_public_bytes(public).verify(
        base64.b64decode(written["signature"], validate=True),
        f"plumbob bundle v1\n{digest}\n{written['signed']}".encode(),
    )
    assert written["key"] == hashlib.sha256(public).hexdigest()


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_changed_byte_of_any_file_is_refused(signed_folder, data):
    file = signed_folder / "bundle" / data.draw(st.sampled_from([MANIFEST, TENSORS, SIGNATURE]))
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        file.write_bytes(changed)
        with pytest.raises(BundleError):
            check(signed_folder)
    finally:
        file.write_bytes(whole)
    check(signed_folder)


def test_any_flipped_bit_and_any_lost_end_of_the_signature_is_refused(signed_folder):
    bundle = load_bundle(signed_folder / "bundle")
    file, keys = bundle.path / SIGNATURE, [signed_folder / "key.pub"]
    whole = file.read_bytes()
    others = [
        whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :] for at in range(len(whole)) for bit in range(8)
    ]
    try:
        for other in [*others, *(whole[:end] for end in range(len(whole))), whole + b"\n", whole * 2]:
            file.write_bytes(other)
            with pytest.raises(BundleError):
                require_signature(bundle, keys, now=NOW)
    finally:
        file.write_bytes(whole)
    require_signature(bundle, keys, now=NOW)


def test_the_same_content_in_another_spelling_is_refused(tmp_path):
    bundle, signature = signed(tmp_path)
    content = msgspec.to_builtins(signature)
    for other in (msgspec.json.encode(signature), msgspec.json.format(msgspec.json.encode({**content, "x": 1}))):
        (bundle.path / SIGNATURE).write_bytes(other)
        with pytest.raises(BundleError, match="not as plumbob sign writes it"):
            check(tmp_path)


def test_the_signature_of_another_bundle_is_refused(tmp_path):
    one, _ = signed(tmp_path, "one", seed=1)
    two, _ = signed(tmp_path, "two", seed=2)
    (one.path / SIGNATURE).replace(two.path / SIGNATURE)
    with pytest.raises(BundleError, match=r"of another bundle, or one of the two was changed\. Fetch it again"):
        check(tmp_path, "two")


def test_the_files_of_another_bundle_under_a_signature_are_refused(tmp_path):
    """Whole in themselves, so that only the signature tells."""
    one, _ = signed(tmp_path, "one", seed=1)
    two = make_bundle(tmp_path / "two", seed=2)
    for name in (MANIFEST, TENSORS):
        (two.path / name).replace(one.path / name)
    assert load_bundle(one.path).digest == two.digest
    with pytest.raises(BundleError, match="is not what was signed"):
        check(tmp_path, "one")


def forge(bundle, signer, **changes):
    """Write a signature that is right but for ``changes``, which the key's owner would sign."""
    fields = {"key": fingerprint(signer.public_key()), "public_key": signer.public_key().public_bytes_raw()}
    fields |= {"signed": "2026-01-31T00:00:00Z"} | changes
    message = f"plumbob bundle v1\n{bundle.digest}\n{fields['signed']}".encode()
    (bundle.path / SIGNATURE).write_bytes(Signature(**({"signature": signer.sign(message)} | fields)).encode())


def test_a_signature_by_another_key_is_refused_and_the_key_is_named(tmp_path):
    bundle, _ = signed(tmp_path)
    other = Ed25519PrivateKey.generate()
    forge(bundle, other)
    name = fingerprint(other.public_key())
    with pytest.raises(BundleError, match=f"signed at 2026-01-31T00:00:00Z with key {name}, which is none of the 1"):
        check(tmp_path)
    with pytest.raises(BundleError, match=f"{name}, which is not known: no public key was named"):
        require_signature(bundle, [], now=NOW)


def test_who_signed_is_not_told_of_a_signature_that_is_wrong(tmp_path):
    """Otherwise anybody could put another's key there, and have it said that they signed."""
    bundle, signature = signed(tmp_path)
    forge(bundle, Ed25519PrivateKey.generate(), public_key=signature.public_key, key=signature.key)
    for trusted in ([], [tmp_path / "key.pub"]):
        with pytest.raises(BundleError, match="is not what was signed") as caught:
            require_signature(bundle, trusted, now=NOW)
        assert signature.key not in str(caught.value)


def test_a_fingerprint_of_another_key_is_refused(tmp_path):
    bundle, _ = signed(tmp_path)
    forge(bundle, load_private_key(tmp_path / "key", never), key="0" * 64)
    with pytest.raises(BundleError, match="names another key than it holds"):
        check(tmp_path)


@pytest.mark.parametrize("changes", [{"public_key": b"short"}, {"signature": bytes(63)}, {"signature": b""}])
def test_keys_and_signatures_of_another_length_are_refused(tmp_path, changes):
    bundle, _ = signed(tmp_path)
    forge(bundle, load_private_key(tmp_path / "key", never), **changes)
    with pytest.raises(BundleError, match="is not what was signed"):
        check(tmp_path)


def test_one_of_several_trusted_keys_is_enough(tmp_path):
    _, signature = signed(tmp_path)
    generate_key(tmp_path / "other")
    bundle = load_bundle(tmp_path / "bundle")
    assert require_signature(bundle, [tmp_path / "other.pub", tmp_path / "key.pub"], now=NOW) == signature
    (tmp_path / "other.pub").write_text("junk")
    with pytest.raises(BundleError, match=r"other\.pub is not a public key"):
        require_signature(bundle, [tmp_path / "key.pub", tmp_path / "other.pub"], now=NOW)


def test_a_bundle_without_signature_says_how_to_sign_it(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    generate_key(tmp_path / "key")
    with pytest.raises(BundleError, match=rf"not signed.* plumbob sign {bundle.path} --key KEY"):
        check(tmp_path)


def test_signing_again_replaces_the_signature_and_leaves_nothing_else(tmp_path):
    bundle, first = signed(tmp_path)
    second = sign_bundle(bundle, load_private_key(tmp_path / "key", never), now=NOW + timedelta(days=1))
    assert check(tmp_path, now=NOW + timedelta(days=1)) == second != first
    assert {entry.name for entry in bundle.path.iterdir()} == {MANIFEST, TENSORS, SIGNATURE}


def test_a_signature_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    bundle, first = signed(tmp_path)

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(signing.Path, "replace", full)
    with pytest.raises(BundleError, match="cannot be written: No space left on device"):
        sign_bundle(bundle, load_private_key(tmp_path / "key", never), now=NOW)
    assert check(tmp_path) == first
    assert {entry.name for entry in bundle.path.iterdir()} == {MANIFEST, TENSORS, SIGNATURE}


SECOND = timedelta(seconds=1)


def test_a_time_before_the_bundle_was_made_is_refused_but_for_the_clocks_differences(tmp_path):
    bundle, _ = signed(tmp_path)
    key = load_private_key(tmp_path / "key", never)
    sign_bundle(bundle, key, now=MADE - CLOCK_SKEW)
    check(tmp_path)
    for now in (MADE - CLOCK_SKEW - SECOND, datetime(1970, 1, 1, tzinfo=UTC)):
        with pytest.raises(BundleError, match="before that"):
            sign_bundle(bundle, key, now=now)
    assert check(tmp_path).signed == "2025-12-31T23:55:00Z", "what was there is still there"
    forge(bundle, key, signed="2025-12-31T23:54:59Z")
    with pytest.raises(BundleError, match="before that"):
        check(tmp_path)


def test_a_time_in_the_future_is_refused_but_for_the_clocks_differences(tmp_path):
    signed(tmp_path)
    check(tmp_path, now=NOW - CLOCK_SKEW)
    with pytest.raises(BundleError, match=r"signed at 2026-01-31T00:00:00Z, and this machine's clock says 2026-01-30"):
        check(tmp_path, now=NOW - CLOCK_SKEW - SECOND)


def test_the_clock_is_this_machines_where_none_is_given(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    generate_key(tmp_path / "key")
    before = datetime.now(UTC) - SECOND
    signature = sign_bundle(bundle, load_private_key(tmp_path / "key", never))
    assert before <= datetime.fromisoformat(signature.signed) <= datetime.now(UTC)
    assert require_signature(bundle, [tmp_path / "key.pub"]) == signature
    forge(bundle, load_private_key(tmp_path / "key", never), signed="2999-01-01T00:00:00Z")
    with pytest.raises(BundleError, match="this machine's clock"):
        require_signature(bundle, [tmp_path / "key.pub"])


@pytest.mark.parametrize("time", ["", "yesterday", "2026-02-30T00:00:00Z", "2026-01-31T25:00:00Z"])
def test_what_is_no_time_is_refused(tmp_path, time):
    bundle, _ = signed(tmp_path)
    forge(bundle, load_private_key(tmp_path / "key", never), signed=time)
    with pytest.raises(BundleError, match=f"signed at '{time}', which is no time"):
        check(tmp_path)


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"])
def test_the_ends_of_the_calendar_are_refused(tmp_path, time):
    bundle, _ = signed(tmp_path)
    forge(bundle, load_private_key(tmp_path / "key", never), signed=time)
    with pytest.raises(BundleError, match=r"before that|this machine's clock"):
        check(tmp_path)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_reads_a_private_key(tmp_path, umask):
    bundle = make_bundle(tmp_path / "bundle")
    before = os.umask(umask)
    try:
        generate_key(tmp_path / "key")
        sign_bundle(bundle, load_private_key(tmp_path / "key", never), now=NOW)
    finally:
        os.umask(before)
    assert mode(tmp_path / "key") == 0o600
    assert mode(tmp_path / "key.pub") == mode(bundle.path / SIGNATURE) == 0o644 & ~umask


def test_two_keys_are_two(tmp_path):
    names = {generate_key(tmp_path / name) for name in ("one", "two")}
    assert names == {fingerprint(load_public_key(public_path(tmp_path / name))) for name in ("one", "two")}
    assert len(names) == 2


@pytest.mark.parametrize("taken", ["key", "key.pub"])
def test_a_key_is_never_overwritten_and_half_a_pair_is_not_left(tmp_path, taken):
    (tmp_path / taken).write_text("precious")
    with pytest.raises(BundleError, match=rf"{taken} exists"):
        generate_key(tmp_path / "key")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [(taken, "precious")]


def test_a_key_is_not_written_through_a_link(tmp_path):
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="exists"):
        generate_key(tmp_path / "key")
    assert not (tmp_path / "elsewhere").exists()


def test_a_key_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(BundleError, match="cannot be written: No such file or directory"):
        generate_key(tmp_path / "gone" / "key")


def test_an_encrypted_key_opens_with_its_passphrase_alone(tmp_path):
    name = generate_key(tmp_path / "key", b"correct horse")
    assert b"ENCRYPTED" in (tmp_path / "key").read_bytes()
    assert fingerprint(load_private_key(tmp_path / "key", lambda: b"correct horse").public_key()) == name
    for wrong, said in ((b"battery", "cannot be opened"), (b"", "the passphrase is empty")):
        with pytest.raises(BundleError, match=said):
            load_private_key(tmp_path / "key", lambda given=wrong: given)
    with pytest.raises(BundleError, match="passphrase is empty"):
        generate_key(tmp_path / "other", b"")
    assert not (tmp_path / "other").exists()


def test_the_wrong_file_for_a_key_is_named_with_the_right_one(tmp_path):
    generate_key(tmp_path / "key")
    generate_key(tmp_path / "encrypted", b"secret")
    with pytest.raises(BundleError, match=r"key\.pub is a public key.*without \.pub"):
        load_private_key(tmp_path / "key.pub", never)
    for name in ("key", "encrypted"):
        with pytest.raises(BundleError, match=rf"{name} is a private key.*\.pub file"):
            load_public_key(tmp_path / name)


JUNK = {
    "empty": b"",
    "text": b"not a key\n",
    "bytes": bytes(range(256)),
    "no end": b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA",
    "no base64": b"-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n",
    "no key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
}


@pytest.mark.parametrize("junk", JUNK)
def test_what_is_no_key_is_refused(tmp_path, junk):
    file = tmp_path / "key"
    file.write_bytes(JUNK[junk])
    with pytest.raises(BundleError, match=r"is not a private key in PEM\. Make a pair with: plumbob keygen"):
        load_private_key(file, never)
    file.write_bytes(JUNK[junk].replace(b"PRIVATE", b"PUBLIC"))
    with pytest.raises(BundleError, match="is not a public key in PEM"):
        load_public_key(file)


def test_the_beginning_of_a_file_is_read_and_no_more(tmp_path):
    generate_key(tmp_path / "key")
    key = (tmp_path / "key.pub").read_bytes()
    # Text before a key is allowed in PEM.
    (tmp_path / "key.pub").write_bytes(b"a comment\n" * 100 + key)
    load_public_key(tmp_path / "key.pub")
    (tmp_path / "key.pub").write_bytes(b"a comment\n" * 10_000 + key)
    with pytest.raises(BundleError, match="is not a public key in PEM"):
        load_public_key(tmp_path / "key.pub")


def test_a_file_that_cannot_be_read_is_no_key(tmp_path):
    for path, why in ((tmp_path / "gone", "No such file"), (tmp_path, "Is a directory")):
        for load in (load_public_key, lambda path: load_private_key(path, never)):
            with pytest.raises(BundleError, match=f"Key {path} cannot be read: {why}"):
                load(path)


def test_a_key_of_another_kind_is_refused(tmp_path):
    key = generate_private_key(SECP256R1())
    private, public = tmp_path / "ec", tmp_path / "ec.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for load in (lambda: load_private_key(private, never), lambda: load_public_key(public)):
        with pytest.raises(BundleError, match=r"of another kind than ed25519\. Make a pair"):
            load()


def test_keys_are_those_of_openssl(tmp_path):
    """No format of our own, and a key that openssl encrypted with more rounds than we can is read."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")

    def run(*arguments):
        return subprocess.run([openssl, *map(str, arguments)], check=True, capture_output=True).stdout

    generate_key(tmp_path / "key")
    assert run("pkey", "-in", tmp_path / "key", "-pubout") == (tmp_path / "key.pub").read_bytes()
    hardened = tmp_path / "hardened"
    run("pkcs8", "-topk8", "-in", tmp_path / "key", "-out", hardened, "-iter", 10_000, "-passout", "pass:secret")
    assert b"ENCRYPTED" in hardened.read_bytes()
    opened = load_private_key(hardened, lambda: b"secret").public_key()
    assert fingerprint(opened) == fingerprint(load_public_key(tmp_path / "key.pub"))
