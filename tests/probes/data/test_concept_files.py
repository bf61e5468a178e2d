"""Concepts that users write, and the two of that kind that ship."""

import json
from collections import Counter

import numpy as np
import pytest
import yaml

from probes.data.concepts import CONCEPTS, load_concept
from probes.data.concepts.concept import DATA
from probes.errors import ConceptError
from probes.evaluation.metrics import auroc
from probes.scoring.roles import Role

NAMES = ["sandbagging", "situational_awareness"]
LONGER = 0.12
"""Of the longer side, what its matched one may lack."""


@pytest.fixture(scope="module", params=NAMES)
def shipped(request):
    return load_concept(DATA.parent / f"{request.param}.yaml")


def sides(concept):
    return [(pair, side) for pair in concept.pairs for side in (pair.positive, pair.negative)]


def normal(text):
    return " ".join(text.lower().split())


def test_shipped_files_load(shipped):
    assert shipped.name in NAMES and shipped.name not in {concept.name for concept in CONCEPTS}
    assert shipped.roles == (Role.ASSISTANT,)
    assert shipped.definition.endswith(".") and "\n" not in shipped.definition and shipped.limits
    pairs = shipped.pairs
    assert len(pairs) >= 24
    assert [pair.id for pair in pairs] == [f"{shipped.name}-{number:03}" for number in range(1, len(pairs) + 1)]
    assert len({pair.topic for pair in pairs}) >= 20


def test_conversations_are_well_formed(shipped):
    for pair, side in sides(shipped):
        roles = [message.role for message in side]
        assert roles in (["user", "assistant"], ["system", "user", "assistant"]), pair.id
        assert all(message.content == message.content.strip() != "" for message in side), pair.id
    for pair in shipped.pairs:
        assert len(pair.positive) == len(pair.negative), pair.id


def test_length_tells_nothing(shipped):
    for pair in shipped.pairs:
        for one, other in zip(pair.positive, pair.negative, strict=True):
            lengths = len(one.content), len(other.content)
            assert abs(lengths[0] - lengths[1]) <= LONGER * max(lengths), pair.id
    positive, negative = (
        [len(side[-1].content) for side in chosen]
        for chosen in zip(*((pair.positive, pair.negative) for pair in shipped.pairs), strict=True)
    )
    assert abs(np.mean(positive) - np.mean(negative)) < 1
    assert 0.42 < auroc(positive, negative) < 0.58


def test_no_answer_is_used_in_two_pairs(shipped):
    answers = Counter(
        text
        for pair in shipped.pairs
        for text in {normal(pair.positive[-1].content), normal(pair.negative[-1].content)}
    )
    assert [text for text, count in answers.items() if count > 1] == []


def test_some_answers_are_told_by_their_conversation_alone(shipped):
    """Words of the answer are then no help."""
    same = [pair for pair in shipped.pairs if pair.positive[-1] == pair.negative[-1]]
    assert len(same) >= 4
    assert all(pair.positive[:-1] != pair.negative[:-1] for pair in same)


def test_most_pairs_share_their_conversation(shipped):
    shared = [pair for pair in shipped.pairs if pair.positive[:-1] == pair.negative[:-1]]
    assert len(shared) > len(shipped.pairs) / 2
    assert all(pair.positive[-1] != pair.negative[-1] for pair in shared)


def a_pair(number, role="assistant"):
    before = [{"role": "user", "content": "What do bees eat?"}] if role == "assistant" else []
    return {
        "id": f"p-{number}",
        "topic": "t",
        "positive": [*before, {"role": role, "content": "one two three four"}],
        "negative": [*before, {"role": role, "content": "five six seven eight"}],
    }


TEN = [a_pair(number) for number in range(10)]


@pytest.fixture
def written(tmp_path):
    """The path of a concept file: ``written(roles=["user"])``; a ``None`` leaves a key out."""

    def write(**changes):
        content = {"name": "own", "definition": "a test", "roles": ["assistant"], "pairs": TEN} | changes
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    return write


def test_a_concept_file_is_read(written):
    path = written(half_life=3, min_tokens=2, limits="none", roles=["user", "assistant"])
    concept = load_concept(path)
    assert (concept.name, concept.definition, concept.limits) == ("own", "a test", "none")
    assert concept.roles == (Role.USER, Role.ASSISTANT)
    assert (concept.aggregates[0].half_life, concept.aggregates[0].min_tokens) == (3.0, 2)
    assert [pair.id for pair in concept.pairs] == [f"p-{number}" for number in range(10)]
    assert concept.path == path


