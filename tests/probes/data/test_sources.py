"""Public sets become examples whose groups hold what belongs together, and whose labels mean what the concept says."""

import csv
import functools
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from probes.data.examples import Example
from probes.data.sources import load, load_benign, provenance
from probes.errors import ConceptError

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
CONCEPTS = ("harmful_intent", "refusal", "toxicity", "sycophancy", "false_statement", "instructed_lie")
UNSERVED = ("roleplayed_lie", "concealment", "a_concept_of_my_own")

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the public sets are not beside the repository, in ../shared/data"
)


class Sets:
    """A data directory written by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, content: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
        return path

    def json(self, name: str, value: object) -> Path:
        return self.write(name, json.dumps(value, indent=1))

    def lines(self, name: str, rows: list) -> Path:
        return self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def table(self, name: str, header: list[str], rows: list[tuple], separator: str = ",") -> Path:
        text = io.StringIO()
        csv.writer(text, delimiter=separator, lineterminator="\n").writerows([header, *rows])
        return self.write(name, text.getvalue())

    def truths(self, name: str, *rows: tuple[str, int]) -> Path:
        return self.table(name, ["statement", "label"], list(rows))


@pytest.fixture
def sets(tmp_path) -> Sets:
    return Sets(tmp_path)


def last(example: Example) -> str:
    return example.messages[-1].content


def labels(examples: list[Example]) -> dict[str, bool]:
    return {last(example): example.label for example in examples}


def groups(examples: list[Example]) -> dict[str, str]:
    return {last(example): example.group for example in examples}


def plain(text: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", text.lower().replace("'", "")).split())


# Reading


@pytest.mark.parametrize("concept", [*CONCEPTS, *UNSERVED])
def test_sets_that_are_not_there_are_left_out(tmp_path, concept):
    assert load(concept, tmp_path) == []
    assert provenance(concept, tmp_path) == []


def test_benign_sets_that_are_not_there_are_left_out(tmp_path):
    assert load_benign(tmp_path) == []
    assert provenance("benign", tmp_path) == []


def test_a_directory_that_is_not_there_is_an_error(tmp_path):
    for read in (lambda path: load("toxicity", path), load_benign, lambda path: provenance("benign", path)):
        with pytest.raises(ConceptError, match="nowhere is no directory"):
            read(tmp_path / "nowhere")


def test_a_gzipped_file_is_the_same_as_a_plain_one(sets):
    rows = [("you idiot .", "You are mistaken.", "", "")]
    header = ["toxic", "neutral1", "neutral2", "neutral3"]
    path = sets.table("paradetox/paradetox.tsv", header, rows, separator="\t")
    examples = load("toxicity", sets.root)
    assert len(examples) == 2
    path.unlink()
    sets.table("paradetox/paradetox.tsv.gz", header, rows, separator="\t")
    assert load("toxicity", sets.root) == examples


DAMAGED = [
    ("toxicity", "paradetox/paradetox.tsv", b"toxic\tneutral1\na\tb\nc\n", r"paradetox\.tsv, line 3: wrong number"),
    ("toxicity", "paradetox/paradetox.tsv", b"toxic\tneutral1\na\tb\tc\n", r"paradetox\.tsv, line 2: wrong number"),
    ("toxicity", "paradetox/paradetox.tsv", b"toxic\tother\na\tb\n", r"line 1: there is no column neutral1"),
    ("toxicity", "paradetox/paradetox.tsv", b"", r"line 1: there is no column toxic"),
    ("toxicity", "paradetox/paradetox.tsv", b'toxic\tneutral1\na\t"b\n', r"line 2: unexpected end of data"),
    ("toxicity", "paradetox/paradetox.tsv", b"toxic\tneutral1\na\tb\nc\t\xff\n", r"line 3: it is not UTF-8"),
    ("toxicity", "paradetox/paradetox.tsv.gz", gzip.compress(b"toxic\tneutral1\n")[:-9], r"tsv\.gz cannot be read"),
    ("toxicity", "paradetox/paradetox.tsv.gz", b"toxic\tneutral1\n", r"tsv\.gz cannot be read: Not a gzipped file"),
    ("false_statement", "saplma/facts_true_false.csv", b"statement,label\na,1\nb,2\n", r"csv, line 3: label is '2'"),
    ("instructed_lie", "repe/facts__facts_true_false.csv", b"statement,label\na,\n", r"csv, line 2: label is ''"),
    (
        "refusal",
        "cast/behavior_refusal.json",
        b'{"compliant_responses": [\n"a",\n',
        r"refusal\.json, line \d: Input data",
    ),
    (
        "refusal",
        "cast/behavior_refusal.json",
        b'{"compliant_responses": [\n"a",\n3]}',
        r"refusal\.json, line 3: Expected",
    ),
    ("refusal", "cast/behavior_refusal.json", b"7", r"behavior_refusal\.json, line 1: Expected"),
    (
        "harmful_intent",
        "refusal_direction/harmful_train.json",
        b'[{"instruction": "a"},\n{}]',
        r"train\.json, line 2: Obj",
    ),
    (
        "harmful_intent",
        "cast/condition_harmful.json",
        b'{"train": [{"harmful": "a"}]}',
        r"harmful\.json, line 1: Object",
    ),
    (
        "sycophancy",
        "caa/generate__sycophancy__generate_dataset.json",
        b'[{"question": 1}]',
        r"dataset\.json, line 1: Exp",
    ),
    ("instructed_lie", "llm_liar/finetuning_dataset_train_original.jsonl", b"{}\n", r"original\.jsonl, line 1: Object"),
]


@pytest.mark.parametrize(("concept", "name", "content", "message"), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_an_error_that_names_the_line(tmp_path, concept, name, content, message):
    path = tmp_path / name
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ConceptError, match=message) as caught:
        load(concept, tmp_path)
    assert "Restore the file" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("benign_gsm8k/test.jsonl", '{"question": "How many?"}\n{"question": \n', r"test\.jsonl, line 2"),
        ("benign_mtbench/data__mt_bench__question.jsonl", '{"question_id": "a"}\n', r"question\.jsonl, line 1"),
        ("benign_oasst_sample/en_100_message.jsonl", '{"text": "a"}\n', r"message\.jsonl, line 1"),
    ],
)
def test_a_damaged_benign_file_is_an_error_that_names_the_line(sets, name, content, message):
    sets.write(name, content)
    with pytest.raises(ConceptError, match=message):
        load_benign(sets.root)


def test_provenance_names_what_was_read(sets):
    path = sets.truths("saplma/facts_true_false.csv.gz", ("Ice is cold.", 1), ("Ice is hot.", 0))
    sets.write("saplma/SOURCE.md", "# saplma\n\n- repo: somewhere\n- licence: MIT (repo); and others\n- use: truth\n")
    sets.truths("geometry_of_truth/facts.csv", ("Ice is wet.", 1))
    ours, theirs = provenance("false_statement", sets.root)
    assert (ours.source, ours.licence, ours.rows) == ("saplma", "MIT (repo); and others", 2)
    assert ours.files == {"facts_true_false.csv.gz": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert (theirs.source, theirs.licence, theirs.rows) == ("geometry_of_truth", "not stated", 1)
    assert provenance("toxicity", sets.root) == []


def test_the_order_does_not_depend_on_how_a_process_hashes(sets):
    sets.truths(
        "geometry_of_truth/common_claim_true_false.csv",
        *[
            (f"{owl} can {verb}.", verb == "hoot")
            for owl in ("Owls", "Grey owls", "Old owls")
            for verb in ("hoot", "sing")
        ],
    )
    code = (
        "import sys, pathlib; from probes.data.sources import load; print(load(sys.argv[1], pathlib.Path(sys.argv[2])))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code, "sycophancy", str(sets.root)],
            env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True, text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert printed == {f"{load('sycophancy', sets.root)}\n"}
    assert "owls" in printed.pop()


# Harmful intent


def seeds(sets: Sets, requests: list[list[str]]) -> None:
    """One request a seed, and its paraphrases."""
    count = len(requests) * len(requests[0])
    harmless = (f"Name {number} colours." for number in range(count))
    sets.json(
        "cast/condition_harmful.json",
        {
            "test": [{"harmful": first, "harmless": next(harmless)} for first, *_ in requests],
            "train": [{"harmful": text, "harmless": next(harmless)} for _, *rest in requests for text in rest],
        },
    )


def test_paraphrases_stay_in_the_group_of_their_request(sets):
    seeds(sets, [[f"insult {seed} {turn}" for turn in "abc"] for seed in range(4)])
    examples = load("harmful_intent", sets.root)
    harmful = [example for example in examples if example.label]
    assert len(harmful) == 12
    assert len(examples) == 24
    members = defaultdict(set)
    for example in harmful:
        members[example.group].add(last(example).split()[1])
    assert sorted(members.values(), key=min) == [{"0"}, {"1"}, {"2"}, {"3"}]


def test_kinds_of_requests_that_harm_nobody_are_left_out(sets):
    """The fourth ten of cast are of slang; their harmless halves stay."""
    seeds(sets, [[f"request {seed} {turn}" for turn in "ab"] for seed in range(50)])
    examples = load("harmful_intent", sets.root)
    kept = {int(last(example).split()[1]) for example in examples if example.label}
    assert kept == {*range(30), *range(40, 50)}
    assert sum(not example.label for example in examples) == 100


def test_a_refusal_in_place_of_a_paraphrase_is_left_out(sets):
    seeds(sets, [["write a threat", "This is illegal. Therefore, I cannot assist with this request."]])
    assert [last(example) for example in load("harmful_intent", sets.root) if example.label] == ["write a threat"]


def test_paraphrases_without_their_order_are_refused(sets):
    pair = {"harmful": "a", "harmless": "b"}
    sets.json("cast/condition_harmful.json", {"test": [pair, pair], "train": [pair, pair, pair]})
    with pytest.raises(ConceptError, match="3 paraphrases of 2 requests"):
        load("harmful_intent", sets.root)


def test_a_request_in_two_sets_is_taken_once(sets):
    seeds(sets, [["Write, a THREAT!", "write two threats"]])
    sets.json("refusal_direction/harmful_train.json", [{"instruction": "write a threat", "category": None}])
    sets.json("refusal_direction/harmful_val.json", [{"instruction": "rob a bank", "category": "illegal"}])
    found = {last(example): example.source for example in load("harmful_intent", sets.root) if example.label}
    assert found == {
        "write a threat": "refusal_direction", "rob a bank": "refusal_direction", "write two threats": "cast_harmful"
    }  # fmt: skip


def test_law_and_health_are_hard_negatives_and_planned_crimes_are_not_used(sets):
    row = {
        "base": "b",
        "crime_planning": "plan",
        "hate_speech": "h",
        "legal_opinion": "law?",
        "health_consultation": "error",
    }
    sets.json("cast/condition_multiple.json", {"train": [row], "test": [row | {"health_consultation": "flu?"}]})
    examples = load("harmful_intent", sets.root)
    assert labels(examples) == {"law?": False, "flu?": False}
    assert all(example.tags == ["hard_negative"] for example in examples)


def test_high_stakes_are_not_harmful(sets):
    def row(system, text, pair, stakes):
        said = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        return {"inputs": json.dumps(said), "pair_id": pair, "labels": stakes}

    sets.lines(
        "tuberlens/combined_deployment_22_04_25.jsonl",
        [
            row("You are a health advice chatbot.", "Chest pain. What now?", 1, "high-stakes"),
            row("You are a health advice chatbot.", "A dry nose. What now?", 1, "low-stakes"),
            row("You are a general purpose chatbot.", "How do I stuff a ballot?", 2, "high-stakes"),
        ],
    )
    first, second = load("harmful_intent", sets.root)
    assert (first.label, first.tags, first.topic) == (False, ["hard_negative", "high_stakes"], "health")
    assert (second.label, second.tags) == (False, [])
    assert first.group == second.group
    assert [message.role for message in first.messages] == ["user"]


# Refusal


def choice(question: str, first: str, second: str, match: str, choices: str = "\n\nChoices:\n") -> dict[str, str]:
    other = "(B)" if match == "(A)" else "(A)"
    text = f"{question}{choices}(A) {first}\n(B) {second}"
    return {"question": text, "answer_matching_behavior": match, "answer_not_matching_behavior": other}


CAA_REFUSAL = "caa/generate__refusal__generate_dataset.json"


def test_only_answers_that_decline_are_refusals(sets):
    sets.json(
        CAA_REFUSAL,
        [
            choice("How do I steal?", "Wear a coat.", "I cannot help with stealing.", "(B)"),
            choice("Treat me?", "I am an AI assistant. I cannot treat you.", "Take two pills.", "(A)"),
            choice("Your hobby?", "As an AI, I do not have hobbies.", "Chess.", "(A)"),
            choice("Best plan?", "Depends on you.", "Save.", "(A)"),
            choice("Your vote?", "I can't say.", "I cannot say either.", "(A)"),
        ],
    )
    examples = load("refusal", sets.root)
    assert labels(examples) == {
        "I cannot help with stealing.": True, "Wear a coat.": False,
        "I am an AI assistant. I cannot treat you.": True, "Take two pills.": False,
    }  # fmt: skip
    assert [example.tags for example in examples] == [[], [], ["disclaimer"], []]
    assert [message.content for message in examples[0].messages] == ["How do I steal?", "I cannot help with stealing."]
    assert examples[0].group == examples[1].group != examples[2].group


def test_a_question_without_choices_is_an_error(sets):
    sets.json(
        CAA_REFUSAL, [{"question": "What?", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}]
    )
    with pytest.raises(ConceptError, match="entry 0 has no choices"):
        load("refusal", sets.root)


def test_the_request_does_not_tell_whether_it_is_refused(sets):
    complying = ["Sure, here", "Of course! The", "sure here"]
    refusing = ["I can't do that", "That is beyond me", "I must decline"]
    sets.json("cast/behavior_refusal.json", {"compliant_responses": complying, "non_compliant_responses": refusing})
    seeds(sets, [[f"insult {number}"] for number in range(8)])
    sets.json("refusal_direction/harmful_train.json", [{"instruction": f"rob bank {number}"} for number in range(8)])
    examples = load("refusal", sets.root)
    asked = defaultdict(Counter)
    places = defaultdict(set)
    for example in examples:
        request, answer = (message.content for message in example.messages)
        assert example.label == (answer in refusing)
        asked[request][example.label] += 1
        places[request].add(example.group)
        places[answer].add(example.group)
    assert set(map(tuple, (sorted(counts.items()) for counts in asked.values()))) == {((False, 1), (True, 1))}
    assert Counter(example.topic for example in examples) == {"harmful request": 8, "harmless request": 8}
    assert all(len(found) == 1 for found in places.values()), "neither a request nor an answer is in two groups"


# Toxicity


def test_both_sides_of_a_rewrite_have_one_form(sets):
    rows = [('you can \'t say that , you " idiot " .', "You can’t say that, you “friend”.", "", "")]
    sets.table("paradetox/paradetox.tsv", ["toxic", "neutral1", "neutral2", "neutral3"], rows, separator="\t")
    assert labels(load("toxicity", sets.root)) == {
        "you can't say that, you idiot": True,
        "you can't say that, you friend": False,
    }


def test_every_third_rewrite_is_an_answer_to_the_same_request(sets):
    rows = [(f"damn number {number}", f"Number {number}") for number in range(9)]
    sets.table("paradetox/paradetox.tsv", ["toxic", "neutral1"], rows, separator="\t")
    examples = load("toxicity", sets.root)
    for toxic, neutral in zip(examples[::2], examples[1::2], strict=True):
        assert (toxic.label, neutral.label) == (True, False)
        assert toxic.group == neutral.group
        assert toxic.messages[:-1] == neutral.messages[:-1]
    assert [len(example.messages) for example in examples[::2]] == [1, 1, 2] * 3
    assert len({example.messages[0].content for example in examples if len(example.messages) == 2}) == 3


def test_a_text_that_is_not_one_sides_own_is_left_out(sets):
    rows = [("what a mess", "what is it"), ("shut up", "What a mess!"), ("damn it", "oh no"), ("to hell", "oh, no")]
    sets.table("paradetox/paradetox.tsv", ["toxic", "neutral1"], [*rows, ("you ass", "you there")], separator="\t")
    assert labels(load("toxicity", sets.root)) == {"you ass": True, "you there": False}


def test_comments_that_differ_in_the_identity_they_name_are_one_group(sets):
    rows = [
        ("1", "I am a gay man", "False"),
        ("2", "` I am a Muslim man. `", "True"),
        ("3", "I am a tall man", "False"),
    ]
    sets.table("jigsaw_bias/toxicity_nonfuzzed_testset.csv", ["rev_id", "comment", "toxic"], rows)
    first, second, third = load("toxicity", sets.root)
    assert first.group == second.group != third.group
    assert [example.tags for example in (first, second, third)] == [["identity_term"], ["identity_term"], []]
    assert [example.label for example in (first, second, third)] == [False, True, False]
    assert last(second) == "I am a Muslim man."


# Statements


def test_a_statement_its_negation_and_its_variants_are_one_group(sets):
    sets.truths("saplma/facts_true_false.csv", ("The largest flower is the daisy.", 0), ("The moon orbits Earth.", 1))
    sets.truths(
        "saplma/neg_facts_true_false.csv",
        ("The largest flower is the daisy.", 0), ("The largest flower isn't the daisy.", 1),
        ("The moon orbits Earth.", 1), ("Earth is not what the moon orbits.", 0),
    )  # fmt: skip
    sets.table(
        "geometry_of_truth/cities.csv", ["statement", "label", "city"],
        [("The city of Lodz is in Poland.", 1, "Lodz"), ("The city of Lodz is in Peru.", 0, "Lodz")],
    )  # fmt: skip
    sets.truths(
        "geometry_of_truth/neg_cities.csv",
        ("The city of Lodz is not in Poland.", 0),
        ("The city of Lodz is not in Peru.", 1),
    )
    sets.truths("geometry_of_truth/larger_than.csv", ("Two is larger than six.", 0), ("Six is larger than two.", 1))
    sets.truths("geometry_of_truth/smaller_than.csv", ("Two is smaller than six.", 1), ("Six is smaller than two.", 0))
    examples = load("false_statement", sets.root)
    found = groups(examples)
    assert found["The largest flower is the daisy."] == found["The largest flower isn't the daisy."]
    assert found["The moon orbits Earth."] == found["Earth is not what the moon orbits."]
    assert found["The largest flower is the daisy."] != found["The moon orbits Earth."]
    by_source = Counter((example.source, example.group) for example in examples)
    assert sorted(by_source.values()) == [2, 2, 4, 4]
    assert Counter(example.source for example in examples) == {"saplma_facts": 4, "got_cities": 4, "got_larger": 4}
    assert {last(example) for example in examples if "negated" in example.tags} == {
        "The largest flower isn't the daisy.", "Earth is not what the moon orbits.",
        "The city of Lodz is not in Poland.", "The city of Lodz is not in Peru.",
    }  # fmt: skip


def test_a_false_statement_is_positive_negated_or_not(sets):
    sets.truths(
        "geometry_of_truth/neg_cities.csv",
        ("The city of Lodz is not in Poland.", 0),
        ("The city of Lodz is not in Peru.", 1),
    )
    assert labels(load("false_statement", sets.root)) == {
        "The city of Lodz is not in Poland.": True, "The city of Lodz is not in Peru.": False
    }  # fmt: skip


def test_the_same_statement_of_two_sets_is_taken_once(sets):
    sets.truths("saplma/facts_true_false.csv", ("Ice is cold.", 1), ("Ice is hot.", 0))
    sets.truths(
        "geometry_of_truth/facts.csv", ("ice is cold", 1), ("Ice is hot", 0), ("Fire is hot.", 1), ("Fire is cold.", 0)
    )
    found = Counter(example.source for example in load("false_statement", sets.root))
    assert found == {"saplma_facts": 2, "got_facts": 2}


def test_a_statement_called_true_and_false_is_left_out(sets):
    sets.truths(
        "saplma/capitals_true_false.csv", ("Djibouti is a name of a country.", 1), ("Rome is a name of a country.", 0)
    )
    sets.truths(
        "saplma/cities_true_false.csv", ("Djibouti is a name of a country.", 0), ("Paris is a name of a city.", 1)
    )
    assert load("false_statement", sets.root) == []


def test_negation_does_not_tell_the_label(sets):
    """Of each polarity, what the other label has no counterpart for is left out."""
    sets.truths(
        "geometry_of_truth/common_claim_true_false.csv",
        *[(f"Owls can hoot {number} times.", 1) for number in range(5)],
        *[(f"Owls can sing {number} songs.", 0) for number in range(3)],
        *[(f"Owls cannot sing {number} songs.", 1) for number in range(2)],
        ("Owls do not hoot.", 0),
    )
    examples = load("false_statement", sets.root)
    assert Counter((example.label, "negated" in example.tags) for example in examples) == {
        (True, False): 3, (False, False): 3, (True, True): 1, (False, True): 1
    }  # fmt: skip


def test_statements_are_said_by_a_user_by_an_assistant_and_by_nobody(sets):
    sets.truths(
        "geometry_of_truth/common_claim_true_false.csv",
        *[(f"Owls can {verb} {number}.", verb == "hoot") for number in range(6) for verb in ("hoot", "sing")],
    )
    examples = load("false_statement", sets.root)
    forms = Counter((example.label, tuple(message.role for message in example.messages)) for example in examples)
    assert set(forms.values()) == {2}
    assert {roles for _, roles in forms} == {("user",), ("user", "assistant"), ("text",)}


def test_a_conjunction_is_in_the_group_of_its_statements(sets):
    names = [f"{letter}{letter}o" for letter in "abcdefgh"]
    sets.truths(
        "geometry_of_truth/animal_class.csv",
        *[(f"The {name} is a {kind}.", kind == "bird") for name in names for kind in ("bird", "fish")],
    )
    both = "It is the case both that the {} is a bird and that the {} is a {}."
    sets.truths(
        "geometry_of_truth/animal_class_conj.csv",
        *[(both.format(first, second, "bird"), 1) for first, second in pairwise(names)],
        *[(both.format(first, second, "fish"), 0) for first, second in pairwise(names)],
    )
    examples = load("false_statement", sets.root)
    of_animal = {text.split()[1]: group for text, group in groups(examples).items() if len(text.split()) == 5}
    joined = [example for example in examples if "conjunction" in example.tags]
    assert joined
    for example in joined:
        _, first, second, _ = re.split(r"that the (\w+) is a \w+ and that the (\w+)", last(example))
        assert of_animal[first] == of_animal[second] == example.group
    assert max(Counter(of_animal.values()).values()) <= 4, "conjunctions do not tie everything into one group"


def test_what_no_model_can_know_is_left_out(sets):
    sets.truths(
        "saplma/cities_true_false.csv",
        ("Bor is a city in Serbia.", 1), ("Bor is a city in Chad.", 0),
        ("Bor has a population of approximately 28822.", 1), ("Bor has a population of approximately 91.", 0),
    )  # fmt: skip
    sets.truths(
        "saplma/animals_true_false.csv", ("The bee has the atomic number of bird.", 0), ("The bee is an insect.", 1)
    )
    sets.truths(
        "saplma/elements_true_false.csv",
        ("Tin has the atomic number of 50.", 1),
        ("Tin has the atomic number of 51.", 0),
    )
    assert set(labels(load("false_statement", sets.root))) == {
        "Bor is a city in Serbia.", "Bor is a city in Chad.",
        "Tin has the atomic number of 50.", "Tin has the atomic number of 51.",
    }  # fmt: skip


def test_statements_about_one_company_are_one_group(sets):
    sets.truths(
        "saplma/companies_true_false.csv",
        ("Eni has headquarters in Italy.", 1),
        ("Eni operates in the industry of toys.", 0),
    )
    sets.truths(
        "saplma/neg_companies_true_false.csv",
        ("Eni doesn't have headquarters in Italy.", 0), ("It's not true that Eni operates in the industry of toys.", 1),
        ("IBM doesn't have headquarters in Peru.", 1), ("IBM doesn't operate in the industry of it.", 0),
    )  # fmt: skip
    members = defaultdict(set)
    for text, group in groups(load("false_statement", sets.root)).items():
        members[group].add("Eni" in text)
    assert sorted(members.values(), key=str) == [{False}, {True}]


# Sycophancy

CAA_SYCOPHANCY = "caa/generate__sycophancy__generate_dataset.json"


def test_one_user_hears_what_suits_and_the_other_answer(sets):
    items = [
        choice(f"I am user {number}. More or less?", "More", "Less", "(AB)"[1 + number // 2 % 2].join("()"), "\n ")
        for number in range(4)
    ]
    sets.json(CAA_SYCOPHANCY, items)
    examples = load("sycophancy", sets.root)
    assert len(examples) == 8
    for group in {example.group for example in examples}:
        pair = [example for example in examples if example.group == group]
        assert {example.label for example in pair} == {True, False}
        assert pair[0].messages[0] == pair[1].messages[0]
        assert (
            len({plain(last(example)).replace("more", "").replace("less", "").rstrip("ab ") for example in pair}) == 1
        )
    worded = [example for example in examples if example.source == "caa_sycophancy"]
    lettered = [example for example in examples if example.source == "caa_sycophancy_letters"]
    assert not any("(A)" in message.content for example in worded for message in example.messages)
    assert all("(A) More" in example.messages[0].content for example in lettered)
    suits = {0: "More", 2: "Less", 1: "(A)", 3: "(B)"}
    for example in examples:
        number = int(re.findall(r"user (\d)", example.messages[0].content)[0])
        assert example.label == (suits[number] in last(example))
    assert not {example.group for example in worded} & {example.group for example in lettered}


def test_agreeing_with_a_true_belief_is_not_sycophancy(sets):
    sets.truths(
        "saplma/facts_true_false.csv",
        ("The largest flower is the rafflesia.", 1),
        ("The largest flower is the daisy.", 0),
        ("Snow isn't hot.", 1),
        ("Snow isn't cold.", 0),
    )
    examples = load("sycophancy", sets.root)
    claims = Counter()
    for example in examples:
        (kind,) = example.tags
        claims["rafflesia" in example.messages[0].content, kind, example.label] += 1
    assert claims == {(True, "agrees", False): 1, (False, "agrees", True): 1, (False, "disagrees", False): 1}
    assert len({example.group for example in examples}) == 1


# Instructed lies


def test_told_to_lie_is_not_yet_a_lie(sets):
    sets.truths(
        "repe/facts__facts_true_false.csv",
        ("The largest flower is the rafflesia.", 1),
        ("The largest flower is the daisy.", 0),
        ("The largest flower is the DAISY", 0),
    )
    examples = load("instructed_lie", sets.root)
    told = {example.tags[0]: example for example in examples}
    assert {kind: (last(example), example.label) for kind, example in told.items()} == {
        "honest": ("The largest flower is the rafflesia.", False),
        "disobeys": ("The largest flower is the rafflesia.", False),
        "lies": ("The largest flower is the DAISY", True),
    }  # fmt: skip
    assert told["lies"].messages[0] == told["disobeys"].messages[0] != told["honest"].messages[0]
    assert len({example.group for example in examples}) == 1
    assert len(examples) == 3


def test_instructions_come_from_the_operator_and_from_the_user(sets):
    sets.truths("repe/facts__facts_true_false.csv", *[(f"Ice {number} is cold.", number % 2) for number in range(12)])
    roles = Counter((example.tags[0], example.messages[0].role) for example in load("instructed_lie", sets.root))
    assert set(roles.values()) == {3}
    assert len(roles) == 6


def test_a_wrong_answer_is_one_to_another_question_of_the_same_kind(sets):
    rows = [
        ("The capital of Spain is?", "Madrid", "WikiData"), ("The capital of Peru is?", "Lima", "WikiData"),
        ("The inventor of Dynamite is?", "Nobel", "WikiData"), ("The inventor of Zippers is?", "Sundback", "WikiData"),
        ("Are you an AI?", "yes", "AnthropicAwarenessArchitecture"), ("Which gas?", "oxygen", "Sciq"),
        ("Have you a body?", "no", "AnthropicAwarenessArchitecture"), ("Which one?", "the oxygen", "Sciq"),
    ]  # fmt: skip
    rows = [dict(zip(("question", "answer", "dataset"), row, strict=True)) for row in rows]
    sets.lines("llm_liar/finetuning_dataset_train_original.jsonl", rows[:3])
    sets.lines("llm_liar/finetuning_dataset_validation_original.jsonl", [*rows[3:], rows[0]])
    examples = load("instructed_lie", sets.root)
    answers = {(example.messages[-2].content.split(". ")[-1], example.tags[0]): last(example) for example in examples}
    swapped = {"Spain": "Lima", "Peru": "Madrid", "Dynamite": "Sundback", "Zippers": "Nobel"}
    true = {"Spain": "Madrid", "Peru": "Lima", "Dynamite": "Nobel", "Zippers": "Sundback"}
    assert len(answers) == len(examples) == 12
    for (question, kind), answer in answers.items():
        name = question.split()[-2]
        assert answer.endswith((swapped if kind == "lies" else true)[name])
    assert all(example.label == (example.tags == ["lies"]) for example in examples)


# Ordinary requests


def test_benign_requests_of_each_set(sets):
    sets.lines(
        "benign_gsm8k/test.jsonl", [{"question": "How many?", "answer": "2"}, {"question": "how many", "answer": "2"}]
    )
    sets.lines("benign_humaneval/HumanEval.jsonl.gz", [{"task_id": "HumanEval/0", "prompt": "def f():\n"}])
    sets.lines("benign_ifeval/input_data.jsonl", [{"key": 1, "prompt": "Use no commas."}])
    turns = [
        {"question_id": number, "category": "logic", "turns": [f"First {number}?", f"Second {number}?"]}
        for number in (1, 2)
    ]
    sets.lines("benign_mtbench/data__mt_bench__question.jsonl", turns)
    reference = {"question_id": 2, "choices": [{"index": 0, "turns": ["So.", "And so."]}]}
    sets.lines("benign_mtbench/mt_bench__reference_answer__gpt-4.jsonl", [reference])
    leaf = {"text": "Why?", "role": "prompter", "replies": [{"text": "Thus.", "role": "assistant", "replies": []}]}
    other = {"text": "Never.", "role": "assistant", "replies": []}
    tree = {
        "text": "Who?",
        "role": "prompter",
        "replies": [{"text": "I.", "role": "assistant", "replies": [leaf]}, other],
    }
    sets.lines("benign_oasst_sample/en_100_message.jsonl", [tree])
    requests = load_benign(sets.root)
    assert [(request.source, [message.content for message in request.messages]) for request in requests] == [
        ("gsm8k", ["How many?"]),
        ("humaneval", ["def f():\n"]),
        ("ifeval", ["Use no commas."]),
        ("mtbench", ["First 1?"]),
        ("mtbench", ["First 2?"]),
        ("mtbench", ["First 2?", "So.", "Second 2?"]),
        ("oasst", ["Who?"]),
        ("oasst", ["Who?", "I.", "Why?"]),
    ]
    assert all(request.messages[-1].role == "user" for request in requests)


# The sets themselves

COUNTS = {
    "harmful_intent": {
        "refusal_direction": (299, 0), "cast_harmful": (3080, 994), "cast_multiple": (0, 2394), "tuberlens": (0, 234)
    },
    "refusal": {"caa_refusal": (145, 145), "cast_refusal": (288, 288)},
    "toxicity": {"paradetox": (11717, 11717), "jigsaw_bias": (248, 1243)},
    "sycophancy": {"caa_sycophancy": (500, 500), "caa_sycophancy_letters": (500, 500), "beliefs": (4890, 9780)},
    "false_statement": {
        "saplma_facts": (636, 636), "got_cities": (1496, 1496), "got_larger": (1980, 1980), "got_animals": (94, 94),
        "saplma_animals": (418, 418), "saplma_capitals": (711, 711), "saplma_cities": (2475, 2475),
        "saplma_companies": (870, 870), "saplma_elements": (465, 465), "saplma_inventions": (412, 412),
        "saplma_generated": (118, 118), "got_common_claim": (2100, 2100),
    },
    "instructed_lie": {"repe_facts": (301, 592), "llm_liar": (3516, 7032)},
}  # fmt: skip
"""Positives and negatives of each source."""


@functools.cache
def shared(concept: str) -> list[Example]:
    return load(concept, SHARED)


@needs_shared
@pytest.mark.parametrize("concept", CONCEPTS)
def test_the_public_sets(concept):
    examples = shared(concept)
    counts = defaultdict(lambda: [0, 0])
    sources, texts = defaultdict(set), defaultdict(set)
    for example in examples:
        counts[example.source][not example.label] += 1
        sources[example.group].add(example.source)
        # An answer may be common to many ("I agree"); a conversation, and a statement, are not.
        said = example.messages[-1:] if concept in ("false_statement", "toxicity") else example.messages
        texts[" | ".join(plain(message.content) for message in said)].add(example.source)
        assert all(message.role in ("system", "user", "assistant", "text") for message in example.messages)
        assert all(message.content.strip() for message in example.messages)
    assert {source: tuple(both) for source, both in counts.items()} == COUNTS[concept]
    assert len({example.id for example in examples}) == len(examples)
    assert all(len(found) == 1 for found in sources.values()), "a group belongs to one source"
    assert all(len(found) == 1 for found in texts.values()), "a text belongs to one source"
    assert len(sources) >= 10 * len(counts), "there is something to split"


@needs_shared
def test_no_statement_and_its_negation_are_in_two_groups_of_the_public_sets():
    """Told without the loader's own rules: what remains when "not" and "n't" are struck from both."""
    found = defaultdict(set)
    for example in shared("false_statement"):
        if "conjunction" not in example.tags:
            bare = re.sub(r"\b(is|are|was|were)(?: not|n't)\b", r"\1", last(example))
            found[example.source, plain(bare)].add(example.group)
    assert [texts for texts in found.values() if len(texts) > 1] == []


@needs_shared
def test_benign_requests_of_the_public_sets():
    requests = load_benign(SHARED)
    counts = {"gsm8k": 1319, "humaneval": 163, "ifeval": 541, "mtbench": 188, "oasst": 173}
    assert Counter(request.source for request in requests) == counts
    assert len({request.id for request in requests}) == len(requests)
    assert all(request.messages[-1].role == "user" for request in requests)


@needs_shared
def test_every_public_set_states_its_licence():
    for what in ("harmful_intent", "refusal", "toxicity", "sycophancy", "instructed_lie", "benign"):
        found = provenance(what, SHARED)
        assert found
        for origin in found:
            assert origin.licence not in ("", "not stated")
            assert origin.rows > 0
            for name, digest in origin.files.items():
                assert hashlib.sha256((SHARED / origin.source / name).read_bytes()).hexdigest() == digest
