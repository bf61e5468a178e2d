"""The gate in a real engine in float32, against forward passes of transformers that steer from the same token on."""

import numpy as np
import pytest

from monitor.wire.orders import Act, Arm, Disarm
from probes.scoring.aggregate import running
from tests.harness.engines import BLOCK, start

pytest.importorskip("torch")

from probes.data.concepts import load_benign
from tests.harness.gated_engine import AGGREGATE, DOSES, Listener, first_told, gated_bundle, open_engine, open_tiny

pytestmark = pytest.mark.vllm

TOKENS = 20


@pytest.fixture(scope="module", params=["tiny", pytest.param("compiled", marks=pytest.mark.long)])
def house(request, tmp_path_factory):
    """A tiny model, eager; and the demo model, compiled."""
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    folder = tmp_path_factory.mktemp("gate")
    if request.param == "tiny":
        yield from open_tiny(folder, start)
        return
    path, source = request.getfixturevalue("model_path"), request.getfixturevalue("source")
    bundle = gated_bundle(folder, path, source)
    encoded = [source.encode(asked.messages, respond=True) for asked in load_benign()[:60]]
    prompts = sorted(encoded, key=len)[5:45:4]
    yield from open_engine(folder, start, path, bundle, source, prompts, enforce_eager=False)


@pytest.fixture(scope="module")
def plain(house):
    """Ten requests with no gate armed: the answer, and what was seen."""
    return house.wire.run(house.arm, house.prompts, TOKENS, fresh=True)


@pytest.fixture(scope="module")
def crowd(house, plain):
    """The same with both gates armed."""
    _, seen = plain
    house.switch_on([first_told(request) for request in seen], hold=3)
    answer, seen = house.wire.run(house.arm, house.prompts, TOKENS, fresh=True)
    house.switch_off()
    sequences = [[*prompt, *tokens[:-1]] for prompt, tokens in zip(house.prompts, answer.tokens, strict=True)]
    return answer, seen, sequences


def test_an_engine_with_gates_and_none_armed_is_as_it_was(house, plain):
    answer, seen = plain
    for request, prompt, tokens in zip(seen, house.prompts, answer.tokens, strict=True):
        sequence = [*prompt, *tokens[:-1]]
        assert house.far(request, sequence, np.zeros((len(sequence), 2))).max() <= 1
        assert not any(request.steered)
        assert not house.wire.events(request)


def test_the_engine_decides_as_the_rules_say(house, crowd):
    _, seen, _ = crowd
    opened = set()
    for request in seen:
        events, _ = house.expected(request)
        assert sorted(house.wire.events(request)) == sorted(events)
        opened |= {name for name, kind, _ in events if kind == "opened"}
    assert opened == {"same", "next"}


def test_each_row_is_that_of_a_forward_pass_that_steers_from_the_very_token_on(house, crowd):
    """Rows that were computed again after a preemption among them."""
    _, seen, sequences = crowd
    same_token = replayed = 0
    for request, sequence in zip(seen, sequences, strict=True):
        _, steered = house.expected(request)
        assert house.far(request, sequence, steered).max() <= 1
        # The check can tell: without the vector in the row that opened the gate, that very row is far off.
        for position in np.flatnonzero(steered[:, 0] & ~np.concatenate([[False], steered[:-1, 0]])):
            late = steered.copy()
            late[position, 0] = False
            far = house.far(request, sequence, late)[np.array(request.positions) == position]
            assert far.min() > 3
            same_token += 1
        told = np.array(request.positions)
        again = [position for position in np.unique(told) if (told == position).sum() > 1]
        replayed += int(steered[again].any(axis=1).sum())
    assert same_token >= 3
    assert replayed > 0


def test_the_first_changed_token_is_the_one_that_the_opening_row_yields(house, crowd):
    answer, seen, sequences = crowd
    for request, sequence, tokens in zip(seen, sequences, answer.tokens, strict=True):
        _, steered = house.expected(request)
        _, _, logits = house.reference(sequence, steered)
        begin = request.started.prompt_tokens - 1
        for position, token in enumerate(tokens, begin):
            assert logits[position].max() - logits[position, token] <= 1e-2


