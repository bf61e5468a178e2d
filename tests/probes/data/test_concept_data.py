"""The contrast data that ships, and what is said of data that does not serve."""

import json
from collections import Counter
from pathlib import Path

import pytest

from probes.data.concepts import CONCEPTS, Concept, benign_path, load_benign
from probes.data.concepts.concept import FEWEST_PAIRS
from probes.data.corpus import FEWEST_GROUPS
from probes.data.examples import Benign, Example, by_source
from probes.errors import ConceptError
from probes.fit.material import NEGATED
from probes.models.activation_store import KEPT
from probes.models.chat import Message
from probes.scoring.roles import Role

NAMES = [concept.name for concept in CONCEPTS]
SPEAKERS = {"system", "user", "assistant"}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def normal(text):
    return " ".join(text.lower().split())


DECEPTION = ["false_statement", "instructed_lie", "roleplayed_lie", "concealment"]


def test_eight_concepts_of_which_four_share_a_budget():
    assert [concept.name for concept in CONCEPTS] == ["harmful_intent", "refusal", "toxicity", "sycophancy", *DECEPTION]
    assert [concept.name for concept in CONCEPTS if concept.family == "deception"] == DECEPTION
    assert {concept.family for concept in CONCEPTS} == {"", "deception"}


@pytest.mark.parametrize("concept", CONCEPTS, ids=NAMES)
def test_a_concept_says_what_it_is_and_reads_what_is_kept(concept):
    assert len(concept.definition.split()) >= 10
    # Of the rest the activations are not on disk.
    assert concept.roles and set(concept.roles) <= set(KEPT)


@pytest.mark.parametrize("concept", CONCEPTS, ids=NAMES)
def test_pairs_of_one_topic_are_one_group_and_there_are_enough_of_them(concept):
    """Two pairs of a topic may state the same fact the other way round."""
    shipped = concept.examples(None, None)
    assert len(shipped) == 2 * len(concept.pairs) and len({example.id for example in shipped}) == len(shipped)
    topics = {example.group: {other.topic for other in shipped if other.group == example.group} for example in shipped}
    assert all(len(found) == 1 for found in topics.values())
    assert len(topics) == len({pair.topic for pair in concept.pairs}) >= 2 * FEWEST_GROUPS
    sides = {group: {example.label for example in shipped if example.group == group} for group in topics}
    assert all(labels == {True, False} for labels in sides.values())


def test_statements_are_negated_as_often_where_they_are_true_as_where_they_are_false():
    false_statement = next(concept for concept in CONCEPTS if concept.name == "false_statement")
    assert "two_direction" in false_statement.kinds
    tags = Counter(example.label for example in false_statement.examples(None, None) if NEGATED in example.tags)
    assert tags[True] == tags[False] >= 40


def test_public_data_are_added_to_what_ships():
    concept, asked = CONCEPTS[0], []
    more = Example("x", "public", "g", "t", True, [Message("user", "hello")])

    def load(name, data):
        asked.append((name, data))
        return [more]

    found = concept.examples(Path("data"), load)
    assert asked == [(concept.name, Path("data"))]
    assert {source: len(rows) for source, rows in by_source(found).items()} == {
        "shipped": 2 * len(concept.pairs),
        "public": 1,
    }


def test_a_pairs_sides_are_labelled(own):
    concept = own([a_pair(number) | {"topic": f"t{number % 3}", "kind": "k"} for number in range(10)])
    first, second, *_ = concept.examples(None, None)
    assert (first.id, first.label, first.topic, first.tags) == ("shipped:p-0+", True, "t0", ["k"])
    assert (second.id, second.label, second.group) == ("shipped:p-0-", False, first.group)


@pytest.mark.parametrize("concept", CONCEPTS, ids=NAMES)
def test_pairs_are_many_and_well_formed(concept):
    pairs = concept.pairs
    assert len(pairs) >= 100
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
    assert {request.source for request in benign} == {"shipped"}
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
    assert len(own([a_pair(number) for number in range(FEWEST_PAIRS)]).pairs) == FEWEST_PAIRS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nope", "malformed"),
        ("", "truncated"),
        ('{"id": "p-4", "topic": "t", "positive": []}', "missing required field `negative`"),
        (a_pair(4) | {"positive": "text"}, "Expected `array`"),
        (a_pair(4) | {"positive": []}, "p-4 must end with a message of: user"),
        (a_pair(4, role="assistant"), "p-4 must end with a message of: user"),
        (a_pair(4, role="usr"), "p-4 must end with a message of: user"),
        (a_pair(2), "p-2 is also line 3"),
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
    few = FEWEST_PAIRS - 1
    with pytest.raises(ConceptError, match=rf"own\.jsonl has {few} pairs\. A probe needs at least {FEWEST_PAIRS}"):
        _ = own([a_pair(number) for number in range(few)]).pairs


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConceptError, match=r"gone\.jsonl cannot be read: No such file"):
        load_benign(tmp_path / "gone.jsonl")
    with pytest.raises(ConceptError, match="cannot be read: Is a directory"):
        load_benign(tmp_path)


def test_a_benign_request_may_name_its_source(tmp_path):
    path = tmp_path / "benign.jsonl"
    row = {"id": "b-1", "topic": "t", "messages": [{"role": "user", "content": "hello"}], "source": "mine"}
    path.write_text(json.dumps(row) + "\n")
    assert load_benign(path) == [Benign("b-1", "t", [Message("user", "hello")], "mine")]


@pytest.mark.parametrize("messages", [[], [{"role": "assistant", "content": "hello"}]])
def test_a_benign_request_ends_with_the_user(tmp_path, messages):
    path = tmp_path / "benign.jsonl"
    path.write_text(json.dumps({"id": "b-1", "topic": "t", "messages": messages}) + "\n")
    with pytest.raises(ConceptError, match=r"benign\.jsonl, line 1: request b-1 must end with a message of: user"):
        load_benign(path)
