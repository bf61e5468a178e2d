"""The identity of a model: digests of its configuration, weights, tokenizer and chat template. Needs no torch."""

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from probes.errors import ModelError, reason

DEMO: Final = "demo"
"""Name of the demo model."""

_DIGEST: Final = re.compile("[0-9a-f]{64}")


def cache_directory() -> Path:
    """The directory of derived files: ``PLUMBOB_CACHE``, else ``plumbob`` in the user's cache directory."""
    if chosen := os.environ.get("PLUMBOB_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "plumbob"


class ModelIdentity(msgspec.Struct, frozen=True):
    """The model that a bundle belongs to."""

    name: str
    """As the user named it when fitting; for people, not compared."""
    hidden: int
    """Width of the residual stream."""
    layers: int
    """Number of decoder blocks."""
    parts: dict[str, str]
    """SHA-256 of ``config``, ``weights``, ``tokenizer`` and ``chat_template``."""


def identify(path: Path, name: str) -> ModelIdentity:
    """Compute what a bundle is bound to: the SHA-256 of configuration, weights, tokenizer and chat template.

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
            **text_parts(path),
        },
    )


def text_parts(path: Path) -> dict[str, str]:
    """Digests of what turns a conversation into tokens: ``tokenizer`` and ``chat_template``.

    Args:
        path: Directory of a model, or of a tokenizer.

    Raises:
        ModelError: A file in it cannot be read.
    """
    return {
        "tokenizer": _sha256(b"".join(_read(path / file) for file in ("tokenizer.json", "tokenizer.model"))),
        "chat_template": _sha256(_chat_template(path)),
    }


def template_digests(text: str) -> frozenset[str]:
    """Digests that the part ``chat_template`` has where this is the template: a file of its own, or a value in JSON."""
    return frozenset((_sha256(text.encode()), _sha256(json.dumps(text).encode())))


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
