"""The degeneration guard in a real engine: too hard a dose is released, and the monitor is told."""

import msgspec
import numpy as np
import pytest

from monitor.events import Guarded
from monitor.ingest import Arrival, MemorySource
from monitor.policy import Policy
from monitor.service.monitor import Monitor
from monitor.sinks import MemorySink
from monitor.sinks.audit import AuditLog, verify
from monitor.wire.codec import encode_ack
from monitor.wire.frames import Frame
from monitor.wire.orders import Act, Arm, Disarm, Steer
from tests.harness.engines import LAYERS, random_bundle, settings, start
from tests.harness.wire import Seen, Wire

pytest.importorskip("torch")

from monitor.engine.steering.guard import Guard, Repeats, blamed
from tests.harness.engines import FLOAT32_LARGEST as LARGEST

pytestmark = pytest.mark.vllm

TOKENS = 128
"""Of an answer: a window that repeats itself, and some unsteered."""
HUGE, MILD = 1.5, 0.02
AHEAD = 2
"""Steps that may be scheduled before the tokens of the one before them are known."""


class Desk(Wire):
    """A monitor's end with a real monitor behind it."""

    def __init__(self, endpoint: str, bundle, audit) -> None:
        super().__init__(endpoint)
        self.sink, self.headers = MemorySink(), []
        self.monitor = Monitor(bundle, Policy("none", "", ()), MemorySource(), sinks=[self.sink], audit=AuditLog(audit))

    def _frame(self, frame: Frame) -> None:
        known = [slot for slot in frame.header.finished if slot in self.slots]
        super()._frame(msgspec.structs.replace(frame, header=msgspec.structs.replace(frame.header, finished=known)))
        if self.hello is not None:
            self.monitor.receive(Arrival(f"{self.engine}/core".encode(), self.hello))
        self.monitor.receive(Arrival(f"{frame.header.engine}/rank0".encode(), frame))
        self.headers.append(frame.header)

    def confirm(self) -> None:
        self._router.send_multipart([f"{self.engine}/rank0".encode(), *encode_ack(self.headers[-1].sequence)])

    def guarded(self, seen: Seen | None = None) -> list[Guarded]:
        events = [event for event in self.sink.events if isinstance(event, Guarded)]
        return [
            event
            for event in events
            if seen is None or event.request.engine_request_id == seen.started.engine_request_id
        ]

    def gates(self, seen: Seen) -> list[tuple[str, str, int]]:
        found = {event.number: event for header in self.headers for event in header.gates}
        mine = [
            event for _, event in sorted(found.items()) if event.engine_request_id == seen.started.engine_request_id
        ]
        return [(event.gate, event.kind, event.position) for event in mine]

    def close(self) -> None:
        super().close()
        self.monitor.close()


def told_by(tokens: list[int], prompt: int) -> list[tuple[int, Repeats]]:
    """What the core finds of an answer, and at how many of its tokens."""
    guard = Guard()
    guard.watch("a")
    found = []
    for count in range(len(tokens)):
        request = type("Request", (), {"output_token_ids": tokens[:count], "num_prompt_tokens": prompt})
        found += [(count, repeats) for repeats in guard.judge({"a": request})]
    return found


