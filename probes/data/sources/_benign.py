"""Ordinary requests: school mathematics, code, instructions to be followed to the letter, chats."""

from collections.abc import Iterator
from typing import Final

import msgspec

from probes.data.examples import Benign
from probes.data.sources._files import Files, exchange, normalised, user
from probes.models.chat import Message

_PARTS: Final = (
    ("data__mt_bench__question", "mt_bench__reference_answer__gpt-4"),
    ("data__vicuna_bench__question", "vicuna_bench__reference_answer__gpt-4"),
)


class _Question(msgspec.Struct):
    question: str


class _Task(msgspec.Struct):
    prompt: str


class _Turns(msgspec.Struct):
    question_id: int
    category: str
    turns: list[str]


class _Choice(msgspec.Struct):
    turns: list[str]


class _Answer(msgspec.Struct):
    question_id: int
    choices: list[_Choice]


class _Node(msgspec.Struct):
    text: str
    role: str
    replies: list["_Node"] = []


def benign(files: Files) -> list[Benign]:
    """All requests, each once."""
    kept: dict[str, Benign] = {}
    for request in _requests(files):
        text = " | ".join(normalised(message.content) for message in request.messages)
        kept.setdefault(text, request)
    return list(kept.values())


def _requests(files: Files) -> Iterator[Benign]:
    for number, row in enumerate(files.lines("benign_gsm8k", "test.jsonl", _Question)):
        yield Benign(f"gsm8k:{number}", "mathematics", user(row.question), "gsm8k")
    for number, row in enumerate(files.lines("benign_humaneval", "HumanEval.jsonl", _Task)):
        yield Benign(f"humaneval:{number}", "code", user(row.prompt), "humaneval")
    for number, row in enumerate(files.lines("benign_ifeval", "input_data.jsonl", _Task)):
        yield Benign(f"ifeval:{number}", "instructions", user(row.prompt), "ifeval")
    for part in _PARTS:
        yield from _mtbench(files, *part)
    for number, root in enumerate(files.lines("benign_oasst_sample", "en_100_message.jsonl", _Node)):
        yield from _tree(f"oasst:{number}", root)


def _mtbench(files: Files, questions: str, references: str) -> Iterator[Benign]:
    """First turns, and second turns where the answer to the first is known."""
    answers = {
        row.question_id: row.choices[0].turns
        for row in files.lines("benign_mtbench", f"{references}.jsonl", _Answer)
        if row.choices
    }
    for row in files.lines("benign_mtbench", f"{questions}.jsonl", _Turns):
        name = f"mtbench:{row.question_id}"
        yield Benign(name, row.category, user(row.turns[0]), "mtbench")
        answered = answers.get(row.question_id, [])
        if len(row.turns) > 1 and answered:
            messages = [*exchange(row.turns[0], answered[0]), Message("user", row.turns[1])]
            yield Benign(f"{name}:2", row.category, messages, "mtbench")


def _tree(name: str, root: _Node) -> Iterator[Benign]:
    """The first request of a tree, and the last along its first replies."""
    path: list[Message] = []
    asked: list[int] = []
    node: _Node | None = root
    while node is not None:
        path.append(Message("user" if node.role == "prompter" else "assistant", node.text))
        if node.role == "prompter":
            asked.append(len(path))
        node = node.replies[0] if node.replies else None
    for turn in sorted({*asked[:1], *asked[-1:]}):
        yield Benign(f"{name}:{turn}", "chat", path[:turn], "oasst")
