"""Requests that ask for harm, and answers that decline: refusal_direction, cast (Programming Refusal with Conditional
Activation Steering, arXiv 2409.05907), caa (Contrastive Activation Addition, 2312.06681) and tuberlens.
"""

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Final, NamedTuple

import msgspec

from probes.data.examples import Example
from probes.data.sources._files import Files, exchange, normalised, unique, user
from probes.errors import ConceptError

_PER_KIND: Final = 10
"""Seeds in a row that cast has of each kind of request."""

_HARMS: Final = {
    0: "insults", 1: "insults of groups", 2: "threats", 4: "defamation", 5: "self-harm", 6: "violence",
    7: "harassment", 8: "sexual crime", 9: "theft", 10: "vandalism and disorder", 12: "intrusion", 13: "malware",
    14: "scams", 15: "financial crime", 17: "privacy", 18: "weapons and drugs", 19: "terrorism", 20: "child abuse",
    21: "animal cruelty", 22: "environmental damage", 23: "evading the police", 24: "mass harm", 28: "fake news",
    29: "false advertising", 30: "discrimination", 31: "warfare", 35: "stereotypes", 36: "extremism",
    37: "conspiracy theories", 39: "dangerous habits", 43: "abuse of office",
}  # fmt: skip
"""Kinds of cast's requests that ask for harm, by their place. The other 14 were read and left out: many or most of
their requests harm nobody (slang, role-play, song lyrics, erotica, gore in fiction, campaigning, ethics, religion,
popular errors, questions on health, money and law, safety of machines)."""

_LEAKED: Final = re.compile(r"\bI (?:cannot|can't) (?:assist|help|provide|fulfill)", re.IGNORECASE)
"""Refusals that cast's paraphraser gave in place of a request."""

_MIXED: Final = "general purpose chatbot"
"""In the system message of tuberlens' deployment on a social platform, some of whose requests do ask for harm."""


class _Instruction(msgspec.Struct):
    instruction: str


class _Pair(msgspec.Struct):
    harmful: str
    harmless: str


class _Kinds(msgspec.Struct):
    legal_opinion: str
    health_consultation: str


class _Said(msgspec.Struct):
    role: str
    content: str


class _Stakes(msgspec.Struct):
    inputs: str
    pair_id: int
    labels: str


class _Choice(msgspec.Struct):
    question: str
    answer_matching_behavior: str
    answer_not_matching_behavior: str


def harmful_intent(files: Files) -> list[Example]:
    """Requests that ask for help with doing harm, and harmless ones, some close to them.

    Left out: caa's refusal questions and bipia's attacks, many of which harm nobody, and tuberlens' policy set, whose
    labels are about answers.
    """
    return unique([*_instructions(files), *_cast(files), *_cast_kinds(files), *_stakes(files)])


def _instructions(files: Files) -> list[Example]:
    source = "refusal_direction"
    return [
        Example(f"{source}:{number}", source, f"{source}:{number}", "misuse", True, user(text))
        for number, text in enumerate(_misuse(files))
    ]


def _misuse(files: Files) -> list[str]:
    names = ("harmful_train.json", "harmful_val.json")
    lists = [files.entries("refusal_direction", name, _Instruction).get("", []) for name in names]
    return [row.instruction.strip() for rows in lists for row in rows]


class _Seeded(NamedTuple):
    seed: int
    pair: _Pair


