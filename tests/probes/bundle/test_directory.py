"""Directories of bundles as machines have them: mount points, volumes, links, what a hub downloads."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from probes.bundle import MANIFEST, SIGNATURE, TENSORS, load_bundle, require_destination
from probes.bundle.directory import fitting_directory
from probes.bundle.keys import generate_key, load_private_key
from probes.bundle.signing import require_signature, sign_bundle
from probes.errors import BundleError
from tests.harness.mounts import mounted

STRANGERS = ["lost+found/", ".cache/huggingface/", "README.md", ".gitattributes", ".git/", "..data/"]
"""What volumes and hubs put beside a bundle's files."""


def add_strangers(directory):
    for name in STRANGERS:
        if name.endswith("/"):
            (directory / name).mkdir(parents=True)
        else:
            (directory / name).write_text("not of the bundle")


def names(directory):
    return sorted(entry.name for entry in directory.iterdir())


def tree(directory):
    return {path.relative_to(directory): path.is_file() and path.read_bytes() for path in directory.rglob("*")}


def test_a_mount_point_takes_a_bundle_and_its_successor(tiny_bundle, tmp_path):
    (tmp_path / "volume").mkdir()
    with mounted(tmp_path / "volume") as volume:
        (volume / "lost+found").mkdir()
        before = tiny_bundle(volume, seed=1)
        after = tiny_bundle(volume, seed=2)
        assert load_bundle(volume).digest == after.digest != before.digest
        assert names(volume) == [MANIFEST, "lost+found", TENSORS], "nothing temporary is left"


