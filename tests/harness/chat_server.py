"""vLLM's own rendering of chat requests, without an engine: what its server makes of a request."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest


class ChatServer:
    """The part of vLLM's server between a request's JSON and its tokens.

    Args:
        model: A directory with a configuration and a tokenizer.
        template: As ``--chat-template``; ``None`` for the tokenizer's.
    """

    def __init__(self, model: Path, template: str | None = None) -> None:
        pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
        from vllm.config import ModelConfig, VllmConfig
        from vllm.renderers.online_renderer import OnlineRenderer
        from vllm.renderers.registry import renderer_from_config

        config = ModelConfig(model=str(model), max_model_len=512)
        self._renderer = renderer_from_config(VllmConfig(model_config=config))
        self.tokenizer: Any = self._renderer.get_tokenizer()
        self._online = OnlineRenderer(
            config,
            self._renderer,
            request_logger=None,
            chat_template=template,
            chat_template_content_format="auto",
            # Else a request with tools is refused.
            enable_auto_tools=True,
            tool_parser="hermes",
        )

    def with_template(self, template: str) -> "ChatServer":
        """The same model served with another template."""
        other = object.__new__(ChatServer)
        other._renderer, other.tokenizer = self._renderer, self.tokenizer
        online = object.__new__(type(self._online))
        online.__dict__.update(self._online.__dict__)
        online.chat_template = template
        other._online = online
        return other

    def tokens(self, body: str) -> list[int]:
        """A request's tokens.

        Args:
            body: JSON.

        Raises:
            Exception: The server would refuse it, in whatever way.
        """
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        request = ChatCompletionRequest.model_validate(json.loads(body))
        answer = asyncio.run(self._online.render_chat(request))
        if not isinstance(answer, tuple):
            raise ValueError(answer.error.message)
        (engine_input,) = answer[1]
        return list(engine_input["prompt_token_ids"])
