"""What was read once is on disk, whole or not at all, and is what the model gave."""

import errno
from pathlib import Path

import numpy as np
import pytest

from probes.models import activation_store as storing
from probes.models import no_progress
from probes.models.activation_store import Rows, Store, last_message
from probes.models.activations import Reading
from probes.scoring.roles import Role

HIDDEN, LAYERS = 6, [1, 3]
ROLES = np.array([Role.TEMPLATE, Role.SYSTEM, Role.TEMPLATE, Role.USER, Role.USER, Role.TEMPLATE, Role.ASSISTANT])


class Source:
    """Reads states that are drawn by token and layer, and remembers what it was asked for."""

    markers = None

    def __init__(self, *, shift: float = 0.0) -> None:
        self.asked: list[list[int]] = []
        self.shift = shift

    def read(self, conversations, layers, progress=no_progress):
        self.asked += [list(ids) for ids in conversations]
        return [
            Reading(
                np.array(ids),
                np.resize(ROLES, len(ids)).astype(np.uint8),
                np.stack(
                    [
                        np.random.default_rng([layer, *ids]).normal(size=(len(ids), HIDDEN)) + self.shift
                        for layer in layers
                    ]
                ).astype(np.float32),
            )
            for ids in conversations
        ]


class Answerer:
    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def respond(self, prompts, max_tokens):
        self.asked += [list(ids) for ids in prompts]
        return [[*ids, *range(max_tokens)] for ids in prompts]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Shards of a few conversations, and batches of a few prompts."""
    monkeypatch.setattr(storing, "SHARD_TOKENS", 30)
    monkeypatch.setattr(storing, "ANSWERED_AT_ONCE", 3)


def conversations(count=10, tokens=9):
    return [[number, *range(tokens + number % 3)] for number in range(count)]


def make(path, source, model="m", layers=LAYERS):
    return Store(path / "work", source, model, layers)


def read(store, asked, progress=no_progress):
    return store.read(asked, "reading", progress)


def files(path):
    return sorted((path / "work").iterdir())


def test_rows_are_those_of_the_roles_that_probes_read_in_bfloat16(tmp_path):
    torch = pytest.importorskip("torch")
    asked = conversations()
    stored = read(make(tmp_path, Source()), asked)
    assert len(files(tmp_path)) > 2, "several shards"
    readings = Source().read(asked, LAYERS)
    for at, layer in enumerate(LAYERS):
        rows = stored.rows(layer)
        assert len(rows.offsets) == len(asked) + 1
        for index, reading in enumerate(readings):
            part = slice(rows.offsets[index], rows.offsets[index + 1])
            kept = np.isin(reading.roles, [Role.USER, Role.ASSISTANT])
            rounded = torch.from_numpy(reading.states[at, kept]).bfloat16().float().numpy()
            assert np.array_equal(rows.states[part], rounded)
            assert rows.roles[part].tolist() == reading.roles[kept].tolist()
            assert rows.last[part].tolist() == last_message(reading.roles)[kept].tolist()


def test_what_is_in_bfloat16_already_is_kept_to_the_bit():
    words = np.array([0x0000, 0x8000, 0x3F80, 0xC2F7, 0x7F7F, 0x0001], np.uint16)
    assert storing._to_bfloat16(storing._from_bfloat16(words)).tolist() == words.tolist()


def test_nothing_is_read_twice(tmp_path):
    first, second = Source(), Source()
    asked = conversations()
    told = []
    one = read(make(tmp_path, first), asked, lambda *step: told.append(step))
    assert first.asked == asked
    two = read(make(tmp_path, second), asked)
    assert second.asked == []
    assert np.array_equal(one.rows(1).states, two.rows(1).states)
    total = sum(map(len, asked))
    assert told[-1] == ("reading", total, total) and [done for _, done, _ in told] == sorted(
        done for _, done, _ in told
    )


def test_a_reading_that_was_interrupted_goes_on_after_the_shards_that_are_whole(tmp_path):
    asked, source = conversations(), Source()

    def interrupt(what, done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read(make(tmp_path, source), asked, interrupt)
    before = len(source.asked)
    assert 0 < before < len(asked)
    stored = read(make(tmp_path, source), asked)
    assert source.asked == asked, "each once, in order"
    assert np.array_equal(stored.rows(3).states, read(make(tmp_path / "other", Source()), asked).rows(3).states)


def test_a_shard_that_was_cut_short_is_read_again(tmp_path):
    asked = conversations()
    expected = read(make(tmp_path, Source()), asked).rows(1)
    shard = files(tmp_path)[0]
    content = shard.read_bytes()
    for length in (0, 5, len(content) // 2, len(content) - 1):
        shard.write_bytes(content[:length])
        source = Source()
        rows = read(make(tmp_path, source), asked).rows(1)
        assert 0 < len(source.asked) < len(asked)
        assert np.array_equal(rows.states, expected.states)


@pytest.mark.parametrize("other", [{"model": "n"}, {"layers": [1, 2]}, {"layers": [3]}])
def test_another_model_or_layer_shares_nothing(tmp_path, other):
    asked = conversations(4)
    mine = read(make(tmp_path, Source()), asked).rows(3).states
    source = Source(shift=1.0)
    theirs = read(make(tmp_path, source, **other), asked)
    assert source.asked == asked
    again = Source()
    assert np.array_equal(read(make(tmp_path, again), asked).rows(3).states, mine) and again.asked == []
    assert not np.array_equal(theirs.rows(other.get("layers", LAYERS)[-1]).states, mine)


def test_where_one_conversation_ends_matters(tmp_path):
    """The same tokens in other conversations are another shard."""
    source = Source()
    one = read(make(tmp_path, source), [[1, 2, 3, 4, 5, 6, 7], [8, 9, 1, 2, 3]])
    two = read(make(tmp_path, source), [[1, 2, 3, 4, 5, 6, 7, 8], [9, 1, 2, 3]])
    assert len(source.asked) == 4
    assert not np.array_equal(one.rows(1).offsets, two.rows(1).offsets)


def test_answers_are_kept_in_the_order_of_the_prompts(tmp_path):
    prompts = [[number] * (number + 1) for number in (3, 0, 5, 1, 4, 2, 6)]
    answerer, again, longer = Answerer(), Answerer(), Answerer()
    store = make(tmp_path, Source())
    told = []
    answered = store.answers(prompts, 4, answerer, lambda *step: told.append(step))
    assert answered == [[*ids, 0, 1, 2, 3] for ids in prompts]
    assert sorted(answerer.asked) == sorted(prompts)
    assert told[-1][1:] == (7, 7)
    assert make(tmp_path, Source()).answers(prompts, 4, again, no_progress) == answered and again.asked == []
    assert store.answers(prompts, 2, longer, no_progress) == [[*ids, 0, 1] for ids in prompts], "of another length"
    assert len(longer.asked) == len(prompts)


def test_answers_that_were_interrupted_or_damaged_are_asked_for_again(tmp_path):
    prompts = [[number] for number in range(7)]

    def interrupt(what, done, total):
        raise KeyboardInterrupt

    answerer = Answerer()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, Source()).answers(prompts, 2, answerer, interrupt)
    assert len(answerer.asked) == 3
    make(tmp_path, Source()).answers(prompts, 2, answerer, no_progress)
    assert len(answerer.asked) == 7
    file = files(tmp_path)[0]
    file.write_bytes(file.read_bytes()[:-2])
    again = Answerer()
    assert make(tmp_path, Source()).answers(prompts, 2, again, no_progress) == [[*ids, 0, 1] for ids in prompts]
    assert 0 < len(again.asked) < 7


@pytest.mark.parametrize("what", ["a reading", "an answer"])
@pytest.mark.parametrize("when", ["write_bytes", "replace"])
def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch, what, when):
    genuine = getattr(Path, when)

    def full(self, content):
        if when == "write_bytes":
            genuine(self, content[: len(content) // 2])
        # As the system says it of a write: without the file's name.
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, when, full)
    store = make(tmp_path, Source())
    with pytest.raises(OSError, match="No space left") as caught:
        if what == "a reading":
            read(store, conversations(2))
        else:
            store.answers([[1]], 2, Answerer(), no_progress)
    assert caught.value.errno == errno.ENOSPC
    assert Path(caught.value.filename).parent == tmp_path / "work", "or the command line would show a traceback"
    assert files(tmp_path) == []


def test_an_interrupt_in_the_middle_of_a_write_leaves_nothing(tmp_path, monkeypatch):
    genuine = Path.write_bytes

    def interrupted(self, content):
        genuine(self, content[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(make(tmp_path, Source()), conversations(2))
    assert files(tmp_path) == []


def test_nothing_is_made_before_there_is_something_to_keep(tmp_path):
    make(tmp_path, Source())
    assert list(tmp_path.iterdir()) == []


def numbered(counts, start=0):
    """Rows whose states count up."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    values = np.arange(start, start + offsets[-1])
    return Rows(values[:, None].astype(np.float32), (values % 4).astype(np.uint8), values % 2 == 0, offsets)


