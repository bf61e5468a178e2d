"""The gate in a real engine in float32, against forward passes of transformers that steer from the same token on."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from monitor.wire.codec import encode_ack
from monitor.wire.frames import Frame
from monitor.wire.orders import Act, Arm, Disarm
from probes.bundle import Bundle, Probe, save_bundle
from probes.scoring.aggregate import Aggregate, running
from tests.engine.vllm.test_accounting import BLOCK, CHUNK, LARGEST
from tests.harness.engines import LAYERS, random_bundle, settings, start
from tests.harness.wire import Seen, Wire

pytest.importorskip("torch")

from tests.harness.gate_model import Settings, model

pytestmark = pytest.mark.vllm

TOKENS = 20
BLOCKS = 13
"""Of the KV cache: too few for what runs at once, so that some requests are preempted."""
DOSES = (0.3, -0.4)
AGGREGATE = Aggregate(half_life=1.0, min_tokens=2)


class Listener(Wire):
    """A monitor that confirms nothing unless told to."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.told: dict[int, object] = {}
        self.headers: list = []

    def _frame(self, frame: Frame) -> None:
        # A monitor that comes later is told of the end of requests that it has not seen.
        known = [slot for slot in frame.header.finished if slot in self.slots]
        super()._frame(msgspec.structs.replace(frame, header=msgspec.structs.replace(frame.header, finished=known)))
        self.headers.append(frame.header)
        for event in frame.header.gates:
            assert self.told.setdefault(event.number, event) == event

    def confirm(self) -> None:
        self._router.send_multipart([f"{self.engine}/rank0".encode(), *encode_ack(self.headers[-1].sequence)])

    def events(self, seen: Seen) -> list[tuple[str, str, int]]:
        found = [
            event for _, event in sorted(self.told.items()) if event.engine_request_id == seen.started.engine_request_id
        ]
        return [(event.gate, event.kind, event.position) for event in found]


def first_told(seen: Seen) -> tuple[np.ndarray, list[int]]:
    """Scores and roles of each position as they were told first."""
    order = {position: index for index, position in reversed(list(enumerate(seen.positions)))}
    indices = [order[position] for position in range(len(order))]
    return np.array(seen.scores)[indices], [seen.roles[index] for index in indices]


