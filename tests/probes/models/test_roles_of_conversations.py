"""Whatever a conversation is made of, no content is the template's, and nobody's words have a more trusted role."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.models.markers import describe_markers, find_markers
from probes.scoring.roles import Role, RoleReader
from tests.harness.chat_templates import TOOL_STYLES
from tests.harness.tokenizers import CHATML, make_tokenizer

STYLES = {**TOOL_STYLES, "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>")}
WORDS = ["bees eat", "the red house", "nectar and pollen", "little boat", "Thank you", "warm today", "Tell me about"]
CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": "look", "arguments": {"q": "boats"}}}
READ_AS_THE_USERS = {Role.USER, Role.TOOL}
ALLOWED = {
    "user": READ_AS_THE_USERS,
    "tool": READ_AS_THE_USERS,
    "developer": READ_AS_THE_USERS,
    "data": READ_AS_THE_USERS,
    "critic": READ_AS_THE_USERS,
    # Less trusted than they are, or counted as unread, where the template does not say whose words they are.
    "assistant": {Role.ASSISTANT, Role.TEXT, *READ_AS_THE_USERS},
    "system": {Role.SYSTEM, Role.TEXT, *READ_AS_THE_USERS},
    "thought": {Role.REASONING, Role.ASSISTANT, Role.TEXT, *READ_AS_THE_USERS},
}


@functools.cache
def styled(style):
    template, special, eos = STYLES[style]
    tokenizer = make_tokenizer(template, special, eos=eos)
    markers = find_markers(tokenizer)
    return tokenizer, RoleReader(markers), markers


@st.composite
def conversations(draw):
    """Messages, each content with a number of its own, so that it is found in what is rendered."""
    roles = st.sampled_from(["user", "assistant", "tool", "developer", "data", "critic", "system", "calls"])
    messages, contents = [], []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": text(draw, contents, "system")})
    # The first is a user's: where nothing of a user stands between, Mistral's answers have no header of their own.
    for role in ["user", *draw(st.lists(roles, max_size=6))]:
        if role == "calls":
            messages.append({"role": "assistant", "content": draw(st.sampled_from(["", None])), "tool_calls": [CALL]})
            continue
        message = {"role": role, "content": text(draw, contents, role)}
        if role == "tool":
            message |= {"name": "look", "tool_call_id": "abcdefgh1"}
        if role == "assistant" and draw(st.booleans()):
            message["reasoning_content"] = text(draw, contents, "thought")
        if draw(st.booleans()):
            message.setdefault("name", "bee")
        messages.append(message)
    return messages, contents


def text(draw, contents, role) -> str:
    said = f"{draw(st.sampled_from(WORDS))} {1000 + len(contents)}"
    contents.append((role, said))
    return said


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=150)
@given(drawn=conversations(), respond=st.booleans())
def test_every_content_is_its_authors_or_the_users(style, drawn, respond):
    messages, contents = drawn
    tokenizer, reader, _ = styled(style)
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=respond)
    except Exception:
        # The template does not take it, and so does no server.
        return
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    roles = reader.prompt(encoded["input_ids"])
    for role, said in contents:
        if (begin := rendered.find(said)) < 0:
            continue
        end = begin + len(said)
        found = {
            Role(int(role))
            for role, (left, right) in zip(roles, encoded["offset_mapping"], strict=True)
            if left < end and right > begin
        }
        assert found <= ALLOWED[role], (role, said, found, rendered)


@pytest.mark.parametrize("style", STYLES)
def test_roles_are_told_apart_where_the_template_says_them(style):
    tokenizer, reader, markers = styled(style)
    conversation = [
        {"role": "user", "content": "bees eat"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "nectar and pollen", "name": "look", "tool_call_id": "abcdefgh1"},
    ]
    if style == "chatml":
        conversation[1]["content"] = "little boat"
    ids = tokenizer.apply_chat_template(conversation, return_dict=False)
    roles = reader.prompt(ids)
    said = {role: tokenizer.decode([t for t, r in zip(ids, roles, strict=True) if r == role]) for role in Role}
    assert "bees eat" in said[Role.USER] and "nectar and pollen" in said[Role.TOOL], said
    assert Role.TEXT not in roles
    assert {role for role, _ in describe_markers(markers, tokenizer.decode)} >= {"user", "assistant"}


def test_a_thought_that_the_template_opens_goes_on_in_what_is_generated():
    tokenizer, reader, _ = styled("deepseek")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "bees eat"}], add_generation_prompt=True, return_dict=False
    )
    walk = reader.walk(prompt)
    generated = tokenizer.encode("nectar</think>pollen", add_special_tokens=False)
    roles = [walk.next(token) for token in generated]
    end = generated.index(tokenizer.convert_tokens_to_ids("</think>"))
    assert set(roles[: end + 1]) == {Role.REASONING} and set(roles[end + 1 :]) == {Role.ASSISTANT}


@pytest.mark.parametrize("style", STYLES)
def test_a_text_without_messages_is_a_text_whatever_begins_it(style):
    tokenizer, reader, _ = styled(style)
    begins = tokenizer.apply_chat_template([{"role": "user", "content": "bees"}], tokenize=False).split("bees")[0]
    first = tokenizer.encode(begins, add_special_tokens=False)[:1] if style in ("mistral", "deepseek") else []
    ids = [*first, *tokenizer.encode("bees eat nectar and pollen", add_special_tokens=False)]
    assert set(reader.prompt(ids).tolist()) == {Role.TEXT}
