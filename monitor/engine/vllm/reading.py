"""Arguments of vLLM that would have it read something else than what the bundle was fitted to.

Weights, quantisation and the like are judged by what they do: by the canaries of the self-test. What turns text into
tokens, and what the model's configuration says, is compared here, by content, before anything is loaded.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from probes.bundle import Bundle
from probes.models.identity import template_digests, text_parts

FRONT: Final = ("chat_template", "trust_request_chat_template")
"""Arguments of the front that no configuration of an engine has."""
_PLAIN: Final = (None, "auto", "hf")
"""Modes in which a tokenizer is what its files say."""


class Misfit(NamedTuple):
    """An argument that cannot be."""

    argument: str
    """As vLLM's classes name it."""
    why: str
    """Goes on from the option's name."""
    fix: str


def misfits(given: Mapping[str, Any], model: Path, bundle: Bundle) -> Iterator[Misfit]:
    """Find the arguments with which tokens, their roles, or the model would be others.

    Args:
        given: Arguments of vLLM by name; one that is missing is at its default.
        model: The model's directory.
        bundle: What reads it.
    """
    parts = bundle.manifest.model.parts
    if not _same_tokenizer(given.get("tokenizer"), given.get("model"), model, parts):
        yield Misfit(
            "tokenizer",
            "gives another tokenizer than the one that the bundle was fitted with",
            "Leave it out, or fit a bundle with it in the model's directory.",
        )
    if (mode := given.get("tokenizer_mode")) not in _PLAIN:
        yield Misfit(
            "tokenizer_mode",
            f"has text read by another tokenizer ({mode}) than the one that the bundle was fitted with",
            "Leave it out.",
        )
    if not _same_template(given.get("chat_template"), parts.get("chat_template")):
        yield Misfit(
            "chat_template",
            "gives another chat template than the one that the bundle was fitted with",
            "Leave it out, or fit a bundle with it in the model's directory.",
        )
    if given.get("trust_request_chat_template"):
        yield Misfit(
            "trust_request_chat_template",
            "lets requests bring chat templates that the bundle was not fitted with",
            "Leave it out.",
        )
    if not _holds(given.get("hf_overrides") or {}, _configuration(model)):
        yield Misfit(
            "hf_overrides",
            "makes another model of it than the one that the bundle was fitted to",
            "Change config.json in the model's directory, and fit a bundle to that.",
        )
    if (path := given.get("hf_config_path")) is not None and Path(path).resolve() != model.resolve():
        yield Misfit("hf_config_path", "gives another configuration than the model's own", "Leave it out.")
    for name in ("revision", "tokenizer_revision"):
        if given.get(name) is not None and not Path(str(given.get("model"))).is_dir():
            yield Misfit(
                name,
                "may be another than the one that the bundle was compared with",
                "Download that revision, and name its directory as the model.",
            )


def _same_tokenizer(given: str | None, name: str | None, model: Path, parts: Mapping[str, str]) -> bool:
    if given is None or given == name:
        return True
    path = Path(given)
    if not path.is_dir():
        return False
    # vLLM takes the chat template from where the tokenizer is.
    return path.resolve() == model.resolve() or all(
        parts.get(part) == found for part, found in text_parts(path).items()
    )


def _same_template(given: str | None, digest: str | None) -> bool:
    if given is None:
        return True
    from vllm.renderers.chat_utils import load_chat_template

    text = load_chat_template(given)
    return text is None or digest in template_digests(text)


def _holds(overrides: Any, configuration: Any) -> bool:
    """Tell whether overriding changes nothing; a function may change anything."""
    if isinstance(overrides, Mapping) and isinstance(configuration, Mapping):
        return all(key in configuration and _holds(value, configuration[key]) for key, value in overrides.items())
    return bool(overrides == configuration)


def _configuration(model: Path) -> dict[str, Any]:
    path = model / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}