class House:
    """An engine with two gates, and what is needed to judge it.

    Gate ``same`` reads the first of the three tapped layers and steers the second, from the row that opens it; gate
    ``next`` reads the third and steers the second, from the row after.
    """

    def __init__(self, arm, wire, bundle, source, prompts) -> None:
        self.arm, self.wire, self.bundle, self.source, self.prompts = arm, wire, bundle, source, prompts
        self.gates: dict[str, Settings] = {}

    def order(self, *orders) -> None:
        for order in orders:
            self.wire.order(order)
        # Orders ride with a step.
        self.wire.run(self.arm, [self.prompts[0][:4]], 2)

    def switch_on(self, scores: list[tuple[np.ndarray, list[int]]], *, hold: int) -> None:
        """Arm both gates, with thresholds that about half of these requests reach."""
        for index, (name, column) in enumerate((("same", 0), ("next", 4))):
            chosen = Settings(AGGREGATE, roles=self.roles(column), hold=hold, column=column)
            peaks = [running(told[np.isin(roles, chosen.roles), column], AGGREGATE).max() for told, roles in scores]
            threshold = float(np.median(peaks))
            self.gates[name] = Settings(AGGREGATE, threshold, roles=chosen.roles, hold=hold, column=column)
            self.order(
                Arm(
                    name,
                    self.bundle.probes[column].name,
                    [Act(f"random-{index}", add=DOSES[index])],
                    threshold=threshold,
                    hold=hold,
                )
            )

    def switch_off(self) -> None:
        self.order(*(Disarm(name) for name in self.gates))

    def roles(self, column: int):
        from probes.scoring.roles import Role

        return tuple(role for role in Role if self.bundle.probes[column].reads(role))

    def expected(self, seen: Seen) -> tuple[list[tuple[str, str, int]], np.ndarray]:
        """Events, in no order, and which rows each gate's vector steers, bool ``(tokens, 2)``, from the told scores."""
        scores, roles = first_told(seen)
        events, steered = [], np.zeros((len(scores), 2), bool)
        for index, (name, gate) in enumerate(self.gates.items()):
            column = scores[:, gate.column].astype(np.float64)
            fired, late, _ = model(gate, column, roles, seen.started.prompt_tokens - 1)
            events += [(name, "opened", int(position)) for position in np.flatnonzero(fired)]
            ends = np.flatnonzero(late & ~np.append(late[1:], [False])) + 1
            events += [(name, "closed", int(position)) for position in ends]
            # Layers that come before the gate steer the rows that find it open.
            steered[:, index] = late if name == "same" else late & ~fired
        return events, steered

    def reference(self, sequence: list[int], steered: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores before steering, norms of the states, both ``(tokens, probes)``, and logits, by transformers."""
        import torch

        vectors = [vector.coefficient(dose) for vector, dose in zip(self.bundle.manifest.vectors, DOSES, strict=True)]
        change = torch.from_numpy((steered * vectors) @ self.bundle.vectors).float()
        states, handles = {}, []

        def hook(layer: int):
            def read(_module, _arguments, output):
                hidden = output[0] if isinstance(output, tuple) else output
                states[layer] = hidden[0].numpy()
                if layer != self.bundle.manifest.vectors[0].layer:
                    return None
                moved = hidden + change
                return (moved, *output[1:]) if isinstance(output, tuple) else moved

            return read

        try:
            handles += [
                self.source.hooked.blocks[layer].register_forward_hook(hook(layer)) for layer in self.bundle.layers
            ]
            with torch.inference_mode():
                logits = self.source.model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0].numpy()
        finally:
            for handle in handles:
                handle.remove()
        columns = [states[probe.layer] for probe in self.bundle.probes]
        scores = [state @ self.bundle.weight[column] for column, state in enumerate(columns)]
        norms = np.stack([np.linalg.norm(state, axis=-1) for state in columns], axis=1)
        return np.stack(scores, axis=1) + self.bundle.bias, norms, logits

    def far(self, seen: Seen, sequence: list[int], steered: np.ndarray) -> np.ndarray:
        """How far each row that was told lies from the reference, of the state's norm and the tolerance's multiples."""
        scores, norms, _ = self.reference(sequence, steered)
        told, at = np.array(seen.scores), np.array(seen.positions)
        return (np.abs(told - scores[at]) / norms[at] / LARGEST).max(axis=1)


def gated_bundle(folder: Path, model_path: Path, source, layers=LAYERS) -> Bundle:
    """Random probes at three layers, and two vectors at the second."""
    base = random_bundle(folder / "base", model_path, source.markers, threshold=1e9, layers=layers)
    assert all(vector.layer == layers[1] for vector in base.manifest.vectors)
    return save_bundle(
        folder / "bundle",
        version="0",
        created="2026-01-01T00:00:00Z",
        model=base.manifest.model,
        markers=base.manifest.markers,
        probes=[
            (_judging(probe, last=probe.layer == layers[2]), weight, bias)
            for probe, weight, bias in zip(base.probes, base.weight, base.bias.tolist(), strict=True)
        ],
        vectors=list(zip(base.manifest.vectors, base.vectors, strict=True)),
    )


def _judging(probe: Probe, *, last: bool) -> Probe:
    # What reads the prompt may open a gate in a chunk of it, and how it is divided is not to be guessed at the last
    # layer, whose gate steers from the next row on.
    roles = ["assistant"] if last else probe.roles
    return msgspec.structs.replace(probe, roles=roles, aggregate=AGGREGATE)


@pytest.fixture(scope="module", params=["eager", pytest.param("compiled", marks=pytest.mark.long)])
def house(request, model_path, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    bundle = gated_bundle(folder, model_path, source)
    from probes.data.concepts import load_benign

    encoded = [source.encode(request.messages, respond=True) for request in load_benign()[:60]]
    wire = Listener(f"ipc://{folder}/engine.sock")
    engine = settings(
        model_path,
        dtype="float32",
        enforce_eager=request.param == "eager",
        max_model_len=384,
        max_num_seqs=16,
        max_num_batched_tokens=CHUNK,
        block_size=BLOCK,
        num_gpu_blocks_override=BLOCKS,
        enable_prefix_caching=True,
        additional_config={"plumbob": {"bundle": str(bundle.path), "endpoint": wire.endpoint, "gates": 2}},
    )
    with start("gated", folder, **engine) as arm:
        wire.pump(5.0)
        house = House(arm, wire, bundle, source, sorted(encoded, key=len)[5:45:4])
        yield house
    house.wire.close()


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
