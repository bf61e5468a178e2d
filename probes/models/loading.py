"""Models and tokenizers from their directories, by transformers, or one line that says why not."""

from pathlib import Path
from typing import Any

from probes.errors import ModelError, reason


def load_model(path: Path, dtype: str) -> Any:
    """Load a causal language model for evaluation, to a GPU where there is one.

    Args:
        path: A directory as transformers saves it.
        dtype: ``bfloat16``, as it will be served, or ``float32``, the reference.

    Raises:
        ModelError: transformers cannot load it or is missing, or weights are missing.
    """
    torch, transformers = _libraries()
    try:
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        model, loaded = load(path, dtype=getattr(torch, dtype), output_loading_info=True)
    except Exception as error:
        raise _unloadable(path, error) from error
    if missing := sorted(loaded["missing_keys"]):
        # Transformers fills them with random numbers.
        raise ModelError(
            f"The weights in {path} lack {missing[0]} and {len(missing) - 1} others.",
            "Complete the model's directory.",
        )
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        # transformers' fused attention, its default, leaves the cap out.
        model.set_attn_implementation("eager")
    return model


def load_tokenizer(path: Path) -> Any:
    """Load a tokenizer.

    Raises:
        ModelError: transformers cannot load it, or is missing.
    """
    _, transformers = _libraries()
    try:
        return transformers.AutoTokenizer.from_pretrained(path)
    except Exception as error:
        raise _unloadable(path, error) from error


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ModelError(f"Reading a model needs {error.name}.", "Run: pip install 'plumbob[fit]'") from error
    return torch, transformers


def _unloadable(path: Path, error: Exception) -> ModelError:
    """Configurations, tokenizers, weights and remote code raise whatever they like."""
    return ModelError(f"transformers cannot load {path}: {reason(error)}.", "Name a directory saved by transformers.")