def _seeded(files: Files) -> list[_Seeded]:
    """Cast's pairs with their seed: ``test`` has one request a seed, ``train`` its paraphrases in the same order.

    That the lists run in parallel was seen in the data: the words of a run of nine point to its seed.
    """
    lists = files.entries("cast", "condition_harmful.json", _Pair)
    train, test = lists.get("train", []), lists.get("test", [])
    if test and len(train) % len(test):
        raise ConceptError(
            f"cast/condition_harmful.json has {len(train)} paraphrases of {len(test)} requests.",
            "Take the file of the release, in its order: runs of paraphrases are told by their place.",
        )
    run = len(train) // len(test) if test else 1
    rows = [*enumerate(test), *((place // run, pair) for place, pair in enumerate(train))]
    return [_Seeded(seed, pair) for seed, pair in sorted(rows, key=lambda row: row[0])]


def _cast(files: Files) -> list[Example]:
    examples: list[Example] = []
    rows = _seeded(files)
    for number, (seed, pair) in enumerate(rows):
        topic = _HARMS.get(seed // _PER_KIND)
        if topic and not _LEAKED.search(pair.harmful):
            group = f"cast_harmful:{seed}"
            examples.append(
                Example(f"cast_harmful:{number}+", "cast_harmful", group, topic, True, user(pair.harmful.strip()))
            )
        group = f"cast_harmful:{normalised(pair.harmless)}"
        examples.append(
            Example(f"cast_harmful:{number}-", "cast_harmful", group, "everyday", False, user(pair.harmless.strip()))
        )
    return examples


def _cast_kinds(files: Files) -> list[Example]:
    """Requests on law and health, as negatives.

    The same rows have ``crime_planning`` and ``hate_speech``: of 40 each that were read, a third asks for nothing
    harmful ("Generate a strategic step for a chess piece"), so neither is used; ``base`` repeats the harmless of
    ``condition_harmful``.
    """
    lists = files.entries("cast", "condition_multiple.json", _Kinds)
    examples: list[Example] = []
    for number, row in enumerate([*lists.get("train", []), *lists.get("test", [])]):
        for topic, text in (("law", row.legal_opinion), ("health", row.health_consultation)):
            if normalised(text) not in ("", "error"):
                name = f"cast_multiple:{number}"
                messages, tags = user(text.strip()), ["hard_negative"]
                examples.append(Example(f"{name}:{topic}", "cast_multiple", name, topic, False, messages, tags))
    return examples


def _stakes(files: Files) -> list[Example]:
    """Requests with much at stake, and little: neither asks for harm."""
    examples: list[Example] = []
    for number, row in enumerate(files.lines("tuberlens", "combined_deployment_22_04_25.jsonl", _Stakes)):
        try:
            said = msgspec.json.decode(row.inputs, type=list[_Said])
        except msgspec.MsgspecError as error:
            where = f"tuberlens/combined_deployment_22_04_25.jsonl, line {number + 1}"
            raise ConceptError(f"{where}: inputs are no conversation: {error}.") from error
        if any(_MIXED in message.content for message in said if message.role == "system"):
            continue
        topic = "software" if any("software" in message.content for message in said[:1]) else "health"
        tags = ["hard_negative", "high_stakes"] if row.labels == "high-stakes" else []
        for message in said:
            if message.role == "user":
                name, group = f"tuberlens:{number}", f"tuberlens:{row.pair_id}"
                examples.append(Example(name, "tuberlens", group, topic, False, user(message.content), tags))
    return examples


_CHOICES: Final = re.compile(r"^(.*?)\s+Choices:\s*\(A\)\s*(.*?)\s*\(B\)\s*(.*?)\s*$", re.DOTALL)
_DECLINES: Final = re.compile(
    r"\bI (?:cannot|can not|can['’]t|won['’]t|will not|must decline|refuse)\b|\b(?:but|and) cannot\b"
    r"|\bI(?: am|['’]m) (?:unable|not able|not allowed)\b|\bnot something I can\b|^Sorry, (?:I )?can['’]t\b",
    re.IGNORECASE,
)
"""Words with which somebody says that they will not."""

_DISCLAIMS: Final = re.compile(r"\bas an? (?:\w+ )*(?:AI|language model)\b|\bI am an? (?:AI|artificial)", re.IGNORECASE)
"""Words with which a model speaks of what it is."""


def refusal(files: Files) -> list[Example]:
    """Answers that decline, and answers that comply with the same request."""
    return unique([*_caa(files), *_cast_behaviour(files)])


def _caa(files: Files) -> list[Example]:
    """Two answers to a question.

    The behaviour that caa calls refusal is mostly something else: that an AI has no hobbies, that it depends. Only
    answers that say they will not are kept, against the answer that does.
    """
    rows = files.entries("caa", "generate__refusal__generate_dataset.json", _Choice).get("", [])
    examples: list[Example] = []
    for number, row in enumerate(rows):
        match = _CHOICES.match(row.question)
        if match is None or {row.answer_matching_behavior, row.answer_not_matching_behavior} != {"(A)", "(B)"}:
            raise ConceptError(
                f"caa/generate__refusal__generate_dataset.json: entry {number} has no choices (A) and (B)."
            )
        question, *answers = match.groups()
        refusing, complying = answers if row.answer_matching_behavior == "(A)" else answers[::-1]
        if not _DECLINES.search(refusing) or _DECLINES.search(complying):
            continue
        group = f"caa_refusal:{normalised(question)}"
        for sign, label, answer in (("+", True, refusing), ("-", False, complying)):
            tags = ["disclaimer"] if _DISCLAIMS.search(answer) else []
            messages = exchange(question, answer)
            examples.append(
                Example(f"caa_refusal:{number}{sign}", "caa_refusal", group, "questions", label, messages, tags)
            )
    return examples


def _cast_behaviour(files: Files) -> list[Example]:
    """Beginnings of answers, crossed with requests: either kind of answer is given to either kind of request.

    One pair of beginnings and its four requests are a group, and occur in no other.
    """
    lists = files.entries("cast", "behavior_refusal.json", str)
    complying, refusing = (_distinct(lists.get(f"{kind}_responses", [])) for kind in ("compliant", "non_compliant"))
    harmless = _distinct([pair.harmless for _, pair in _seeded(files)] if complying else [])
    harmful = _distinct(_misuse(files) if complying else [])
    requests = [request for both in zip_longest(harmful, harmless) for request in both if request]
    each = 4
    examples: list[Example] = []
    for number, pair in enumerate(zip(refusing, complying, strict=False)):
        for request in requests[number * each : (number + 1) * each]:
            kind = "harmful request" if request in harmful else "harmless request"
            for sign, label, answer in zip("+-", (True, False), pair, strict=True):
                name, group = f"cast_refusal:{len(examples) // 2}{sign}", f"cast_refusal:{number}"
                examples.append(Example(name, "cast_refusal", group, kind, label, exchange(request, answer)))
    return examples


def _distinct(texts: Sequence[str]) -> list[str]:
    """Texts that differ after normalisation, in order."""
    return list({normalised(text): text.strip() for text in reversed(texts)}.values())[::-1]
