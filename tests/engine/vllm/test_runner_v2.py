"""A real engine on Model Runner V2, scheduled asynchronously, as GPUs have it, on a CPU.

The runner's kernels are Triton's and run in Triton's interpreter; ``v2_shim`` lets vLLM do so. The model is tiny and in
float32: the interpreter is slow, and scores can be compared closely.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from monitor.offline.engine_process import Arm
from monitor.wire.codec import RESYNC
from monitor.wire.frames import Frame
from monitor.wire.orders import Act, Steer, Stream
from probes.bundle import Bundle
from tests.harness import models
from tests.harness.engines import random_bundle
from tests.harness.runner_v2 import start
from tests.harness.wire import Seen, Wire

pytestmark = [pytest.mark.vllm, pytest.mark.long]

LAYERS = (0, 2, models.LAYERS - 1)
BATCH_TOKENS = 64
"""The most rows of a step: longer prompts are prefilled in chunks."""
BLOCK = 32
BLOCKS = 20
"""Of the KV cache, of which one is never used."""
DRAFTS = 3
TOKENS = 24
TOLERANCE = 1e-5
"""Of a score, relative to the norm of the state. float32 rounds by up to 2**-24 at each operation; four blocks of some
ten operations, each a sum of up to 128 terms in an order of its own, leave sqrt(4 * 10 * 128) * 2**-24 = 4e-6 where
errors are independent."""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    return models.tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="module")
def source(model_path):
    from probes.models.activations import TransformersSource

    return TransformersSource(model_path, dtype="float32")


@pytest.fixture(scope="module")
def bundle(model_path, source, tmp_path_factory) -> Bundle:
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    return random_bundle(path, model_path, source.markers, threshold=1e9, layers=LAYERS)


@pytest.fixture(scope="module")
def prompts(source) -> list[list[int]]:
    """Short ones, and some that are longer than a step."""
    return random_prompts(source, 4, 33, 64, 70, 150)


def random_prompts(source, *lengths: int) -> list[list[int]]:
    random = np.random.default_rng(sum(lengths))
    return [random.integers(2, len(source.tokenizer), length).tolist() for length in lengths]


class Counter(Wire):
    """Counts the rows that steps computed: what comes from the prefix cache comes without streamed states."""

    computed = 0

    def _frame(self, frame: Frame) -> None:
        super()._frame(frame)
        self.computed += sum(block.rows for block in frame.header.states)


class Tapped:
    """An engine on Model Runner V2, and the monitor's end of its socket."""

    def __init__(self, name: str, folder: Path, bundle: Bundle, settings: dict[str, object]) -> None:
        self.wire = Counter(f"ipc://{folder}/{name}.sock")
        tap = {"plumbob": {"bundle": str(bundle.path), "endpoint": self.wire.endpoint, "stream": [LAYERS[0]]}}
        self.arm = start(name, folder, {**settings, "additional_config": tap})

    def run(self, prompts, tokens=TOKENS, act=None):
        return self.wire.run(self.arm, prompts, tokens, act)


