"""A real engine with two gates, and forward passes of transformers that steer from the same token on."""

import pytest

pytest.importorskip("torch")
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from monitor.wire.codec import encode_ack
from monitor.wire.frames import Frame
from monitor.wire.orders import Act, Arm, Disarm
from probes.bundle import Bundle, Probe, save_bundle
from probes.data.concepts import load_benign
from probes.scoring.aggregate import Aggregate, running
from tests.harness.engines import BLOCK, CHUNK, LAYERS, random_bundle, settings
from tests.harness.engines import FLOAT32_LARGEST as LARGEST
from tests.harness.gate_model import Settings, model
from tests.harness.models import LAYERS as TINY_LAYERS
from tests.harness.models import tiny_model
from tests.harness.wire import Seen, Wire

REQUESTS = 10
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


def open_tiny(folder: Path, start: Callable[..., Any], **more: object) -> Iterator[House]:
    """An engine with a tiny model and little room, in float32.

    Args:
        folder: Where all of it is kept.
        start: Starts an engine, given a name, a folder, and the settings by name.
        more: Further settings.
    """
    from probes.models.activations import TransformersSource

    path = tiny_model(folder / "llama", "llama")
    source = TransformersSource(path, dtype="float32")
    bundle = gated_bundle(folder, path, source, (0, 2, TINY_LAYERS - 1))
    encoded = [source.encode(request.messages, respond=True) for request in load_benign()]
    # Each needs a fourth block in the middle of its answer, so that steered rows are among those computed again: by
    # length, since it is the last to come that is preempted.
    prompts = [prompt for prompt in encoded if 2.5 * BLOCK <= len(prompt) < 2.9 * BLOCK]
    yield from open_engine(folder, start, path, bundle, source, sorted(prompts, key=len)[:REQUESTS], **more)


def open_engine(
    folder: Path, start: Callable[..., Any], path: Path, bundle: Bundle, source: Any, prompts: list, **more: object
) -> Iterator[House]:
    """The engine of a model, ready, until it is no longer wanted."""
    wire = Listener(f"ipc://{folder}/engine.sock")
    engine = {
        "dtype": "float32",
        "max_model_len": 384,
        "max_num_seqs": 16,
        "max_num_batched_tokens": CHUNK,
        "block_size": BLOCK,
        "num_gpu_blocks_override": BLOCKS,
        "enable_prefix_caching": True,
        "additional_config": {"plumbob": {"bundle": str(bundle.path), "endpoint": wire.endpoint, "gates": 2}},
        **more,
    }
    with start("gated", folder, **settings(path, **engine)) as arm:
        wire.pump(5.0)
        house = House(arm, wire, bundle, source, prompts)
        yield house
    house.wire.close()
