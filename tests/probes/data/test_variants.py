"""The same message in another dress: changed alike on both sides, and still itself."""

import pytest

from probes.data.concepts import CONCEPTS
from probes.data.examples import Example
from probes.data.variants import ATTACKS, STYLES, variants
from probes.models.chat import Message
from probes.scoring.roles import Role

BY_NAME = {concept.name: concept for concept in CONCEPTS}
ASKED = next(concept for concept in CONCEPTS if concept.roles == (Role.USER,))
SAID = next(concept for concept in CONCEPTS if concept.roles == (Role.ASSISTANT,))


def examples(groups=10, each=3):
    """Positives and negatives of every group."""
    return [
        Example(
            f"{group}-{number}-{label}",
            "s",
            f"s:{group}",
            f"topic {group}",
            label,
            [Message("user", "Before."), Message("user", f"How do I paint gate {group} number {number}?")],
        )
        for group in range(groups)
        for number in range(each)
        for label in (True, False)
    ]


def test_each_variant_has_as_many_of_both_labels():
    made = variants(examples(), ASKED, each=7)
    names = {(variant.kind, variant.name) for variant in made}
    assert names == {("style", name) for name in STYLES} | {("leave-attack-family", name) for name in ATTACKS}
    for kind, name in names:
        labels = [v.example.label for v in made if (v.kind, v.name) == (kind, name)]
        assert labels.count(True) == labels.count(False) == 7


def test_groups_come_before_a_second_example_of_one():
    made = [
        v.example
        for v in variants(examples(groups=10, each=3), SAID, each=10)
        if v.name == "capitals" and v.example.label
    ]
    assert len({example.group for example in made}) == 10


def test_attacks_are_for_probes_of_requests():
    assert {variant.kind for variant in variants(examples(), SAID)} == {"style"}


def test_only_the_last_message_changes_and_the_rest_is_that_of_the_example():
    original = {example.id: example for example in examples()}
    for variant in variants(examples(), ASKED):
        example = variant.example
        source = original[example.id.split(" (")[0]]
        assert (example.label, example.group, example.topic, example.source) == (
            source.label,
            source.group,
            source.topic,
            source.source,
        )
        assert example.messages[:-1] == source.messages[:-1]
        assert example.messages[-1].content != source.messages[-1].content
        assert example.messages[-1].role == source.messages[-1].role


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "letters replaced"])
def test_an_attack_still_asks_what_was_asked(name):
    assert "paint gate 3" in ATTACKS[name]("paint gate 3")


def test_styles_keep_the_letters():
    text = "Could you please describe, in short, how gates are painted?"
    letters = sorted(text.lower().replace(",", "").replace("?", ""))
    assert sorted(STYLES["lower case, no punctuation"](text)) == letters
    assert sorted(STYLES["typing errors"](text)) == sorted(text) and STYLES["typing errors"](text) != text
    assert STYLES["capitals"](text) == text.upper()
    assert text in STYLES["chatty"](text)


def test_which_are_chosen_does_not_depend_on_their_order():
    one = {variant.example.id for variant in variants(examples(), ASKED, each=5)}
    other = {variant.example.id for variant in variants(sorted(examples(), key=lambda e: e.topic), ASKED, each=5)}
    assert one == other
