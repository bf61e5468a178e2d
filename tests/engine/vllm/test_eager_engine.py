"""A real engine, eager: scores, positions, output untouched, steering that touches one request only."""

from collections.abc import Callable

import pytest

from monitor.wire.orders import Act, Release, Steer
from probes.scoring.roles import Role
from tests.harness.engines import check_scores, settings, start
from tests.harness.wire import Seen, Wire

pytestmark = pytest.mark.vllm

TOKENS = 24


@pytest.fixture(scope="module")
def engines(model_path, bundle, wire, tmp_path_factory):
    """A tapped engine and a stock one, started side by side."""
    folder = tmp_path_factory.mktemp("engines")
    tap = {"plumbob": {"bundle": str(bundle.path), "endpoint": wire.endpoint}}
    tapped = start("tapped", folder, **settings(model_path, additional_config=tap))
    stock = start("stock", folder, **settings(model_path))
    with tapped, stock:
        yield tapped, stock


@pytest.fixture(scope="module")
def untouched(engines, wire, prompts):
    """Twenty requests through the tapped engine, with nothing ordered: the answer, and what the frames told."""
    tapped, _ = engines
    return wire.run(tapped, prompts, TOKENS)


def test_scores_are_those_of_transformers_in_float32(untouched, prompts, source, bundle):
    answer, seen = untouched
    check_scores(prompts, answer.tokens, seen, source, bundle)


def test_rows_carry_the_request_the_prompt_length_and_roles(untouched, prompts, source):
    _, seen = untouched
    for request, prompt in zip(seen, prompts, strict=True):
        assert request.started.prompt_tokens == len(prompt)
        assert request.started.engine_request_id.startswith(f"{request.started.request_id}-")
        roles = request.roles
        assert Role.USER in roles[: len(prompt)]
        assert roles[len(prompt) - 1] == Role.TEMPLATE
        assert set(roles[len(prompt) :]) == {Role.ASSISTANT}
        assert not any(request.steered)


def test_no_frame_was_lost(untouched, wire):
    assert wire.sequences == list(range(wire.sequences[0], wire.sequences[-1] + 1))


def test_greedy_tokens_are_those_of_stock(untouched, engines, prompts):
    _, stock = engines
    answer, _ = untouched
    assert answer.tokens == stock.generate(prompts, TOKENS).tokens


Play = Callable[[Wire, list[Seen]], None]


def ordering(*steers: tuple[str, float]) -> tuple[Play, list[str]]:
    """An act that orders the request ``request_id`` last in the batch to be steered once it has begun to answer."""
    ordered: list[str] = []

    def act(wire: Wire, requests: list[Seen]) -> None:
        if ordered or len(requests) < BATCH:
            return
        target = max(requests, key=lambda seen: int(seen.started.request_id))
        if len(target.positions) > target.started.prompt_tokens:
            for vector, dose in steers:
                wire.order(Steer(target.started.engine_request_id, [Act(vector, add=dose)]))
            ordered.append(target.started.engine_request_id)

    return act, ordered


BATCH = 4


@pytest.fixture(scope="module")
def plain(engines, wire, prompts):
    tapped, _ = engines
    answer, _ = wire.run(tapped, prompts[:BATCH], TOKENS)
    return answer.tokens


@pytest.mark.parametrize(
    "steers",
    [
        pytest.param([("random-0", 0.0)], id="dose zero"),
        pytest.param([("random-0", 0.6), ("random-0", -0.6)], id="v and -v"),
    ],
)
def test_steering_by_nothing_changes_nothing(engines, wire, prompts, plain, steers):
    tapped, _ = engines
    act, ordered = ordering(*steers)
    answer, seen = wire.run(tapped, prompts[:BATCH], TOKENS, act)
    assert ordered
    assert answer.tokens == plain
    assert not any(any(request.steered) for request in seen)


def test_steering_changes_one_request_from_its_next_step_and_no_batchmate(engines, wire, prompts, plain):
    tapped, _ = engines
    act, ordered = ordering(("random-0", 0.6), ("random-1", -0.3))
    answer, seen = wire.run(tapped, prompts[:BATCH], TOKENS, act)
    assert ordered == [seen[-1].started.engine_request_id]
    assert answer.tokens[:-1] == plain[:-1]
    assert not any(any(request.steered) for request in seen[:-1])
    steered = seen[-1]
    first = steered.steered.index(1)
    # Row p yields token p + 1: what was generated up to the first steered row is what it would have been.
    kept = first - steered.started.prompt_tokens + 1
    assert 0 < kept < TOKENS
    assert all(steered.steered[first:])
    assert answer.tokens[-1][:kept] == plain[-1][:kept]
    assert answer.tokens[-1][kept:] != plain[-1][kept:]


def test_a_released_request_is_steered_no_further(engines, wire, prompts):
    tapped, _ = engines
    released: list[int] = []

    def act(wire: Wire, requests: list[Seen]) -> None:
        for seen in requests:
            if not released and any(seen.steered):
                wire.order(Release(seen.started.engine_request_id))
                released.append(len(seen.positions))

    steer, _ = ordering(("random-0", 0.4))

    def both(wire: Wire, requests: list[Seen]) -> None:
        steer(wire, requests)
        act(wire, requests)

    _, seen = wire.run(tapped, prompts[:BATCH], TOKENS, both)
    assert released
    # The cache still carries what was steered, so that the scores behind it stay marked.
    first = seen[-1].steered.index(1)
    assert all(seen[-1].steered[first:])


def test_an_order_for_a_request_that_is_gone_is_ignored(engines, wire, prompts, plain):
    tapped, _ = engines
    wire.order(Steer("nobody-12345678", [Act("random-0", add=0.5)]))
    answer, _ = wire.run(tapped, prompts[:BATCH], TOKENS)
    assert answer.tokens == plain


def test_slots_are_used_again_without_residue(engines, wire, prompts, plain):
    """After steered requests, the same slots serve unsteered ones as if nothing had been."""
    tapped, _ = engines
    act, ordered = ordering(("random-0", 0.6))
    wire.run(tapped, prompts[:BATCH], TOKENS, act)
    assert ordered
    answer, seen = wire.run(tapped, prompts[:BATCH], TOKENS)
    assert answer.tokens == plain
    assert not any(any(request.steered) for request in seen)
