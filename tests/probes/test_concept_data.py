"""The contrast data that ships, and what is said of data that does not serve."""

import json
from collections import Counter

import pytest

from probes.concepts import CONCEPTS, Concept, benign_path, load_benign
from probes.errors import ConceptError
from probes.roles import Role

NAMES = [concept.name for concept in CONCEPTS]
SPEAKERS = {"system", "user", "assistant"}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def normal(text):
    return " ".join(text.lower().split())


def test_three_concepts():
    assert NAMES == ["harmful_intent", "toxicity", "sycophancy"]


@pytest.mark.parametrize("concept", CONCEPTS, ids=NAMES)
def test_pairs_are_many_and_well_formed(concept):
    pairs = concept.pairs
    assert len(pairs) >= 40
    assert len(rows(concept.path)) == len(pairs)
    assert [pair.id for pair in pairs if not pair.id.startswith(f"{concept.name}-")] == []
    assert [name for name, count in Counter(pair.id for pair in pairs).items() if count > 1] == []
    for pair in pairs:
        for side in (pair.positive, pair.negative):
            assert Role[side[-1].role.upper()] in concept.roles, pair.id
            assert {message.role for message in side} <= SPEAKERS, pair.id
            assert all(message.content.strip() for message in side), pair.id


@pytest.mark.parametrize("concept", CONCEPTS, ids=NAMES)
def test_sides_differ_and_in_nothing_but_the_last_message(concept):
    for pair in concept.pairs:
        assert normal(pair.positive[-1].content) != normal(pair.negative[-1].content), pair.id
        roles = [[message.role for message in side] for side in (pair.positive, pair.negative)]
        assert roles[0] == roles[1], pair.id


@pytest.mark.parametrize("concept", CONCEPTS, ids=NAMES)
def test_no_text_is_used_twice(concept):
    """A text in two pairs would be in a fold and out of it at once."""
    texts = Counter(normal(side[-1].content) for pair in concept.pairs for side in (pair.positive, pair.negative))
    assert [text for text, count in texts.items() if count > 1] == []


def test_benign_requests_are_many_and_well_formed():
    benign = load_benign()
    assert len(benign) >= 400
    assert len({request.id for request in benign}) == len(benign)
    assert len({request.topic for request in benign}) >= 20
    for request in benign:
        assert request.messages[-1].role == "user", request.id
        assert {message.role for message in request.messages} <= SPEAKERS, request.id
        assert all(message.content.strip() for message in request.messages), request.id


def test_benign_requests_are_not_taught():
    benign = Counter(normal(request.messages[-1].content) for request in load_benign())
    assert [text for text, count in benign.items() if count > 1] == []
    taught = {
        normal(message.content)
        for concept in CONCEPTS
        for pair in concept.pairs
        for side in (pair.positive, pair.negative)
        for message in side
    }
    said = {normal(message.content) for request in load_benign() for message in request.messages}
    assert said & taught == set()


def test_no_text_writes_a_chat_templates_markers():
    texts = [path.read_text() for path in (benign_path(), *(concept.path for concept in CONCEPTS))]
    for marker in ("<|", "|>", "[INST]", "</s>", "<start_of_turn>"):
        assert not any(marker in text for text in texts), marker


def a_pair(number, role="user"):
    side = [{"role": role, "content": "one two three four"}]
    return {"id": f"p-{number}", "topic": "t", "positive": side, "negative": side}


@pytest.fixture
def own(tmp_path):
    """A concept of the test's own data: ``own([row, …])``."""

    def make(content) -> Concept:
        path = tmp_path / "own.jsonl"
        lines = [line if isinstance(line, str) else json.dumps(line) for line in content]
        path.write_text("\n".join(lines) + "\n")
        return Concept("own", "a test", (Role.USER,), path)

    return make


def test_own_data_is_read(own):
    assert len(own([a_pair(number) for number in range(10)]).pairs) == 10


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nope", "malformed"),
        ("", "truncated"),
        ('{"id": "p-4", "topic": "t", "positive": []}', "missing required field `negative`"),
        (a_pair(4) | {"positive": "text"}, "Expected `array`"),
        (a_pair(4) | {"positive": []}, "pair p-4 must end with a message of: user"),
        (a_pair(4, role="assistant"), "pair p-4 must end with a message of: user"),
        (a_pair(4, role="usr"), "pair p-4 must end with a message of: user"),
    ],
)
def test_a_malformed_line_is_named_with_its_file(own, line, message):
    content = [a_pair(number) for number in range(10)]
    content[4] = line
    concept = own(content)
    with pytest.raises(ConceptError) as caught:
        _ = concept.pairs
    assert f"{concept.path}, line 5: " in str(caught.value) and message in str(caught.value)


def test_a_few_pairs_are_too_few(own):
    with pytest.raises(ConceptError, match=r"own\.jsonl has 9 pairs\. A probe needs at least 10"):
        _ = own([a_pair(number) for number in range(9)]).pairs


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConceptError, match=r"gone\.jsonl cannot be read: No such file"):
        load_benign(tmp_path / "gone.jsonl")
    with pytest.raises(ConceptError, match="cannot be read: Is a directory"):
        load_benign(tmp_path)


@pytest.mark.parametrize("messages", [[], [{"role": "assistant", "content": "hello"}]])
def test_a_benign_request_ends_with_the_user(tmp_path, messages):
    path = tmp_path / "benign.jsonl"
    path.write_text(json.dumps({"id": "b-1", "topic": "t", "messages": messages}) + "\n")
    with pytest.raises(ConceptError, match=r"benign\.jsonl, line 1: request b-1 must end with a message of: user"):
        load_benign(path)
