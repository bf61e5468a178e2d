"""What is chosen of the data is whole groups, equal shares, and no matter of the order of files."""

import random as shuffling
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.data.corpus import FEWEST_GROUPS, MAX_TOKENS, sample_benign, sample_examples
from probes.data.examples import Benign, Example
from probes.errors import ConceptError
from probes.models.chat import Message

EVERYTHING = 10**9


def encode(conversation):
    """A token a character, and two of a template for each message."""
    return [ord(letter) for message in conversation for letter in f"<{message.content}>"]


def example(number, *, source="a", group=None, label=None, tokens=10, before=0):
    messages = [Message("user", "q" * before)] if before else []
    return Example(
        id=f"{source}-{number}",
        source=source,
        group=group or f"{source}:{number // 2}",
        topic="t",
        label=number % 2 == 0 if label is None else label,
        messages=[*messages, Message("user", "x" * (tokens - 2))],
    )


def examples(count, **options):
    return [example(number, **options) for number in range(count)]


def choose(items, budget=EVERYTHING):
    return sample_examples(items, encode, budget, "own")


def ids(sample):
    return [item.id for item in sample.items]


def test_a_large_enough_budget_takes_everything_in_order():
    items = [*examples(20), *examples(30, source="b")]
    sample = choose(items)
    assert sample.items == items
    assert sample.tokens == [encode(item.messages) for item in items]
    assert (sample.cut, sample.dropped, sample.available) == (0, 0, 50)


def test_the_budget_is_passed_by_less_than_a_group():
    items = [example(number, group=f"g{number // 6}") for number in range(600)]
    for budget in (400, 1000, 1001, 3333):
        spent = sum(map(len, choose(items, budget).tokens))
        assert budget <= spent < budget + 6 * 10


def test_data_sets_have_equal_shares_and_what_one_leaves_goes_to_the_others():
    items = [
        *examples(1000, source="large"),
        *examples(100, source="long", tokens=50),
        *examples(10, source="small"),
    ]
    sample = choose(items, 4100)
    spent = Counter()
    for item, tokens in zip(sample.items, sample.tokens, strict=True):
        spent[item.source] += len(tokens)
    assert spent["small"] == 100, "all of it"
    assert abs(spent["large"] - 2000) <= 100 and abs(spent["long"] - 2000) <= 100


def test_groups_are_whole():
    items = [example(number, group=f"g{number % 37}") for number in range(370)]
    taken = Counter(item.group for item in choose(items, 1500).items)
    assert 5 <= len(taken) < 37 and set(taken.values()) == {10}


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), budget=st.integers(200, 3000))
def test_the_choice_is_no_matter_of_the_files_order(seed, budget):
    items = [*examples(100), *examples(80, source="b", tokens=30)]
    shuffled = shuffling.Random(seed).sample(items, len(items))
    sample = choose(shuffled, budget)
    assert sorted(ids(sample)) == sorted(ids(choose(items, budget)))
    assert ids(sample) == [item.id for item in shuffled if item.id in set(ids(sample))], "in the order given"


@settings(deadline=None, max_examples=25)
@given(budgets=st.tuples(st.integers(300, 3000), st.integers(300, 3000)))
def test_a_larger_budget_adds_and_takes_nothing_away(budgets):
    items = [*examples(100), *examples(80, source="b", tokens=30), *examples(20, source="c")]
    smaller, larger = (set(ids(choose(items, budget))) for budget in sorted(budgets))
    assert smaller <= larger


def test_it_is_not_the_first_that_are_chosen():
    assert ids(choose(examples(400), 1000)) != [item.id for item in examples(400)[:100]]


def test_long_ones_are_cut_and_counted():
    sample = choose([*examples(20), example(20, tokens=MAX_TOKENS), example(21, tokens=MAX_TOKENS + 5)])
    assert (sample.cut, sample.dropped) == (1, 0)
    assert [len(tokens) for tokens in sample.tokens[-2:]] == [MAX_TOKENS, MAX_TOKENS]
    assert len(sample.items) == 22


def test_what_the_cut_takes_the_labelled_message_from_is_left_out_and_counted():
    items = [
        *examples(20),
        example(20, before=MAX_TOKENS // 4, tokens=MAX_TOKENS),
        example(21, before=MAX_TOKENS + 10, tokens=20),
        example(22, before=MAX_TOKENS - 100, tokens=20),
    ]
    sample = choose(items)
    assert [item.id for item in items if item not in sample.items] == ["a-21"]
    assert (sample.cut, sample.dropped, sample.available) == (1, 1, 23)


def test_what_is_long_in_tokens_only_is_left_out_too():
    """A character may be several tokens."""

    def by_bytes(conversation):
        return [token for message in conversation for token in message.content.encode()]

    long = Example("long", "a", "g", "t", True, [Message("user", "🦊" * 300), Message("assistant", "so it is")])
    sample = sample_examples([*examples(20), long], by_bytes, EVERYTHING, "own")
    assert long not in sample.items and sample.dropped == 1


def test_two_examples_of_one_id_are_refused_by_name():
    with pytest.raises(ConceptError, match=r"'own' has two examples with the id a-7\. Rename"):
        choose([*examples(20), example(7)])


@pytest.mark.parametrize(("label", "missing"), [(True, "negative"), (False, "positive")])
def test_one_class_is_refused(label, missing):
    with pytest.raises(ConceptError, match=rf"Concept 'own' has no {missing} example\. It needs both"):
        choose(examples(30, label=label))


def test_nothing_is_refused():
    with pytest.raises(ConceptError, match="Concept 'own' has no positive example"):
        choose([])


def test_too_few_groups_of_a_class_are_refused():
    """They could not be parted into some to fit on and some to judge by."""
    few = FEWEST_GROUPS - 1
    positives = [example(number, label=True, group=f"p{number % few}") for number in range(30)]
    negatives = [example(number, label=False, group=f"n{number}") for number in range(30, 60)]
    with pytest.raises(ConceptError, match=rf"'own' has positive examples of {few} topics .* add topics"):
        choose([*positives, *negatives])
    choose([*positives, example(99, label=True), *negatives])


def test_a_budget_for_too_few_groups_is_refused():
    with pytest.raises(ConceptError, match=r"of 2 topics within 30 tokens.*raise --tokens"):
        choose(examples(400), 30)


def test_benign_requests_are_shared_and_cut_alike():
    requests = [
        Benign(f"{number}", "t", [Message("user", "x" * size)], source)
        for source, size in (("short", 8), ("long", 2 * MAX_TOKENS))
        for number in range(300)
    ]
    sample = sample_benign(requests, encode, 8 * MAX_TOKENS)
    taken = Counter(item.source for item in sample.items)
    assert taken["long"] == 5 == sample.cut
    assert taken["short"] == 300, "all of them are less than half of the budget"
    assert sample.available == 600 and max(map(len, sample.tokens)) == MAX_TOKENS
