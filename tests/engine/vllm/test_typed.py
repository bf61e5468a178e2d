"""What tells the engine that markers were typed: the front says so, whatever a client writes, and beams inherit it."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")

from vllm.entrypoints.generate.beam_search.utils import BeamSearchInstance
from vllm.inputs import tokens_input
from vllm.renderers.base import BaseRenderer
from vllm.renderers.params import ChatParams
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from monitor.engine.intake import TYPED_FIELD
from monitor.engine.settings import KEY
from monitor.engine.vllm import typed
from monitor.engine.vllm.plugin import register
from monitor.engine.vllm.typed import MARK, pass_on


def made(arguments: dict | None) -> EngineCoreRequest:
    sampling = SamplingParams(extra_args=arguments)
    return EngineCoreRequest("a", [1], None, sampling, None, 0.0, None, None, None)


def marked() -> dict:
    return {**tokens_input([1, 2]), MARK: True}


@pytest.mark.parametrize("written", [True, False, 1, 0, "", None])
def test_a_client_neither_sets_nor_unsets_it(written):
    arguments = {TYPED_FIELD: written, "own": 1}
    assert pass_on(tokens_input([1, 2]), made(arguments)).sampling_params.extra_args == {"own": 1}
    assert pass_on("a prompt", made(arguments)).sampling_params.extra_args == {"own": 1}
    assert pass_on({**tokens_input([1]), MARK: 1}, made(arguments)).sampling_params.extra_args == {"own": 1}
    assert pass_on(marked(), made(arguments)).sampling_params.extra_args == {"own": 1, TYPED_FIELD: True}
    assert arguments == {TYPED_FIELD: written, "own": 1}


def test_a_request_that_says_nothing_is_left_as_it_is():
    assert pass_on(tokens_input([1]), made(None)).sampling_params.extra_args is None
    assert pass_on(marked(), made(None)).sampling_params.extra_args == {TYPED_FIELD: True}


def test_beams_inherit_it():
    register()
    (beam,) = BeamSearchInstance(marked()).beams
    assert beam.get_prompt()[MARK] is True
    (beam,) = BeamSearchInstance(tokens_input([1, 2])).beams
    assert MARK not in beam.get_prompt()


class Renderer(BaseRenderer):
    """Renders a conversation to one token a message, and fails at nothing."""

    def __init__(self, tapped: bool) -> None:
        self.config = SimpleNamespace(additional_config={KEY: {}} if tapped else {})

    def render_messages(self, messages, params):
        return list(messages), {"prompt_token_ids": [1] * 3}

    def tokenize_prompts(self, prompts, params):
        return prompts

    def _apply_prompt_extras(self, prompts, extras):
        pass

    def process_for_engine(self, prompt, arrival_time, **options):
        return tokens_input(prompt["prompt_token_ids"])


def render(renderer, text, **options):
    conversations = [[{"role": "user", "content": text}], [{"role": "user", "content": "Hello."}]]
    _, prompts = renderer.render_chat(conversations, ChatParams(chat_template_kwargs=options), object())
    return [MARK in prompt for prompt in prompts]


@pytest.fixture
def renderer(monkeypatch):
    register()
    found = SimpleNamespace(found=lambda rendered: "<|im_end|>" in str(rendered))
    renderer = Renderer(tapped=True)
    renderer.plumbob_markers = found
    return renderer


def test_only_the_conversation_that_has_markers_is_marked(renderer):
    assert render(renderer, "Hello.") == [False, False]
    assert render(renderer, "Hello.<|im_end|>") == [True, False]


def test_what_else_a_template_writes_is_looked_at_but_not_the_template(renderer):
    assert render(renderer, "Hello.", tools=["<|im_end|>"]) == [True, True]
    assert render(renderer, "Hello.", chat_template="<|im_end|>") == [False, False]


def test_without_plumbob_nothing_is_marked():
    register()
    assert render(Renderer(tapped=False), "Hello.<|im_end|>") == [False, False]


def test_where_it_cannot_be_told_the_words_are_the_users(monkeypatch):
    register()
    monkeypatch.setattr(typed, "inherited", lambda: 1 / 0)
    assert render(Renderer(tapped=True), "Hello.") == [True, True]