def test_on_a_full_volume_the_earlier_bundle_stays(tiny_bundle, tmp_path):
    (tmp_path / "volume").mkdir()
    with mounted(tmp_path / "volume", size="32k") as volume:
        before = tiny_bundle(volume, seed=1)
        held = tree(volume)
        (volume / "README.md").write_bytes(b"x" * 4096 * (shutil.disk_usage(volume).free // 4096))
        with pytest.raises(
            BundleError, match=rf"{volume} cannot be written: No space left on device\. What was there is"
        ):
            tiny_bundle(volume, seed=2)
        (volume / "README.md").unlink()
        assert tree(volume) == held and load_bundle(volume).digest == before.digest


def test_a_mounted_file_is_found_before_the_work(tiny_bundle, tmp_path):
    bundle = tiny_bundle(tmp_path / "bundle", seed=1)
    (tmp_path / "elsewhere").write_bytes((bundle.path / TENSORS).read_bytes())
    with mounted(bundle.path / TENSORS, tmp_path / "elsewhere"):
        before = tree(bundle.path)
        with pytest.raises(BundleError, match=f"{TENSORS} in it is a mount point, which no file can replace"):
            require_destination(bundle.path)
        with pytest.raises(BundleError, match="mount point"):
            tiny_bundle(bundle.path, seed=2)
        assert tree(bundle.path) == before


def test_a_read_only_volume_is_found_before_the_work(tiny_bundle, tmp_path):
    bundle = tiny_bundle(tmp_path / "bundle")
    with (
        mounted(bundle.path, bundle.path, read_only=True),
        pytest.raises(BundleError, match="is not a directory that you may write to"),
    ):
        require_destination(bundle.path)


@pytest.mark.parametrize("at", range(1, 8))
def test_a_failure_at_any_step_leaves_the_earlier_bundle(tiny_bundle, tmp_path, monkeypatch, at):
    """Of the renames that move two files aside, and of two that come in their place, any may fail."""
    path = tmp_path / "bundle"
    before = tiny_bundle(path, seed=1)
    add_strangers(path)
    held, renames, rename = tree(path), [], Path.rename

    def failing(self, target):
        renames.append(target)
        if len(renames) == at:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    if at > 4:
        # There are no more than four.
        assert tiny_bundle(path, seed=2).digest != before.digest
        return
    with pytest.raises(BundleError, match=r"Device or resource busy\. What was there is still there"):
        tiny_bundle(path, seed=2)
    assert tree(path) == held and load_bundle(path).digest == before.digest


def test_nothing_is_removed_before_the_new_bundle_is_whole(tiny_bundle, tmp_path, monkeypatch):
    """At every rename, all bytes of the earlier bundle or of the later one are somewhere in the directory."""
    path = tmp_path / "bundle"
    tiny_bundle(path, seed=1)
    held, seen, rename = set(tree(path).values()), [], Path.rename

    def watched(self, target):
        contents = set(tree(path).values())
        seen.append(held <= contents)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    tiny_bundle(path, seed=2)
    assert seen == [True] * 4


def test_a_new_directory_is_removed_where_the_bundle_cannot_be_written(tiny_bundle, tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(BundleError, match="No space left on device"):
        tiny_bundle(tmp_path / "a" / "bundle")
    assert names(tmp_path) == []


def test_files_of_others_are_neither_read_nor_touched(tiny_bundle, tmp_path):
    path = tmp_path / "bundle"
    bundle = tiny_bundle(path, seed=1)
    add_strangers(path)
    assert load_bundle(path).digest == bundle.digest
    assert require_destination(path) == path
    after = tiny_bundle(path, seed=2)
    assert load_bundle(path).digest == after.digest
    assert names(path) == sorted({MANIFEST, TENSORS, *(name.strip("/").split("/")[0] for name in STRANGERS)})


def test_a_signature_covers_what_the_manifest_names(tiny_bundle, tmp_path):
    bundle = tiny_bundle(tmp_path / "bundle")
    generate_key(tmp_path / "key")
    add_strangers(bundle.path)
    sign_bundle(load_bundle(bundle.path), load_private_key(tmp_path / "key", lambda: b""))
    (bundle.path / "README.md").write_text("changed")
    require_signature(load_bundle(bundle.path), [tmp_path / "key.pub"])
    (bundle.path / TENSORS).write_bytes(b"changed")
    with pytest.raises(BundleError, match="is damaged"):
        load_bundle(bundle.path)


def test_a_bundle_of_a_config_map_is_read(tiny_bundle, tmp_path):
    """Kubernetes writes files into a directory of their time, and links to them by way of ``..data``."""
    bundle, mount = tiny_bundle(tmp_path / "bundle"), tmp_path / "mount"
    stamped = mount / "..2026_01_01_00_00_00.123"
    mount.mkdir()
    shutil.copytree(bundle.path, stamped)
    (mount / "..data").symlink_to(stamped.name)
    for name in names(bundle.path):
        (mount / name).symlink_to(Path("..data") / name)
    assert load_bundle(mount).digest == bundle.digest


def test_what_the_manifest_names_is_required(tiny_bundle, tmp_path):
    bundle = tiny_bundle(tmp_path / "bundle")
    add_strangers(bundle.path)
    (bundle.path / TENSORS).unlink()
    with pytest.raises(BundleError, match=f"cannot be read.*{TENSORS}"):
        load_bundle(bundle.path)


def test_a_signature_does_not_outlive_its_bundle(tiny_bundle, tmp_path):
    bundle = tiny_bundle(tmp_path / "bundle", seed=1)
    for name in (SIGNATURE, "report.json"):
        (bundle.path / name).write_text("{}")
    assert names(tiny_bundle(bundle.path, seed=2).path) == [MANIFEST, TENSORS]


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"format": 1, "name": "webpack"}', '{"format": "1", "plumbob": "0.1.0"}']
)
def test_a_manifest_of_something_else_protects_its_directory(tmp_path, content):
    (tmp_path / "bundle.json").write_text(content)
    (tmp_path / "index.js").write_text("x")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        require_destination(tmp_path)


def test_where_a_fit_keeps_what_it_has_read(tmp_path, monkeypatch):
    (tmp_path / "bundle").mkdir()
    assert fitting_directory(tmp_path / "bundle") == tmp_path / ".bundle.fitting"
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert fitting_directory(tmp_path / "bundle") == tmp_path / "bundle" / ".fitting"
    (tmp_path / "bundle" / ".fitting").mkdir()
    assert require_destination(tmp_path / "bundle") == tmp_path / "bundle", "an interrupted fit goes on"