def test_some_conversations_of_rows():
    chosen = numbered([2, 0, 3, 1]).of(np.array([False, True, True, True]))
    assert chosen.offsets.tolist() == [0, 0, 3, 4]
    assert chosen.states[:, 0].tolist() == [2, 3, 4, 5]
    assert chosen.roles.tolist() == [2, 3, 0, 1] and chosen.last.tolist() == [True, False, True, False]


def test_rows_joined():
    joined = numbered([2, 1]).join(numbered([0, 2], start=10))
    assert joined.offsets.tolist() == [0, 2, 3, 3, 5]
    assert joined.states[:, 0].tolist() == [0, 1, 2, 10, 11]
    assert joined.roles.tolist() == [0, 1, 2, 2, 3]
    assert joined.last.tolist() == [True, False, True, True, False]


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("..uuu..aaaa..", "       1111  "),
        ("..uuu..aaaa..uu", "             11"),
        ("..sss..uu..", "       11  "),
        ("uuuu", "1111"),
        ("..", "  "),
        ("", ""),
    ],
)
def test_the_last_message(roles, expected):
    kinds = {".": Role.TEMPLATE, "u": Role.USER, "a": Role.ASSISTANT, "s": Role.SYSTEM}
    mask = last_message(np.array([kinds[letter] for letter in roles], np.uint8))
    assert mask.tolist() == [letter == "1" for letter in expected]
