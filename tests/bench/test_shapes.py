"""Models that are a configuration and nothing else."""

import json

import pytest

from monitor.bench.shapes import SHAPES, write_dummy, write_shape
from monitor.bench.workload import Workload, kv_cache_bytes
from probes.errors import ModelError
from probes.models import identify


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_a_model_that_can_be_identified(tmp_path, name):
    path = write_shape(name, tmp_path / "model")
    identity = identify(path, name)
    assert (identity.hidden, identity.layers) == (SHAPES[name]["hidden_size"], SHAPES[name]["num_hidden_layers"])


def test_two_shapes_are_two_models(tmp_path):
    parts = [identify(write_shape(name, tmp_path / name), name).parts for name in SHAPES]
    assert parts[0]["config"] != parts[1]["config"]


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_what_transformers_makes_of_it(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(write_shape(name, tmp_path / "model"))
    heads, width = config.num_attention_heads, config.hidden_size
    assert type(config).__name__ == "LlamaConfig"
    assert config.head_dim * heads == width and heads % config.num_key_value_heads == 0


def test_the_8b_shape_has_eight_billion_parameters():
    shape = SHAPES["llama-8b"]
    width, feed, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    kv = shape["num_key_value_heads"] * width // shape["num_attention_heads"]
    block = 2 * width * width + 2 * width * kv + 3 * width * feed + 2 * width
    assert shape["num_hidden_layers"] * block + 2 * vocabulary * width + width == 8_030_261_248


def test_an_unknown_shape_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no shape 'gpt-5'.*llama-8b"):
        write_shape("gpt-5", tmp_path / "model")


def test_a_model_keeps_its_configuration_and_loses_its_weights(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    config = {"hidden_size": 8, "num_hidden_layers": 4, "rope_theta": 7}
    (model / "config.json").write_text(json.dumps(config))
    (model / "generation_config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    dummy = write_dummy(model, tmp_path / "dummy")
    assert json.loads((dummy / "config.json").read_text()) == config
    assert (dummy / "generation_config.json").is_file()
    assert (dummy / "model.safetensors").read_bytes() != b"weights"


def test_the_kv_cache_holds_the_largest_batch(tmp_path):
    """Of Llama 3 8B, 128 KiB a token."""
    path = write_shape("llama-8b", tmp_path / "model")
    bytes_ = kv_cache_bytes(path, [Workload(256, 64, 128), Workload(4, 2048, 1)])
    assert 256 * (64 + 128) * 131_072 < bytes_ < 2 * 256 * (64 + 128) * 131_072