def test_pairs_may_be_in_a_file_beside_it(written):
    path = written(pairs="own.jsonl")
    (path.parent / "own.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in TEN))
    concept = load_concept(path)
    assert concept.path == path.parent / "own.jsonl"
    assert concept.pairs == load_concept(written()).pairs


def refused(path):
    """What is said of a file, in one line."""
    with pytest.raises(ConceptError) as caught:
        load_concept(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 and message.startswith(str(path.parent))
    return message


def changed(at, **changes):
    return [pair | changes if number == at else pair for number, pair in enumerate(TEN)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"roles": ["asistant"]},
            "own.yaml: roles must be some of: assistant, user; not: asistant.",
        ),
        ({"roles": ["template"]}, "not: template."),
        ({"roles": []}, "not: none."),
        ({"roles": "assistant"}, "own.yaml: Expected `array`, got `str` - at `$.roles`."),
        ({"colour": "red"}, "own.yaml: Object contains unknown field `colour`."),
        ({"pairs": None}, "own.yaml: Object missing required field `pairs`."),
        ({"definition": None}, "missing required field `definition`"),
        ({"name": "over-claiming"}, "own.yaml: 'over-claiming' is no name for a probe. Use letters"),
        ({"name": ""}, "'' is no name for a probe"),
        ({"name": 7}, "Expected `str`, got `int` - at `$.name`"),
        ({"half_life": 0}, "Expected `float` > 0.0 - at `$.half_life`"),
        ({"half_life": float("nan")}, "half_life"),
        ({"half_life": float("inf")}, "a half-life of inf tokens is none"),
        ({"min_tokens": 0}, "Expected `int` >= 1 - at `$.min_tokens`"),
        ({"pairs": "gone.jsonl"}, "gone.jsonl cannot be read: No such file or directory."),
        ({"pairs": ""}, "cannot be read: Is a directory."),
        ({"pairs": []}, "own.yaml has 0 pairs. A probe needs at least 10, better 100."),
        ({"pairs": TEN[:9]}, "own.yaml has 9 pairs."),
        ({"pairs": changed(4, id="p-1")}, "own.yaml, pair 5: p-1 is also pair 2."),
        ({"pairs": changed(4, negative=None)}, "Expected `array`, got `null` - at `$.pairs[4].negative`"),
        ({"pairs": changed(4, negative=[])}, "own.yaml, pair 5: p-4 must end with a message of: assistant."),
        ({"pairs": changed(4, negative=TEN[4]["positive"])}, "own.yaml: p-4 is the same on both sides."),
        ({"pairs": changed(4, **a_pair(4, "user"))}, "own.yaml, pair 5: p-4 must end with a message of: assistant."),
        (
            {"pairs": changed(4, positive=[{"role": "assistant", "content": " "}])},
            "own.yaml: p-4 ends with a message that has no text.",
        ),
        (
            {"pairs": changed(4, positive=[{"role": "usr", "content": "hi"}, *TEN[4]["positive"]])},
            "own.yaml: p-4 has a message of: usr. Roles are: system, user,",
        ),
    ],
)
def test_what_is_wrong_is_one_line(written, changes, says):
    assert says in refused(written(**changes))


def test_one_class_is_none(written):
    """Pairs of positives alone."""
    pairs = [{key: value for key, value in pair.items() if key != "negative"} for pair in TEN]
    assert "Object missing required field `negative` - at `$.pairs[0]`" in refused(written(pairs=pairs))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name: [own", "own.yaml is not YAML: while parsing a flow sequence"),
        (b"name: own\n\tdefinition: x", "own.yaml is not YAML: while scanning"),
        (b"name: \xff\xfe", "own.yaml is not YAML: "),
        (b"name: 2001-99-99", "own.yaml is not YAML: month must be in 1..12"),
        (b"name: !!python/object:os.system x", "own.yaml is not YAML: could not determine a constructor"),
        (b"[" * 5000, "own.yaml is not YAML: "),
        (b"", "own.yaml: Expected `object`, got `null`."),
        (b"- name: own", "own.yaml: Expected `object`, got `array`."),
    ],
    ids=["brackets", "tab", "bytes", "date", "object", "nesting", "empty", "list"],
)
def test_what_is_not_yaml_is_one_line(written, content, says):
    path = written()
    path.write_bytes(content)
    assert says in refused(path)


def test_a_malformed_line_of_the_pairs_is_named(written):
    path = written(pairs="own.jsonl")
    lines = [json.dumps(pair) for pair in TEN]
    lines[6] = "{nope"
    (path.parent / "own.jsonl").write_text("\n".join(lines))
    assert "own.jsonl, line 7: JSON is malformed" in refused(path)


def test_a_concept_file_that_is_not_there(tmp_path):
    assert "gone.yaml cannot be read: No such file or directory." in refused(tmp_path / "gone.yaml")
    assert "cannot be read: Is a directory." in refused(tmp_path)
