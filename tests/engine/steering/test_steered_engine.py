"""Steering in a real engine in float32, step by step: what it leaves behind, must not change, and computes.

One engine of few slots and few KV blocks serves all of it, so that slots change hands, prompts are divided, and some
requests are preempted. What is called noise is measured in the same run: an engine that does other things beside sums
in another order.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from monitor.wire.orders import Act, Arm, Disarm, Steer
from probes.bundle import Bundle, Probe, Vector, save_bundle
from probes.models.chat import Message
from probes.scoring.aggregate import Aggregate, running
from probes.scoring.roles import Role
from probes.steering import NOTHING, Operation, steer
from tests.harness.engines import random_bundle, settings
from tests.harness.models import tiny_model
from tests.harness.stepped import Ask, Engine, Told, clear_slots, generate, left, order, protect
from tests.harness.tokenizers import CORPUS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SEQUENCES = 4
"""At once: twice as many slots."""
BLOCK, BLOCKS, CHUNK = 32, 10, 64
"""Tokens of a KV block, blocks (one of them vLLM's own), and rows of a step."""
LAYERS = (0, 1, 3)
CAP, NORM = 2.0, 8.0
VECTORS = {"early": 0, "middle": 1, "second": 1, "minus": 1, "late": 3}
"""Steering vectors and their layers; ``minus`` is ``middle`` turned round."""

NOISES, ROUNDING = 4.0, 1e-5
"""How many times the noise measured in the same run a difference may be, but no less than some roundings of float32, of
scores up to 10: here the model itself comes out the same to the last bit, and only scores have any noise."""
FAR = 50.0
"""How many times what is allowed a difference must be that is to be seen."""
LARGEST = 1e-4
"""Largest difference from transformers: of a score relative to the state's norm, and of a log-probability. As on the
ranks' engine: float32, sums in another order."""

REQUESTS = 300
TOKENS = 6
"""The longest answer of them."""
GATE = Arm("all", "random-0-0", [Act("middle", add=1.2)])
AGGREGATE = Aggregate(half_life=2.0, min_tokens=2)
TRIGGER, ANSWERED = "random-0-1", 8
"""A probe that reads answers, and that a gate may open by from so many of their tokens on."""


@dataclass(frozen=True)
class House:
    """The engine, and what is needed to judge it."""

    engine: Engine
    bundle: Bundle
    source: object
    random: np.random.Generator

    def generate(self, *asks: Ask, fresh: bool = False) -> list[Told]:
        return self.engine.do(generate, asks, fresh)

    def prompt(self, words: int, random: np.random.Generator | None = None) -> list[int]:
        content = " ".join((random or self.random).choice(CORPUS.split(), words))
        return self.source.encode([Message("user", content)], respond=True)


def judging(probe: Probe) -> Probe:
    if probe.name == TRIGGER:
        return msgspec.structs.replace(probe, roles=["assistant"], aggregate=Aggregate(min_tokens=ANSWERED))
    return msgspec.structs.replace(probe, aggregate=AGGREGATE)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    from probes.models.activations import TransformersSource

    folder = tmp_path_factory.mktemp("inside")
    path = tiny_model(folder / "llama", "llama")
    source = TransformersSource(path, dtype="float32")
    plain = random_bundle(folder / "plain", path, source.markers, threshold=1e9, layers=LAYERS)
    random = np.random.default_rng(11)
    values = {name: random.normal(size=plain.manifest.model.hidden) for name in VECTORS}
    values["minus"] = -values["middle"]
    bundle = save_bundle(
        folder / "bundle",
        version="0",
        created=plain.manifest.created,
        model=plain.manifest.model,
        markers=plain.manifest.markers,
        probes=list(zip(map(judging, plain.probes), plain.weight, plain.bias.tolist(), strict=True)),
        vectors=[
            (Vector(name, layer, hidden_norm=NORM, max_dose=CAP), values[name]) for name, layer in VECTORS.items()
        ],
    )
    endpoint = f"ipc://{folder}/engine.sock"
    tap = {"bundle": str(bundle.path), "endpoint": endpoint, "gates": 8, "admission": list(VECTORS)}
    engine = Engine(
        settings(
            path,
            dtype="float32",
            max_model_len=256,
            max_num_seqs=SEQUENCES,
            max_num_batched_tokens=CHUNK,
            max_logprobs=-1,
            block_size=BLOCK,
            kv_cache_memory_bytes=1 << 27,
            num_gpu_blocks_override=BLOCKS,
            enable_prefix_caching=True,
            additional_config={"plumbob": tap},
        ),
        endpoint,
    )
    yield House(engine, bundle, source, random)
    engine.close()


# Slots that change hands.


def differences(told: Told, idle: Told) -> tuple[np.ndarray, float]:
    """How far a request is from the same prompt on an idle engine.

    Returns:
        Where nothing was steered, the largest difference of a score and of a log-probability, ``(2,)``; and where
        something was, the largest of a log-probability.
    """
    seen, begin = told.seen, len(told.ask.prompt) - 1
    first = min((p for p, steered in zip(seen.positions, seen.steered, strict=True) if steered), default=10**9)
    rows = zip(seen.positions, seen.scores, strict=True)
    scores = [np.abs(score - idle.seen.scores[position]).max() for position, score in rows if position < first]
    # Row p yields token p + 1; what comes behind a token that differs cannot be compared.
    pairs = list(zip(told.ids, idle.ids, strict=False))
    common = next((i for i, (mine, theirs) in enumerate(pairs) if mine != theirs), len(pairs))
    far = np.abs(told.logprobs - idle.logprobs[: len(told.ids)]).max(axis=1)[: common + 1]
    kept = max(first - begin, 0)
    near = [np.max(scores, initial=0.0), far[:kept].max(initial=0.0)]
    return np.array(near), float(far[kept:].max(initial=0.0))


def allow(noises: Iterable[np.ndarray]) -> np.ndarray:
    """What a difference may be, ``(2,)``."""
    largest = np.max([*noises], axis=0)
    print(f"noise: scores {largest[0]:.1e}, log-probabilities {largest[1]:.1e}")
    return np.maximum(NOISES * largest, ROUNDING)


def peak(house, idle: Told, begin: int, end: int) -> float:
    """The largest average that the gate for all makes of these positions of a request."""
    column = next(i for i, probe in enumerate(house.bundle.probes) if probe.name == GATE.probe)
    read = np.isin(idle.seen.roles[begin:end], [Role.USER, Role.ASSISTANT])
    return float(running(np.array(idle.seen.scores[begin:end])[read, column], AGGREGATE).max())


def peak_of(house, idle: Told, tokens: int) -> float:
    """The same of a whole request, with so many tokens answered."""
    return peak(house, idle, 0, len(idle.ask.prompt) + tokens - 1)


@pytest.fixture(scope="module")
def idle(house) -> list[Told]:
    """Prompts of many lengths, each alone, with nothing cached and nothing ordered."""
    random = np.random.default_rng(1)
    # Half of them are of any length, and half take a block more as soon as they are answered, when there may be none.
    ends = BLOCK * random.integers(1, 4, 12) - random.integers(0, 3, 12)
    prompts = [house.prompt(3 * BLOCK, random)[:length] for length in (*random.integers(8, 3 * BLOCK, 12), *ends)]
    return [house.generate(Ask(prompt, TOKENS), fresh=True)[0] for prompt in prompts]


@pytest.fixture(scope="module")
def threshold(house, idle) -> float:
    """Of the gate for all: what about a third of the requests reach, and none by a hair."""
    peaks = np.sort([peak_of(house, told, tokens) for told in idle for tokens in range(2, TOKENS + 1)])
    middle = peaks[len(peaks) * 6 // 10 : len(peaks) * 8 // 10]
    widest = int(np.diff(middle).argmax())
    return float(middle[widest : widest + 2].mean())


@pytest.fixture(scope="module")
def asks(idle) -> list[tuple[int, str, Ask]]:
    """The mixture: which prompt, by what it is steered apart from the gate for all, and what is asked."""
    ways = {
        "plain": {},
        "order": {"orders": (Steer("", [Act("early", add=1.0), Act("second", scale=0.0)]),)},
        "asked": {"asked": json.dumps({"acts": [{"vector": "middle", "add": -1.5}]})},
    }
    made, random = [], np.random.default_rng(2)
    for number in range(REQUESTS):
        index, tokens = int(random.integers(len(idle))), int(random.integers(2, TOKENS + 1))
        way = str(random.choice(list(ways), p=[0.6, 0.2, 0.2]))
        ask = Ask(idle[index].ask.prompt, tokens, **ways[way])
        if tokens > 2 and random.random() < 0.3:
            ask = replace(ask, abort=int(random.integers(2, tokens)))
        orders = tuple(msgspec.structs.replace(one, id=f"{way} {number}") for one in ask.orders)
        made.append((index, way, replace(ask, orders=orders)))
    return made


@pytest.fixture(scope="module")
def allowed(house, idle, asks) -> np.ndarray:
    """What a difference may be, ``(2,)``, by what the same requests show when nobody is steered."""
    calm = house.generate(*(Ask(ask.prompt, ask.tokens, abort=ask.abort) for _, _, ask in asks))
    return allow(differences(told, idle[index])[0] for told, (index, _, _) in zip(calm, asks, strict=True))


@pytest.fixture(scope="module")
def mixture(house, idle, threshold, asks) -> list[tuple[str, Told, Told]]:
    """What steered each request, what came of it, and what of its prompt on an idle engine; as they came."""
    house.engine.do(order, msgspec.structs.replace(GATE, threshold=threshold))
    served = house.generate(*(ask for _, _, ask in asks))
    house.engine.do(order, Disarm(GATE.id))
    found = []
    for told, (index, way, _) in zip(served, asks, strict=True):
        gated = way == "plain" and peak_of(house, idle[index], len(told.ids)) >= threshold
        found.append(("gate" if gated else way, told, idle[index]))
    return found


def test_the_mixture_mixes(mixture):
    """Otherwise the tests below would show less than they say."""
    ways = Counter(way for way, _, _ in mixture)
    assert min(ways[way] for way in ("plain", "order", "asked", "gate")) >= 20
    assert sum(told.ask.abort is not None for _, told, _ in mixture) >= 30
    preempted = sum(len(told.seen.positions) > len({*told.seen.positions}) for _, told, _ in mixture)
    print(f"{ways}, {preempted} of them preempted")
    assert preempted >= 4
    assert sum(told.cached > 0 for _, told, _ in mixture) >= 20
    by_slot: dict[int, list[str]] = {}
    for way, told, _ in mixture:
        by_slot.setdefault(told.seen.started.slot, []).append(way)
    after = Counter(pair for ways in by_slot.values() for pair in pairwise(ways))
    assert all(after[way, "plain"] >= 3 for way in ways), after


def test_whoever_is_not_steered_has_what_an_idle_engine_gives(mixture, allowed):
    unsteered = [(told, idle) for way, told, idle in mixture if way == "plain"]
    found = np.max([differences(told, idle)[0] for told, idle in unsteered], axis=0)
    print(f"{len(unsteered)} unsteered requests differ by {found} at most; {allowed} is allowed")
    for told, idle in unsteered:
        assert not any(told.seen.steered)
        assert told.ids == idle.ids[: len(told.ids)]
    assert (found <= allowed).all()


def test_whoever_is_steered_differs_from_there_on(mixture, allowed):
    for way, told, idle in mixture:
        before, behind = differences(told, idle)
        assert (before <= allowed).all()
        assert way == "plain" or behind > FAR * allowed[1], (way, told.ask)


def test_nothing_is_left_in_the_tables(house, mixture):
    held = house.engine.do(left)
    assert held == dict.fromkeys(held, 0)


def test_what_a_slot_would_keep_would_be_seen(house, idle, asks, mixture, allowed):
    """The control of the tests above: the same with slots that are not cleared."""
    house.engine.do(clear_slots, False)
    try:
        served = house.generate(*(ask for _, _, ask in asks[:60]))
    finally:
        house.engine.do(clear_slots, True)
    plain = [(told, idle[index]) for told, (index, way, _) in zip(served, asks, strict=False) if way == "plain"]
    assert max(differences(*pair)[0][1] for pair in plain) > FAR * allowed[1]
    held = house.engine.do(left)
    assert held == dict.fromkeys(held, 0)


def test_a_prompt_that_is_sent_twice_at_once_opens_the_gate_twice(house):
    """The second one must not find blocks that the first still fills, whose scores no gate can read yet."""
    prompts = [house.prompt(40)[: BLOCK + 10] for _ in range(8)]
    alone = [house.generate(Ask(prompt, 3), fresh=True)[0] for prompt in prompts]
    peaks = [(peak(house, told, 0, BLOCK), peak(house, told, BLOCK, BLOCK + 12)) for told in alone]
    early, late = max(peaks, key=lambda pair: pair[0] - pair[1])
    assert early > late
    prompt = prompts[peaks.index((early, late))]
    house.engine.do(order, msgspec.structs.replace(GATE, threshold=(early + late) / 2))
    both = house.generate(Ask(prompt, 3), Ask(prompt, 3), fresh=True)
    house.engine.do(order, Disarm(GATE.id))
    assert [told.seen.steered.index(1) for told in both] == [len(prompt) - 1] * 2
    assert both[0].ids == both[1].ids


# What must not change.


@pytest.fixture(scope="module")
def prompts(house) -> list[list[int]]:
    return [house.prompt(words) for words in (5, 8, 11, 14)]


def together(house, prompts, *orders, tokens: int = 8) -> list[Told]:
    """The prompts at once with nothing cached, the last of them with orders, which come one after the other."""
    *others, last = [Ask(prompt, tokens) for prompt in prompts]
    return house.generate(*others, replace(last, orders=orders), fresh=True)


def same(one: Told, other: Told) -> bool:
    """Whether tokens, log-probabilities and scores are the same to the last bit."""
    return (
        one.ids == other.ids
        and np.array_equal(one.logprobs, other.logprobs)
        and np.array_equal(one.seen.scores, other.seen.scores)
    )


@pytest.fixture(scope="module")
def plain(house, prompts) -> list[Told]:
    return together(house, prompts)


@pytest.mark.parametrize(
    "orders",
    [
        pytest.param([[Act(name) for name in VECTORS]], id="dose 0"),
        pytest.param([[Act("middle", add=1.5), Act("middle", add=-1.5)]], id="v - v"),
        pytest.param([[Act("middle", add=1.5)], [Act("middle", add=-1.5)]], id="v, then -v"),
        pytest.param([[Act("middle", add=1.5), Act("minus", add=1.5)]], id="v and the vector -v"),
        pytest.param([[Act("early", low=-CAP, high=CAP), Act("late", low=-CAP)]], id="ranges that hold all"),
    ],
)
def test_steering_by_nothing_changes_nothing(house, prompts, plain, orders):
    assert all(map(same, together(house, prompts, *(Steer("", acts) for acts in orders)), plain))


def test_neither_the_order_of_vectors_nor_that_of_orders_matters(house, prompts, plain):
    acts = [Act("second", low=-0.1, high=0.1), Act("middle", add=0.7), Act("late", scale=0.0), Act("early", add=0.4)]
    acts += [Act("middle", scale=0.5), Act("minus", add=0.2), Act("middle", add=0.1)]
    one = together(house, prompts, Steer("", acts))
    for other in (Steer("", acts[::-1]),), tuple(Steer("", [act]) for act in acts[3:] + acts[:3]):
        assert all(map(same, together(house, prompts, *other), one))
    assert one[-1].ids != plain[-1].ids


def test_batchmates_have_the_same_scores_and_tokens(house, prompts, plain):
    told = together(house, prompts, Steer("", [Act("early", add=1.5), Act("late", add=1.0)]))
    assert all(map(same, told[:-1], plain[:-1]))
    assert not any(any(one.seen.steered) for one in told[:-1])
    assert told[-1].ids != plain[-1].ids


# What is computed.

ACTS = [Act("early", add=0.3), Act("middle", scale=-0.5), Act("second", low=0.1, high=0.2), Act("late", add=-0.6)]
"""Four vectors at three layers, two of them at one: everything that may be done to a projection."""


def reference(house, told: Told, acts: list[Act]) -> np.ndarray:
    """How far a request is from a forward pass of transformers that steers the rows which are told to be steered.

    Returns:
        The largest difference of a score, relative to the state's norm, and of a log-probability, ``(2,)``.
    """
    import torch

    bundle, blocks = house.bundle, house.source.hooked.blocks
    rows, states = np.flatnonzero(told.seen.steered), {}
    table = np.tile(NOTHING.entry(NORM), (len(VECTORS), 1))
    for act in acts:
        low, high = -np.inf if act.low is None else act.low, np.inf if act.high is None else act.high
        row = bundle.manifest.vectors.index(bundle.vector(act.vector))
        table[row] = Operation(act.add, act.scale, low, high).entry(NORM)

    def hook(layer: int):
        def read(_module, _arguments, output):
            hidden = output[0] if isinstance(output, tuple) else output
            states[layer] = hidden[0].numpy().copy()
            at = bundle.vector_rows(layer)
            hidden[0, rows] = torch.from_numpy(steer(states[layer][rows], bundle.vectors[at], table[at])).float()

        return read

    handles = [blocks[layer].register_forward_hook(hook(layer)) for layer in LAYERS]
    try:
        with torch.inference_mode():
            sequence = torch.tensor([[*told.ask.prompt, *told.ids[:-1]]])
            logprobs = house.source.model(input_ids=sequence, use_cache=False).logits[0].log_softmax(-1).numpy()
    finally:
        for handle in handles:
            handle.remove()
    assert told.seen.positions == list(range(len(logprobs)))
    columns = [states[probe.layer] for probe in bundle.probes]
    expected = np.stack([state @ w for state, w in zip(columns, bundle.weight, strict=True)], axis=1) + bundle.bias
    norms = np.stack([np.linalg.norm(state, axis=-1) for state in columns], axis=1)
    scores = (np.abs(told.seen.scores - expected) / norms).max()
    return np.array([scores, np.abs(told.logprobs - logprobs[len(told.ask.prompt) - 1 :]).max()])


@pytest.mark.parametrize("how", ["order", "asked", "asked for the prompt too"])
def test_several_vectors_at_several_layers_are_those_of_a_forward_pass(house, how):
    prompt = house.prompt(20)
    if how == "order":
        (told,) = house.generate(Ask(prompt, 16, orders=(Steer("", ACTS),), after=3), fresh=True)
        first = len(prompt) + 2
    else:
        asked = json.dumps({"acts": msgspec.to_builtins(ACTS), "prompt": how != "asked"})
        (told,) = house.generate(Ask(prompt, 16, asked), fresh=True)
        first = 0 if how != "asked" else len(prompt) - 1
    assert told.seen.steered == [int(position >= first) for position in told.seen.positions]
    found = reference(house, told, ACTS)
    without = [reference(house, told, [act for act in ACTS if act is not left_out]) for left_out in ACTS]
    print(f"{how}: {found} from transformers, {np.min(without, axis=0)} with one of the four left out")
    assert (found <= LARGEST).all()
    # The check can tell: each act is seen in the log-probabilities.
    assert min(far[1] for far in without) > FAR * LARGEST


# What the prefix cache keeps.


ANSWER, LATER = 3 * BLOCK, 40
"""Tokens that the conversation's first answer has, and of them, those it has when it is ordered to be steered."""
WAYS = {
    "a gate": (True, ()),
    "an order": (False, (Steer("", [Act("early", add=0.8)]),)),
    "a gate and an order": (True, (Steer("", [Act("late", add=0.8), Act("second", scale=0.0)]),)),
}


@dataclass(frozen=True)
class Continued:
    """Somebody goes on, unsteered, with a conversation that was steered."""

    first: int
    """The first position that was steered."""
    cached: int
    """Positions that came from the prefix cache."""
    far: np.ndarray
    """The largest difference of a score and of a log-probability from what an emptied cache gives, ``(2,)``."""
    noise: np.ndarray
    """The same with as much, and with all, of the text from the cache when nobody was ever steered."""


def go_on(house, way: str) -> Continued:
    gated, orders = WAYS[way]
    prompt, turn = house.prompt(2 * BLOCK), house.prompt(3)
    if gated:
        trigger = Arm("trigger", TRIGGER, [Act("middle", add=0.8)], threshold=-1e6)
        house.engine.do(order, trigger)
    (steered,) = house.generate(Ask(prompt, ANSWER, orders=orders, after=LATER), fresh=True)
    if gated:
        house.engine.do(order, Disarm("trigger"))
    longer = Ask([*prompt, *steered.ids, *turn], 8)
    (found,) = house.generate(longer)
    (clean,) = house.generate(longer, fresh=True)
    again = house.generate(longer)
    house.generate(Ask(prompt, 1), fresh=True)
    again += house.generate(longer)
    assert clean.cached == 0 < again[1].cached < again[0].cached
    first = steered.seen.positions[steered.seen.steered.index(1)]
    assert len(prompt) < first < len(prompt) + 2 * BLOCK
    noise = np.max([differences(one, clean)[0] for one in again], axis=0)
    return Continued(first, found.cached, differences(found, clean)[0], noise)


@pytest.fixture(scope="module")
def protected(house) -> dict[str, Continued]:
    return {way: go_on(house, way) for way in WAYS}


@pytest.fixture(scope="module")
def unprotected(house) -> dict[str, Continued]:
    """The same in an engine that caches blocks as vLLM would, steered or not."""
    house.engine.do(protect, False)
    try:
        return {way: go_on(house, way) for way in WAYS}
    finally:
        house.engine.do(protect, True)


@pytest.fixture(scope="module")
def permitted(protected, unprotected) -> np.ndarray:
    return allow(one.noise for ways in (protected, unprotected) for one in ways.values())


@pytest.mark.parametrize("way", WAYS)
def test_who_continues_a_steered_conversation_unsteered_reads_nothing_of_it(protected, permitted, way):
    found = protected[way]
    print(f"{way}: {found.far} of {permitted}; steered from {found.first}, {found.cached} from the cache")
    assert 0 < found.cached <= found.first
    assert (found.far <= permitted).all()


@pytest.mark.parametrize("way", WAYS)
def test_without_the_protection_they_would(unprotected, permitted, way):
    """The control of the test above: it would see what it says is not there."""
    found = unprotected[way]
    print(f"{way}, unprotected: {found.far / permitted} times what is allowed, {found.cached} from the cache")
    assert found.cached > found.first
    assert (found.far > FAR * permitted).all()