def test_rows_downstream_are_marked(house, crowd):
    _, seen, _ = crowd
    for request in seen:
        late = [event for event in house.wire.events(request) if event[1] == "opened"]
        begin = request.started.prompt_tokens - 1
        first = min((max(position, begin) for _, _, position in late), default=10**9)
        assert request.steered == [int(position >= first) for position in request.positions]


def test_a_gate_that_was_disarmed_steers_nobody(house, crowd):
    _, seen, _ = crowd
    told = dict(house.wire.told)
    prompt = next(prompt for prompt, request in zip(house.prompts, seen, strict=True) if any(request.steered))
    answer, (request,) = house.wire.run(house.arm, [prompt], TOKENS, fresh=True)
    sequence = [*prompt, *answer.tokens[0][:-1]]
    assert not any(request.steered)
    assert house.far(request, sequence, np.zeros((len(sequence), 2))).max() <= 1
    assert house.wire.told == told


def test_an_unsteered_continuation_finds_no_steered_block(house):
    prompt = house.prompts[-1]
    house.order(Arm("always", house.bundle.probes[0].name, [Act("random-0", add=DOSES[0])], threshold=-1e6))
    answer, (steered,) = house.wire.run(house.arm, [prompt], 2 * BLOCK, fresh=True)
    house.order(Disarm("always"))
    sequence = [*prompt, *answer.tokens[0]]
    none = np.zeros((len(sequence), 2))
    # What the first conversation left in the cache is far from what an unsteered one computes.
    assert house.far(steered, sequence, none).max() > 3
    _, (seen_again,) = house.wire.run(house.arm, [sequence], 1)
    assert house.far(seen_again, sequence, none).max() <= 1


def test_a_prompt_from_the_cache_opens_the_gate_where_it_did_when_it_was_computed(house, plain):
    """Otherwise whoever sends the same prompt twice would pass the second time."""
    _, seen = plain
    scores, roles = first_told(seen[-1])
    prompt = house.prompts[-1]
    read = np.flatnonzero(np.isin(roles[: len(prompt)], house.roles(0)))
    average = running(scores[read, 0], AGGREGATE)
    threshold = float(average.max()) - 1e-3
    position = int(read[np.flatnonzero(average >= threshold)[0]])
    assert position < (len(prompt) - 1) // BLOCK * BLOCK
    act = Act("random-0", add=DOSES[0])
    house.order(Arm("cached", house.bundle.probes[0].name, [act], threshold))
    for fresh in (True, False):
        _, (request,) = house.wire.run(house.arm, [prompt], 4, fresh=fresh)
        sequence_end = len(prompt) + 3
        assert house.wire.events(request)[0] == ("cached", "opened", position)
        assert request.steered == [int(at >= len(prompt) - 1) for at in range(sequence_end)]
    house.order(Disarm("cached"))


def test_events_are_sent_until_they_are_confirmed(house, crowd):
    assert house.wire.headers[-1].gates
    house.wire.confirm()
    for _ in range(10):
        # The engine waits for nobody: a few steps may go by before it has read that.
        house.wire.run(house.arm, [house.prompts[0][:4]], 8)
        if not house.wire.headers[-1].gates:
            break
    assert not house.wire.headers[-1].gates


def test_the_gate_works_with_no_monitor_and_a_later_one_learns_of_it(house, crowd):
    house.order(Arm("alone", house.bundle.probes[0].name, [Act("random-0", add=DOSES[0])], threshold=-1e6))
    numbers = set(house.wire.told)
    endpoint = house.wire.endpoint
    house.wire.close()
    alone = house.arm.generate([house.prompts[0]], TOKENS).tokens
    house.wire = Listener(endpoint)
    house.wire.pump(10.0)
    while not house.wire.headers:
        house.arm.generate([house.prompts[0][:4]], 2)
        house.wire.pump(1.0)
    house.order(Disarm("alone"))
    plain = house.arm.generate([house.prompts[0]], TOKENS, fresh=True).tokens
    new = [event for number, event in sorted(house.wire.told.items()) if number not in numbers]
    assert [event.kind for event in new if event.gate == "alone"][:2] == ["opened", "closed"]
    assert alone != plain
