"""Markers that a user typed into a message: found in the front, where messages are still apart from their template.

``BaseRenderer.render_chat`` and ``render_chat_async`` are what every API that has messages renders them by: chat,
responses, Anthropic's, and ``LLM.chat``. A prompt whose conversation has markers in it is marked; beam search makes new
prompts of it, which are marked as well; and ``InputProcessor.process_inputs`` passes the mark on to the engine with the
request's ``extra_args`` (:mod:`monitor.engine.vllm.requests`). What a client writes there under that name is taken
away.

A prompt that comes as text or as tokens has no messages: its markers are the client's own.
"""

import logging
from typing import Any, Final

from monitor.engine.intake import TYPED_FIELD
from monitor.engine.settings import inherited, switched_on
from monitor.engine.vllm.wrap import Method, require_fields, wrap_once
from probes.bundle import load_bundle
from probes.models.typed_markers import TypedMarkers

MARK: Final = "plumbob_typed"
"""Key of a rendered prompt."""
_TEMPLATE: Final = "chat_template"
"""Of what a template is rendered with, the template itself: its markers are its own."""

logger = logging.getLogger("vllm.plumbob")


def install() -> None:
    """Wrap what renders conversations, once."""
    from vllm.entrypoints.generate.beam_search.utils import BeamSearchSequence
    from vllm.renderers.base import BaseRenderer
    from vllm.renderers.params import ChatParams

    require_fields(ChatParams, "chat_template_kwargs")
    require_fields(BeamSearchSequence, "orig_prompt")
    wrap_once(BaseRenderer, "render_chat", _render_chat)
    wrap_once(BaseRenderer, "render_chat_async", _render_chat_async)
    wrap_once(BeamSearchSequence, "get_prompt", _get_prompt)


def _render_chat(method: Method) -> Method:
    def render_chat(self: Any, conversations: Any, chat_params: Any, *args: Any, **kwargs: Any) -> Any:
        rendered = method(self, conversations, chat_params, *args, **kwargs)
        if switched_on(self.config):
            _mark(self, chat_params, *rendered)
        return rendered

    return render_chat


def _render_chat_async(method: Method) -> Method:
    async def render_chat_async(self: Any, conversations: Any, chat_params: Any, *args: Any, **kwargs: Any) -> Any:
        rendered = await method(self, conversations, chat_params, *args, **kwargs)
        if switched_on(self.config):
            _mark(self, chat_params, *rendered)
        return rendered

    return render_chat_async


def _mark(renderer: Any, chat_params: Any, conversations: list[Any], prompts: list[Any]) -> None:
    """Mark the prompts of conversations that have markers in them.

    The conversations are those that the template was rendered with: what came may be iterators, which are empty by now.
    """
    # Documents, tools, and whatever else a client has the template write.
    beside = {key: value for key, value in (chat_params.chat_template_kwargs or {}).items() if key != _TEMPLATE}
    for conversation, prompt in zip(conversations, prompts, strict=True):
        if _has_markers(renderer, [conversation, beside]):
            prompt[MARK] = True


def _has_markers(renderer: Any, rendered: object) -> bool:
    """True where there are markers in it, and where that cannot be told: no words may hide from the probes."""
    try:
        if (markers := renderer.__dict__.get("plumbob_markers")) is None:
            bundle = load_bundle(inherited().bundle)
            markers = renderer.plumbob_markers = TypedMarkers(bundle.manifest.markers, renderer.get_tokenizer())
        return markers.found(rendered)
    except Exception:
        logger.exception("Plumbob cannot look for typed markers; the conversation is read as its user's words")
        return True


def _get_prompt(method: Method) -> Method:
    def get_prompt(self: Any) -> Any:
        prompt = method(self)
        if MARK in self.orig_prompt:
            prompt[MARK] = True
        return prompt

    return get_prompt


def pass_on(prompt: Any, request: Any) -> Any:
    """Let the engine know of a prompt's mark.

    Args:
        prompt: As it was rendered, or as a client gave it.
        request: The ``EngineCoreRequest`` that was made of it.

    Returns:
        The request.
    """
    sampling = request.sampling_params
    if sampling is not None:
        arguments = sampling.extra_args or {}
        marked = isinstance(prompt, dict) and prompt.get(MARK) is True
        if marked or TYPED_FIELD in arguments:
            others = {key: value for key, value in arguments.items() if key != TYPED_FIELD}
            # A new dictionary: the old one is the caller's.
            sampling.extra_args = {**others, TYPED_FIELD: True} if marked else others
    return request