class House:
    def __init__(self, arm, wire: Desk, bundle, source, prompts, audit) -> None:
        self.arm, self.wire, self.bundle, self.source, self.prompts = arm, wire, bundle, source, prompts
        self.audit = audit
        self.end = [source.tokenizer.eos_token_id]

    def run(self, prompts, act=None, tokens=TOKENS):
        answer, seen = self.wire.run(self.arm, prompts, tokens, act=act, stops=self.end)
        return answer.tokens, seen

    def order(self, order) -> None:
        self.wire.order(order)
        # Orders ride with a step.
        self.wire.run(self.arm, [self.prompts[0][:4]], 2)

    def far(self, seen: Seen, sequence: list[int], doses: np.ndarray, vector: int) -> np.ndarray:
        """How far each row of the last layer is from a forward pass of transformers with these doses, ``(tokens,)``.

        In multiples of the tolerance, which is relative to the state's norm.
        """
        import torch

        chosen = self.bundle.manifest.vectors[vector]
        unit = self.bundle.vectors[vector] / np.linalg.norm(self.bundle.vectors[vector])
        change = torch.from_numpy(np.outer(doses * chosen.hidden_norm, unit)).float()
        states = {}

        def read(_module, _arguments, output):
            hidden = output[0] if isinstance(output, tuple) else output
            states["last"] = hidden[0].numpy()

        def move(_module, _arguments, output):
            hidden = (output[0] if isinstance(output, tuple) else output) + change
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handles = [
            self.source.hooked.blocks[LAYERS[1]].register_forward_hook(move),
            self.source.hooked.blocks[LAYERS[2]].register_forward_hook(read),
        ]
        try:
            with torch.inference_mode():
                self.source.model(input_ids=torch.tensor([sequence]), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        columns = [column for column, probe in enumerate(self.bundle.probes) if probe.layer == LAYERS[2]]
        expected = states["last"] @ self.bundle.weight[columns].T + self.bundle.bias[columns]
        error = np.abs(np.array(seen.scores)[:, columns] - expected[seen.positions]).max(axis=1)
        return error / np.linalg.norm(states["last"], axis=-1)[seen.positions] / LARGEST


@pytest.fixture(scope="module")
def house(model_path, source, tmp_path_factory):
    from probes.data.concepts import load_benign

    folder = tmp_path_factory.mktemp("guard")
    bundle = random_bundle(folder / "bundle", model_path, source.markers, threshold=1e9)
    encoded = [source.encode(request.messages, respond=True) for request in load_benign()]
    audit = folder / "audit.jsonl"
    wire = Desk(f"ipc://{folder}/engine.sock", bundle, audit)
    tap = {"bundle": str(bundle.path), "endpoint": wire.endpoint, "gates": 1}
    engine = settings(model_path, dtype="float32", max_num_seqs=16, additional_config={"plumbob": tap})
    with start("guarded", folder, **engine) as arm:
        wire.pump(5.0)
        # Requests whose answers are short: the model repeats itself in long ones without any help.
        chosen = [encoded[index] for index in np.linspace(0, len(encoded) - 1, 14).astype(int)[[0, 2, 6, 10]]]
        house = House(arm, wire, bundle, source, chosen, audit)
        yield house
    house.wire.close()


@pytest.fixture(scope="module")
def crowd(house):
    """Each prompt unsteered, steered a little, and steered far too hard, all at once."""
    prompts = house.prompts * 3
    doses = np.repeat([0.0, MILD, HUGE], len(house.prompts))
    ordered = set()

    def act(wire: Wire, seen: list[Seen]) -> None:
        for request in seen:
            key = request.started.engine_request_id
            if key not in ordered and not ordered.add(key):
                # Requests are numbered in the order of their prompts.
                dose = doses[int(request.started.request_id) - int(seen[0].started.request_id)]
                if dose:
                    wire.order(Steer(key, [Act("random-1", add=float(dose))], id="mine"))

    answers, seen = house.run(prompts, act)
    return list(zip(prompts, doses, answers, seen, strict=True))


def test_what_is_steered_too_hard_is_released(house, crowd):
    """At the very window at which the answer's own tokens say so, and no other request is touched."""
    for prompt, dose, tokens, seen in crowd:
        events = house.wire.guarded(seen)
        begin = next((at for at, steered in zip(seen.positions, seen.steered, strict=True) if steered), None)
        alarms = [
            (count, repeats)
            for count, repeats in told_by(tokens, len(prompt))
            if begin is not None and blamed([(begin, 10**6)], repeats.noticed)
        ]
        assert [event.repetition for event in events] == [repeats.share for _, repeats in alarms[:1]]
        for event, (count, _) in zip(events, alarms, strict=False):
            assert 0 <= event.position - (len(prompt) + count - 1) <= AHEAD
        if dose == HUGE:
            assert [event.gates for event in events] == [()]
        else:
            # This model, these prompts and so little of the vector: nothing repeats.
            assert not events


def test_each_row_is_that_of_a_forward_pass_with_the_dose_then_none(house, crowd):
    for prompt, dose, tokens, seen in crowd[-2:]:
        assert dose == HUGE
        sequence = [*prompt, *tokens[:-1]]
        (none,) = (event.position for event in house.wire.guarded(seen))
        begin = seen.positions[seen.steered.index(1)]
        at = np.arange(len(sequence))
        doses = np.where((at >= begin) & (at < none), dose, 0.0)
        assert house.far(seen, sequence, doses, 1).max() <= 1
        # The check can tell: with the dose to the end, rows after the release are far off.
        whole = house.far(seen, sequence, np.where(at < begin, 0.0, dose), 1)
        assert whole[np.array(seen.positions) < none].max() <= 1
        assert whole[np.array(seen.positions) >= none].min() > 3


def test_a_released_request_is_steered_by_no_later_order(house):
    sent, refused = [], {}

    def act(wire: Desk, seen: list[Seen]) -> None:
        refused.update({refusal.number: refusal for header in wire.headers for refusal in header.refused})
        for request in seen:
            key = request.started.engine_request_id
            if len(sent) == 0 or (len(sent) == 1 and wire.guarded(request)):
                sent.append(Steer(key, [Act("random-1", add=HUGE)], id=f"order-{len(sent)}"))
                wire.order(sent[-1])

    house.run(house.prompts[:1], act, tokens=2 * TOKENS)
    (found,) = [refusal for refusal in refused.values() if refusal.engine_request_id == sent[0].engine_request_id]
    assert (found.id, found.cause) == ("order-1", "guard")


def test_a_gate_lets_go_for_good_of_the_request_that_it_made_repeat_itself_and_of_no_other(house):
    name = "hard"
    house.order(Arm(name, "random-5-0", [Act("random-1", add=HUGE)], threshold=-1e6))
    prompts = [house.prompts[0], house.prompts[1]]
    answers, seen = house.run(prompts)
    house.wire.confirm()
    for prompt, tokens, request in zip(prompts, answers, seen, strict=True):
        (event,) = house.wire.guarded(request)
        assert event.gates == (name,)
        opened, closed = house.wire.gates(request)
        assert opened[:2] == (name, "opened") and closed == (name, "closed", event.position)
        sequence = [*prompt, *tokens[:-1]]
        at = np.arange(len(sequence))
        steered = (at >= len(prompt) - 1) & (at < event.position)
        assert event.position < len(sequence)
        assert house.far(request, sequence, np.where(steered, HUGE, 0.0), 1).max() <= 1
        assert house.far(request, sequence, np.where(at >= len(prompt) - 1, HUGE, 0.0), 1).max() > 3


def test_it_acts_with_no_monitor_and_a_later_one_is_told(house):
    """The gate of the test before is armed still: it steers whoever comes."""
    before = house.wire
    endpoint, bundle, numbers = before.endpoint, house.bundle, {event.number for event in before.guarded()}
    before.close()
    alone = house.arm.generate([house.prompts[2]], TOKENS, stops=house.end).tokens
    house.wire = Desk(endpoint, bundle, house.audit)
    house.wire.pump(10.0)
    while not house.wire.headers:
        house.arm.generate([house.prompts[0][:4]], 2)
        house.wire.pump(1.0)
    house.order(Disarm("hard"))
    new = [event for event in house.wire.guarded() if event.number not in numbers]
    assert [event.gates for event in new] == [("hard",)]
    assert told_by(alone[0], len(house.prompts[2]))[0][1].share == new[0].repetition


def test_the_audit_log_has_all_of_it_and_is_whole(house):
    house.wire.monitor.close()
    verify(house.audit)
    found = [msgspec.json.decode(raw)["record"] for raw in house.audit.read_bytes().splitlines()]
    numbers = [record["number"] for record in found if record["type"] == "guarded"]
    assert numbers == list(range(len(numbers))) and len(numbers) >= 8
