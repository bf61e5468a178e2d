"""Models of which only the shape matters: a configuration whose weights vLLM fills with noise (``load_format: dummy``).

What a step costs does not depend on what the weights say, so a model that nobody has downloaded can be measured. Such a
directory holds the configuration and a file of weights without tensors, which identify it like any other model; it has
no tokenizer, and prompts are token ids.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save_file

from probes.errors import ModelError

_LLAMA: Final[dict[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "llama-8b": _LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "llama-tiny": _LLAMA
    | {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2048,
    },
}
"""By name: that of Llama 3 8B, and one small enough to try the benchmark on any machine."""


def shape(name: str) -> dict[str, Any]:
    """The configuration of that name.

    Raises:
        ModelError: There is none.
    """
    if name not in SHAPES:
        raise ModelError(f"There is no shape '{name}'.", f"Shapes: {', '.join(SHAPES)}.")
    return SHAPES[name]


def write_shape(name: str, directory: Path) -> Path:
    """Make a model of dummy weights out of a shape.

    Args:
        name: Of :data:`SHAPES`.
        directory: Made here.

    Raises:
        ModelError: There is no such shape.
    """
    return _write(json.dumps(shape(name), indent=2), directory)


def write_dummy(model: Path, directory: Path) -> Path:
    """Make a model of dummy weights out of another model's configuration.

    Args:
        model: Directory with a ``config.json``.
        directory: Made here.
    """
    _write((model / "config.json").read_text(), directory)
    # Some families read more of their shape from here.
    if (generation := model / "generation_config.json").is_file():
        shutil.copy(generation, directory)
    return directory


def _write(config: str, directory: Path) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(config)
    save_file({"empty": np.zeros(0, np.float32)}, directory / "model.safetensors")
    return directory
