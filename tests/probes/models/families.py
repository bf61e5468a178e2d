"""Every family of decoders that transformers can build tiny, at random, from a configuration alone."""

from collections.abc import Iterator
from typing import Any

LAYERS = 2
VOCABULARY = 96

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("hidden_size", "n_embd", "n_embed", "d_model", "word_embed_proj_dim", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    # Mixtures of experts.
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    "n_group": 1,
    "topk_group": 1,
    # Latent attention.
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    # Recurrent layers.
    "mamba_expand": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "chunk_size": 8,
    "mamba_chunk_size": 8,
    "sliding_window": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Taken by a configuration where it has a setting of that name."""

_LATENT = {"head_dim": 4, "num_key_value_heads": 4}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"]}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}

MORE: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "longcat_flash": _LATENT,
    "minicpm3": _LATENT,
    "youtu": _LATENT,
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "dots1": {"n_shared_experts": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "minimax": _HYBRID,
    "prophetnet": {"num_decoder_layers": LAYERS, "num_encoder_layers": LAYERS},
    "nemotron_h": {"layer_types": ["mamba", "attention", "moe"]},
    "qwen3_next": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "qwen3_5_moe_text": _HYBRID,
    "olmo_hybrid": _HYBRID,
    "falcon_h1": {"mamba_d_ssm": 64},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"layer_types": ["mamba", "hybrid"], "layers_block_type": ["mamba", "hybrid"]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "gemma3n_text": {
        **_WINDOWS,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "activation_sparsity_pattern": [0.0] * LAYERS,
        "laurel_rank": 8,
    },
    "gemma4_text": {
        **_WINDOWS,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 8,
        "num_global_key_value_heads": 2,
    },
    "kimi_linear": {
        **_LATENT,
        **_HYBRID,
        "mlp_layer_types": ["dense", "sparse"],
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "num_experts_per_token": 2,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
}
"""What a family needs beside the common sizes."""


UNBUILT: dict[str, str] = {
    "blt": "its patcher, encoder and decoder have configurations of their own; 4.6 billion parameters",
    "cohere_compass_text": "its configuration has no rotary parameters for its own layer types",
    "emu3": "its text model is not registered for language modelling",
    "gemma4_assistant": "it drafts for another model, whose states it takes",
    "gemma4_unified_assistant": "it drafts for another model, whose states it takes",
    "git": "it has an image encoder of 85 million parameters",
    "mllama": "its text model is not registered for language modelling",
    "musicgen": "it has no configuration without a text encoder",
    "musicgen_melody": "it has no configuration without a text encoder",
    "phi4_multimodal": "it has image and audio encoders of 870 million parameters",
    "qwen4_exp": "its linear attention takes sizes that no default gives",
    "xlstm": "its own matrix memory does not fit its own head sizes when they are small",
    "zamba": "transformers cannot tie its shared weights with fewer than its own number of layers",
}
"""Families that cannot be built here, and why."""


NO_BLOCKS = frozenset({"gemma3n_text", "hrm_text", "longcat_flash", "xlm"})
"""Families whose blocks are not one list of as many as their configuration says."""
NO_STREAM = frozenset({"deepseek_v4", "hy_v4", "qwen4_exp_text", "reformer"})
"""Families with several residual streams."""
NO_WRITERS = frozenset(
    {
        # The output is normalised, or multiplied by what was learnt.
        *("bart", "bert", "bert-generation", "big_bird", "blenderbot-small", "camembert", "data2vec-text", "doge"),
        *("electra", "ernie", "gemma4_text", "marian", "minimax", "mvp", "openai-gpt", "plbart"),
        *("prophetnet", "rembert", "roberta", "roc_bert", "roformer", "trocr", "xlm-roberta", "xlnet", "xmod", "zaya"),
        # There is a third writer, or the block's input is changed first.
        *("falcon_h1", "gpt_neox_japanese", "granitemoehybrid", "rwkv"),
    }
)
"""Families some of whose blocks add something else than what one or two of their modules return."""
NO_HEADS = frozenset(
    {
        # They attend by code of their own.
        *("big_bird", "bloom", "codegen", "cpmant", "falcon", "gpt_neo", "gpt_neox_japanese", "gptj", "megatron-bert"),
        *("mpt", "mvp", "openai-gpt", "prophetnet", "rembert", "roformer", "trocr", "xglm", "xlnet"),
        # They do not attend.
        *("falcon_mamba", "mamba", "mamba2", "rwkv"),
        # They attend twice and take the difference.
        "diffllama",
    }
)
"""Families without sites of heads."""
NO_PROBABILITIES = frozenset({"granite_swa", "granitemoe_swa"})
"""Families whose attention sinks are not among the probabilities that they return."""
NO_HEAD_WRITES = frozenset(
    {"afmoe", "axk2", "bitnet", "jetmoe", "laguna", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"}
)
"""Families that gate or normalise what heads yield before it is projected, or project it by experts."""


def kinds() -> Iterator[str]:
    """Families to build by their configuration's name, one of those that share a model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    models = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    # Of a multimodal model and its text model, which are built alike, the second.
    texts = {kind.removesuffix("_text") for kind in models if kind.endswith("_text")}
    seen: set[str] = set()
    for kind, model in models.items():
        if model not in seen and kind not in UNBUILT and kind not in texts:
            seen.add(model)
            yield kind


def build(kind: str) -> Any:
    """A random model of a family, in evaluation mode, with its plain attention and weights large enough to matter."""
    import torch
    import transformers

    of: Any = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind]
    text = type(of().get_text_config())
    more = MORE.get(text.model_type, {})
    known = text()
    sizes = {name: size for name, size in SIZES.items() if has(known, name)}
    torch.manual_seed(0)
    config = text(**{**sizes, **more})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn_like(weight)
            weight.copy_(0.3 * noise if weight.ndim > 1 else weight + 0.2 * noise)
    return model.eval()


def has(config: Any, name: str) -> bool:
    """Whether a configuration has a setting that can be set."""
    try:
        found = hasattr(config, name)
    except Exception:
        # Some settings differ by layer, and say so.
        return False
    return found and not isinstance(getattr(type(config), name, None), property)
