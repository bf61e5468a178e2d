"""``plumbob keygen``, ``sign``, ``verify`` and ``--trust``: exit codes, lines of error, and who is asked for what."""

import json
import re
import stat
import sys

import pytest

from monitor.cli import signing
from monitor.service.config import MonitorConfig
from monitor.supervisor.config import ServeConfig
from monitor.supervisor.serving import Serving
from probes.bundle import MANIFEST, TENSORS, load_bundle
from probes.bundle.keys import generate_key, load_private_key
from probes.bundle.signing import SIGNATURE, sign_bundle
from tests.harness.bundles import make_bundle
from tests.harness.command_line import Running, assert_one_error


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A directory with an unsigned ``bundle`` and no terminal."""
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    monkeypatch.delenv("SECRET", raising=False)
    make_bundle(tmp_path / "bundle")
    return tmp_path


@pytest.fixture
def ok(plumbob):
    """``ok("sign", …)``: succeeds without a word on stderr; what it printed."""

    def run(*arguments):
        result = plumbob(*arguments)
        assert (result.code, result.err) == (0, "")
        return result.out

    return run


@pytest.fixture
def typed(monkeypatch):
    """Somebody at a terminal, who types what is in the list."""
    answers = []

    def prompt(text, **options):
        assert options["hide_input"] and options["err"]
        asked.append(options["confirmation_prompt"])
        return answers.pop(0)

    asked = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(signing.typer, "prompt", prompt)
    return answers, asked


def test_from_key_to_verified_bundle(ok, files):
    made = ok("keygen", "--out", files / "key")
    name = re.fullmatch(
        rf"private key {files}/key \(not encrypted\): its holder signs in your name\n"
        rf"public key {files}/key\.pub: give it to those who verify\nfingerprint ([0-9a-f]{{64}})\n",
        made,
    )
    assert name, made
    assert stat.S_IMODE((files / "key").stat().st_mode) == 0o600
    ok_line = rf"bundle {files}/bundle \([0-9a-f]{{12}}\)"
    signed = ok("sign", files / "bundle", "--key", files / "key")
    assert re.fullmatch(rf"signed {ok_line} at [0-9-]{{10}}T[0-9:]{{8}}Z with key {name[1]}\n", signed)
    verified = ok("verify", files / "bundle", "--key", files / "key.pub")
    assert re.fullmatch(rf"valid: {ok_line}, signed at [0-9-]{{10}}T[0-9:]{{8}}Z with key {name[1]}\n", verified)


@pytest.fixture
def signed(ok, files):
    """``files`` with two pairs of keys, and the bundle signed with the first."""
    for name in ("key", "other"):
        ok("keygen", "--out", files / name)
    ok("sign", files / "bundle", "--key", files / "key")
    return files


def test_without_a_key_it_says_who_signed_and_that_nobody_vouches_for_them(plumbob, signed):
    result = plumbob("verify", signed / "bundle")
    assert_one_error(result, "is whole and was signed at ", "not known: no public key was named", "--key KEY.pub")
    assert result.out == ""


def test_another_key_is_refused_and_one_of_several_is_enough(ok, plumbob, signed):
    other, key = signed / "other.pub", signed / "key.pub"
    assert_one_error(plumbob("verify", signed / "bundle", "--key", other), "which is none of the 1 trusted")
    assert ok("verify", signed / "bundle", "--key", other, "--key", key).startswith("valid: ")


@pytest.mark.parametrize("name", [MANIFEST, TENSORS, SIGNATURE])
def test_a_changed_file_is_refused(plumbob, signed, name):
    file = signed / "bundle" / name
    content = bytearray(file.read_bytes())
    # A digit or a letter stays one.
    content[-20] ^= 1
    file.write_bytes(content)
    assert_one_error(plumbob("verify", signed / "bundle", "--key", signed / "key.pub"), str(signed / "bundle"))


def test_an_unsigned_bundle_and_what_is_no_bundle(plumbob, files):
    assert_one_error(plumbob("verify", files / "bundle"), "is not signed", f"plumbob sign {files / 'bundle'} --key KEY")
    assert_one_error(plumbob("verify", files / "gone"), f"{files / 'gone'} is not a bundle")
    assert_one_error(plumbob("sign", files / "gone", "--key", files / "key"), f"{files / 'gone'} is not a bundle")
    assert_one_error(plumbob("sign", files / "bundle", "--key", files / "key"), f"Key {files / 'key'} cannot be read")
    assert not (files / "bundle" / SIGNATURE).exists()


def test_a_pair_is_not_overwritten(ok, plumbob, files):
    ok("keygen", "--out", files / "key")
    before = (files / "key").read_bytes()
    assert_one_error(plumbob("keygen", "--out", files / "key"), f"{files / 'key'} exists")
    assert (files / "key").read_bytes() == before


def test_a_passphrase_from_the_environment(ok, plumbob, files, monkeypatch):
    monkeypatch.setenv("SECRET", "correct hörse")
    assert "(encrypted)" in ok("keygen", "--out", files / "key", "--passphrase-env", "SECRET")
    sign = ["sign", files / "bundle", "--key", files / "key"]
    ok(*sign, "--passphrase-env", "SECRET")
    assert_one_error(plumbob(*sign), "There is no terminal to ask for the passphrase", "--passphrase-env")
    monkeypatch.setenv("SECRET", "battery")
    assert_one_error(plumbob(*sign, "--passphrase-env", "SECRET"), "cannot be opened: another passphrase")
    for value in (None, ""):
        monkeypatch.delenv("SECRET") if value is None else monkeypatch.setenv("SECRET", value)
        assert_one_error(plumbob(*sign, "--passphrase-env", "SECRET"), "variable SECRET is empty")
    assert_one_error(plumbob("keygen", "--out", files / "new", "--passphrase-env", "SECRET"), "SECRET is empty")
    assert not (files / "new").exists()
    ok("verify", files / "bundle", "--key", files / "key.pub")


def test_a_passphrase_is_asked_for_twice_when_it_is_made_and_once_when_it_is_used(ok, files, typed):
    answers, asked = typed
    answers += ["correct horse", "correct horse"]
    ok("keygen", "--out", files / "key", "--passphrase")
    ok("sign", files / "bundle", "--key", files / "key")
    assert asked == [True, False] and answers == []


def test_nobody_is_asked_where_there_is_no_passphrase(ok, files, typed):
    ok("keygen", "--out", files / "key")
    ok("sign", files / "bundle", "--key", files / "key")
    assert typed[1] == []


@pytest.fixture
def trusting(world):
    """A world whose bundle is signed with the first of two keys; where they are."""
    for name in ("key", "other"):
        generate_key(world.runtime / name)
    sign_bundle(load_bundle(world.bundle), load_private_key(world.runtime / "key", lambda: b""))
    return world.runtime


@pytest.mark.parametrize("command", ["serve", "monitor"])
def test_only_a_bundle_signed_by_a_trusted_key_starts(plumbob, world, trusting, command):
    def refused(*parts):
        assert_one_error(plumbob(*getattr(world, command)("--trust", trusting / "other.pub")), *parts)
        world.assert_nothing_started()

    refused(f"Bundle {world.bundle} is whole", "which is none of the 1 trusted", "serve --trust KEY.pub")
    world.edit_manifest(lambda manifest: manifest.update(created="2026-01-02T00:00:00Z"))
    refused("is not what was signed")
    (world.bundle / SIGNATURE).unlink()
    refused("is not signed", "plumbob sign")


def test_a_trusted_bundle_is_served_and_options_of_vllm_pass_by(plumbob, world, trusting, monkeypatch):
    """``--trust-remote-code`` is vLLM's, and begins like ours."""
    configs = []
    monkeypatch.setattr(Serving, "start_monitor", lambda self: configs.append(self.config))
    with pytest.raises(AssertionError, match=r"started .*--trust-remote-code"):
        plumbob(*world.serve("--trust", trusting / "other.pub", "--trust", trusting / "key.pub", "--trust-remote-code"))
    assert [config.monitor.trust for config in configs] == [(trusting / "other.pub", trusting / "key.pub")]


def test_the_monitor_beside_a_server_checks_again(world, trusting, monkeypatch):
    told = []
    monkeypatch.setattr(Serving, "_spawn", lambda self, command, environment: told.append(environment))
    monkeypatch.setattr("monitor.supervisor.serving._listening", lambda host, port: True)
    keys = [trusting / "key.pub", trusting / "other.pub"]
    monitor = MonitorConfig(bundle=world.bundle, trust=tuple(keys))
    Serving(ServeConfig(model=str(world.model), monitor=monitor)).start_monitor()
    assert json.loads(told[0]["PLUMBOB_MONITOR__TRUST"]) == list(map(str, keys))


def test_a_trusted_bundle_is_monitored(world, trusting):
    running = Running(*world.monitor("--trust", trusting / "key.pub"))
    try:
        assert "reading 3 probes for engines at" in running.process.stderr.readline()
    finally:
        running.kill()