@pytest.fixture(scope="module")
def engines(model_path, bundle, tmp_path_factory) -> Iterator[tuple[Tapped, Tapped, Arm]]:
    """Tapped, tapped and speculating, and stock on the V1 runner; started side by side."""
    folder = tmp_path_factory.mktemp("engines")
    settings = {
        "model": str(model_path),
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 8,
        "max_num_batched_tokens": BATCH_TOKENS,
        "block_size": BLOCK,
        "enforce_eager": True,
    }
    plain = Tapped("plain", folder, bundle, {**settings, "num_gpu_blocks_override": BLOCKS})
    speculation = {
        "method": "ngram_gpu",
        "num_speculative_tokens": DRAFTS,
        "prompt_lookup_min": 1,
        "prompt_lookup_max": 3,
    }
    speculating = Tapped("speculating", folder, bundle, {**settings, "speculative_config": speculation})
    # In one process, which is ready sooner.
    stock = Arm("stock", folder / "stock.log", settings, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    with plain.arm, speculating.arm, stock:
        yield plain, speculating, stock
    plain.wire.close()
    speculating.wire.close()


@pytest.fixture(scope="module")
def plain(engines) -> Tapped:
    return engines[0]


@pytest.fixture(scope="module")
def speculating(engines) -> Tapped:
    return engines[1]


@pytest.fixture(scope="module")
def uncached(plain, prompts):
    """All prompts through the tapped engine, with nothing cached and nothing ordered."""
    return plain.run(prompts)


@pytest.fixture(scope="module")
def stock_tokens(engines, prompts) -> list[list[int]]:
    return engines[2].generate(prompts, TOKENS).tokens


def check(prompts, answer, seen: list[Seen], source, bundle: Bundle, beyond: int = 0) -> None:
    """Every token that was read has the score that transformers gives it; the last one generated never is read.

    There may be ``beyond`` rows of tokens that the engine generated and did not deliver.
    """
    sequences = [[*prompt, *tokens[:-1]] for prompt, tokens in zip(prompts, answer.tokens, strict=True)]
    errors, misplaced = [], []
    for request, reading, sequence in zip(seen, source.read(sequences, LAYERS), sequences, strict=True):
        # Rows that are computed again come again.
        by_position = dict(zip(request.positions, request.scores, strict=True))
        assert sorted(by_position) == list(range(len(by_position)))
        assert len(sequence) <= len(by_position) <= len(sequence) + beyond
        scores = np.array([by_position[position] for position in range(len(sequence))])
        states = np.repeat(reading.states, 2, axis=0)
        reference = np.einsum("pth,ph->tp", states, bundle.weight) + bundle.bias
        norms = np.linalg.norm(states, axis=-1).T
        errors.append(np.abs(scores - reference) / norms)
        misplaced.append(np.abs(scores[1:] - reference[:-1]) / norms[:-1])
    largest = np.concatenate(errors).max()
    print(f"largest difference of a score, relative to the state's norm: {largest:.2e}")
    assert largest <= TOLERANCE
    # The bound is far from met by the scores of the token before: the check can tell.
    assert np.median(np.concatenate(misplaced)) > 1000 * TOLERANCE


def once(seen: list[Seen]) -> bool:
    """Whether every row came once, in order."""
    return all(request.positions == list(range(len(request.positions))) for request in seen)


def test_scores_are_those_of_transformers(uncached, prompts, source, bundle):
    answer, seen = uncached
    assert max(len(prompt) for prompt in prompts) > 2 * BATCH_TOKENS
    assert once(seen)
    check(prompts, answer, seen, source, bundle)


def test_greedy_tokens_are_those_of_the_v1_runner_without_taps(uncached, stock_tokens):
    answer, _ = uncached
    assert answer.tokens == stock_tokens


def test_cached_prefixes_have_scores_too(uncached, plain, source, bundle):
    prompts = random_prompts(source, 100, 150)
    plain.wire.order(Stream(LAYERS[0], "all"))
    while not plain.wire.computed:
        # An order rides with a step.
        plain.run([prompts[0][:4]], 2)
    computed = []
    for _ in range(2):
        before = plain.wire.computed
        answer, seen = plain.run(prompts, 2)
        computed.append(plain.wire.computed - before)
        assert once(seen)
        check(prompts, answer, seen, source, bundle)
    cached = sum(len(prompt) // BLOCK * BLOCK for prompt in prompts)
    assert computed[1] == computed[0] - cached


def test_an_order_steers_one_request_from_its_next_step_on(uncached, plain, prompts):
    untouched, _ = uncached
    ordered: list[str] = []

    def act(wire: Wire, requests: list[Seen]) -> None:
        if ordered or len(requests) < len(prompts):
            return
        target = max(requests, key=lambda seen: int(seen.started.request_id))
        if len(target.positions) > target.started.prompt_tokens:
            wire.order(Steer(target.started.engine_request_id, [Act("random-0", add=0.6)]))
            ordered.append(target.started.engine_request_id)

    answer, seen = plain.run(prompts, act=act)
    assert ordered == [seen[-1].started.engine_request_id]
    assert answer.tokens[:-1] == untouched.tokens[:-1]
    assert not any(any(request.steered) for request in seen[:-1])
    first = seen[-1].positions[seen[-1].steered.index(1)]
    # Row p yields token p + 1: what was generated up to the first steered row is what it would have been.
    kept = first - len(prompts[-1]) + 1
    assert 0 < kept < TOKENS
    assert answer.tokens[-1][:kept] == untouched.tokens[-1][:kept]
    assert answer.tokens[-1][kept:] != untouched.tokens[-1][kept:]


def sent_again(tapped: Tapped, prompts) -> tuple[object, list[Seen], list[Seen]]:
    """Serve prompts; another monitor is there from some token of each on, and knows nothing.

    Returns:
        The answer, and what each of both monitors saw.
    """
    cut: list[int] = []

    def act(wire: Wire, requests: list[Seen]) -> None:
        ready = len(requests) == len(prompts) and all(
            len(seen.positions) > seen.started.prompt_tokens + 2 for seen in requests
        )
        if ready and not cut:
            wire.send(f"{wire.engine}/rank0".encode(), [RESYNC])
            cut.append(1)

    answer, seen = tapped.run(prompts, act=act)
    assert cut
    first, second = [], []
    for request in seen:
        # From its first row on, all of it again.
        (at,) = [i for i, position in enumerate(request.positions) if position == 0 and i]
        for into, part in ((first, slice(0, at)), (second, slice(at, None))):
            into.append(
                Seen(request.started, request.positions[part], request.scores[part], request.roles[part], finished=True)
            )
    return answer, first, second


def test_a_monitor_that_knows_nothing_is_sent_every_row_again(uncached, plain, prompts, source, bundle):
    answer, first, second = sent_again(plain, prompts)
    assert once(first) and once(second)
    check(prompts, answer, second, source, bundle)
    # The very scores, out of the KV slots that the runner keeps on the device alone.
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one.scores, two.scores[: len(one.scores)]) and one.roles == two.roles[: len(one.roles)]


def test_preempted_requests_come_back_to_their_rows(plain, source, bundle):
    tokens = 2 * BLOCK
    prompts = random_prompts(source, *8 * [2 * BLOCK])
    # All of them need more blocks than there are.
    assert len(prompts) * (2 * BLOCK + tokens) > (BLOCKS - 1) * BLOCK
    answer, seen = plain.run(prompts, tokens)
    assert not once(seen)
    check(prompts, answer, seen, source, bundle)


def test_rejected_drafts_leave_no_rows(speculating, prompts, source, bundle, stock_tokens):
    answer, seen = speculating.run(prompts)
    assert once(seen)
    # Drafts can be accepted beyond the length that was asked for, and the step after is scheduled before that is known.
    check(prompts, answer, seen, source, bundle, beyond=DRAFTS + 1 + DRAFTS)
    assert answer.tokens == stock_tokens


def test_rows_that_are_sent_again_are_of_accepted_drafts_only(speculating, prompts, source, bundle):
    answer, _, second = sent_again(speculating, prompts)
    for request in second:
        marks = np.maximum.accumulate(request.positions)
        assert (np.diff(marks, prepend=-1) <= 1).all(), "a row came before an older one"
    check(prompts, answer, second, source, bundle, beyond=DRAFTS + 1 + DRAFTS)


def test_drafts_are_accepted_and_rejected(speculating, source):
    """Else the test before would show nothing."""
    (prompt,) = random_prompts(source, 5)
    before = len(speculating.wire.sequences)
    speculating.run([prompt])
    # The prompt has a step of its own and the end a frame; each other step has a row for the token sampled last, and
    # one for each draft.
    steps = len(speculating.wire.sequences) - before - 2
    assert steps < TOKENS - 1 < steps * (1 + DRAFTS)
