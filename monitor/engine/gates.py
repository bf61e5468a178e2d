"""Gates from the host's side: arming, which requests they apply to, and what they have decided.

The device decides (:mod:`monitor.engine.gate`) and the host learns of it behind the step: at once on a CPU, on a GPU a
step or two later, from copies that nobody waits for. What it learns is, for each gate and request, at which positions
taps steered. That is what rows are steered by that are computed again, so only a step that has such rows waits for
copies still under way; and it is what the monitor is told, as events.

A gate that is disarmed, or armed anew to do something else, keeps its place until no request is left that it steered.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monitor.engine.gate import Counter, Flag, Rule, open_rows
from monitor.engine.gate_orders import gate_entries, judgement
from monitor.engine.slots import Batch
from monitor.engine.staging import Stage
from monitor.engine.steering import to_device
from monitor.engine.taps import Taps
from monitor.errors import EngineError
from monitor.frames import Arm, GateEvent, Started
from probes.bundle import Bundle
from probes.roles import Role

DOWNSTREAM: Final = int(Flag.STEER | Flag.EARLY | Flag.TAINTED)
"""Flags of rows whose scores lie downstream of steering."""

Stretches = list[list[int]]
"""Ascending ``[first position, one past the last]``."""


@dataclass(slots=True)
class Steered:
    """What one gate did to one request, as far as it was learnt."""

    gate: str
    """Its id."""
    learnt: int = 0
    """Positions below were."""
    rows: int = 0
    steering: bool = False
    """The last of them was steered."""
    early: Stretches = field(default_factory=list[list[int]])
    """Steered from the first layer on."""
    late: Stretches = field(default_factory=list[list[int]])
    """Steered behind the gate's layer."""


@dataclass(slots=True, eq=False)
class Judged:
    """A request that gates may judge."""

    slot: int
    key: str
    request_id: str
    respond: int
    """Position of the first response row."""
    gates: dict[int, Steered] = field(default_factory=dict[int, Steered])
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What a step's gates said, on its way to the host."""

    step: int
    owners: dict[int, Judged]
    """Who held each slot then."""
    host: tuple[Tensor, ...]
    """Slots, positions, flags and averages of its rows."""
    copied: torch.cuda.Event


class Gates:
    """The gates of one engine process.

    Args:
        taps: With buffers for gates.
        bundle: Probes and vectors.
        tainted: Is told the key of a request, and the first position that a gate steered.
    """

    def __init__(self, taps: Taps, bundle: Bundle, tainted: Callable[[str, int], None]) -> None:
        if taps.gates is None:
            raise ValueError("these taps have no gates")
        self._taps, self._bundle, self._tainted = taps, bundle, tainted
        self._buffers = taps.gates
        self._device = taps.row_entry.device
        self._free = list(range(len(self._buffers.rules) - 1, -1, -1))
        self._armed: dict[str, tuple[int, Arm]] = {}
        self._ids: dict[int, str] = {}
        self._retired: dict[int, int] = {}
        """Places of gates that are armed no more, and the step from which on they steered nobody anew."""
        self._reads: dict[int, int] = {}
        """The layer that each gate reads."""
        self._requests: dict[int, Judged] = {}
        self._fresh: set[int] = set()
        """Slots whose state on the device is that of a request that has ended."""
        self._reports: deque[Report] = deque()
        self._step = 0
        self._numbered = 0
        self._events: list[GateEvent] = []
        self._roles_written = 0

    @property
    def active(self) -> bool:
        """Whether a gate is armed, or rows may come again that one has steered."""
        return bool(self._ids)

    def take_events(self) -> list[GateEvent]:
        """What was decided since the last call, oldest first."""
        events, self._events = self._events, []
        return events

    def start(self, started: Started) -> None:
        """Take in a request that has a slot."""
        self._requests[started.slot] = Judged(
            started.slot, started.key, started.request_id, max(started.prompt_tokens - 1, 0)
        )
        self._fresh.add(started.slot)

    def extend(self, key: str, prompt_tokens: int) -> None:
        """Follow a streaming session whose answer has become part of its prompt."""
        for request in self._requests.values():
            if request.key == key:
                request.respond = max(prompt_tokens - 1, 0)
                self._buffers.counters[request.slot, :, Counter.RESPOND] = request.respond

    def finish(self, slot: int) -> None:
        """Let a request go."""
        request = self._requests.pop(slot, None)
        if request is None:
            return
        request.ended = True
        if not any(request in report.owners.values() for report in self._reports):
            self._end(request)
        for gate, (_, order) in list(self._armed.items()):
            if order.key == request.key:
                self.disarm(gate)
        self._reclaim()

    def arm(self, order: Arm, upcoming: Callable[[int], int]) -> None:
        """Arm a gate, or tune it.

        Args:
            order: What for. For a request that has ended there is nothing to do.
            upcoming: Tells the next position of a slot's request.

        Raises:
            EngineError: The bundle has no such probe, the gate cannot read it, or no gate is free.
            BundleError: The bundle has no such vector, or its cap is below the dose.
            SteeringError: What is to be done makes no sense.
        """
        rule, limit = judgement(self._bundle, order)
        entries = gate_entries(self._bundle, order)
        chosen = [r for r in self._requests.values() if order.key in (None, r.key)]
        if order.key is not None and not chosen:
            return
        index, before = self._armed.get(order.id, (-1, None))
        if before is None or (before.acts, before.key, before.probe) != (order.acts, order.key, order.probe):
            if not self._free:
                raise EngineError(
                    f"All {len(self._buffers.rules)} gates are in use.",
                    "Disarm one and wait for the requests that it steered to end, or start the engine with more.",
                )
            previous = index if before is not None and before.probe == order.probe else -1
            if before is not None:
                self.disarm(order.id)
            if not self.active:
                # Nothing was kept of whoever came meanwhile, and all of it is written now.
                self._fresh.clear()
            index = self._free.pop()
            self._begin(index, previous, chosen, upcoming)
            for layer, entry in entries.items():
                if (table := self._taps.layers[layer].gate_table) is not None:
                    table[index].copy_(to_device(entry, self._device))
        self._armed[order.id], self._ids[index], self._reads[index] = (index, order), order.id, rule[Rule.LAYER]
        self._buffers.limits[index].copy_(to_device(np.array(limit), self._device))
        self._buffers.rules[index].copy_(to_device(np.array(rule, np.int32), self._device))
        self._switch()

    def disarm(self, gate: str) -> None:
        """Steer no more by a gate, from the next row on.

        Raises:
            EngineError: No such gate is armed.
        """
        if gate not in self._armed:
            raise EngineError(f"No gate '{gate}' is armed.", f"Armed are: {', '.join(self._armed) or 'none'}.")
        index, _ = self._armed.pop(gate)
        self._buffers.counters[:, index, Counter.ARMED] = 0
        self._retired[index] = self._step
        self._reclaim()

    def open(
        self, batch: Batch, scheduled: NDArray[np.integer], first: NDArray[np.integer], stage: Stage, rows: int
    ) -> None:
        """Make ready for a pass, once the rows are mapped.

        Args:
            batch: Who is in it.
            scheduled: Rows of each request, shape ``(requests,)``.
            first: Position of each one's first row, shape ``(requests,)``.
            stage: Knows each row's slot and position.
            rows: Rows of the step.
        """
        self._step += 1
        self._collect(wait=bool(batch.again.any()))
        buffers = self._buffers
        if self._fresh:
            self._reset(sorted(self._fresh))
            self._fresh.clear()
        starts = np.cumsum(scheduled) - scheduled
        if batch.again.any():
            buffers.row_gates[:rows].copy_(to_device(self._given(batch, starts, first, rows), self._device))
        if batch.prompts or self._roles_written:
            written = max(rows, self._roles_written)
            roles = np.full(written, Role.ASSISTANT, np.int8)
            for slot, begin, position, count in zip(batch.slots, starts, first, scheduled, strict=True):
                if (prompt := batch.prompts.get(int(slot))) is not None:
                    part = prompt[position : position + count]
                    roles[begin : begin + len(part)] = part
            buffers.row_role[:written].copy_(to_device(roles, self._device))
            self._roles_written = rows if batch.prompts else 0
        buffers.row_slot.copy_(stage.slots)
        buffers.row_position[:rows].copy_(stage.positions[:rows])
        open_rows(buffers.row_slot, buffers.row_position, buffers.counters, buffers.row_gates, rows)

    def close(self, stage: Stage, rows: int) -> None:
        """Behind a pass: let the stage have the flags, have them brought to the host, and clear the rows."""
        buffers = self._buffers
        stage.gates[:rows].copy_(buffers.row_gates[:rows])
        parts = (buffers.row_slot, buffers.row_position, stage.gates, buffers.row_average)
        if self._device.type == "cpu":
            self._learn(self._requests, *(part.numpy()[:rows] for part in parts))
        else:
            host = tuple(torch.empty_like(part[:rows], device="cpu", pin_memory=True) for part in parts)
            for target, part in zip(host, parts, strict=True):
                target.copy_(part[:rows], non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            self._reports.append(Report(self._step, dict(self._requests), host, copied))
        # Dummy and warm-up runs come without rows of their own.
        self.clear()

    def clear(self) -> None:
        """Judge and steer no row until the next :meth:`open`."""
        self._buffers.row_slot.fill_(-1)
        self._buffers.row_gates.zero_()

    def close_all(self) -> None:
        """Judge and steer nobody any more."""
        for tap in self._taps.layers.values():
            if tap.gated is not None:
                tap.gated.fill_(0)
        self.clear()

    def _begin(self, index: int, previous: int, chosen: list[Judged], upcoming: Callable[[int], int]) -> None:
        """Give a place to a gate; its averages are those of the gate at ``previous``, if that is not −1."""
        counters = np.zeros((len(self._buffers.counters), len(Counter)), np.int32)
        for request in chosen:
            counters[request.slot, [Counter.ARMED, Counter.RESPOND, Counter.SEEN]] = (
                1,
                request.respond,
                upcoming(request.slot),
            )
        self._buffers.counters[:, index].copy_(to_device(counters, self._device))
        self._buffers.averages[:, index] = 0.0
        if previous >= 0:
            for counter in (Counter.COUNT, Counter.STREAK, Counter.CALM):
                self._buffers.counters[:, index, counter] = self._buffers.counters[:, previous, counter]
            self._buffers.averages[:, index] = self._buffers.averages[:, previous]

    def _reset(self, slots: list[int]) -> None:
        """Begin anew in slots that have changed hands."""
        state = np.zeros((len(slots), *self._buffers.counters.shape[1:]), np.int32)
        for row, slot in enumerate(slots):
            if (request := self._requests.get(slot)) is None:
                continue
            state[row, :, Counter.RESPOND] = request.respond
            for index, order in self._armed.values():
                state[row, index, Counter.ARMED] = order.key in (None, request.key)
        at = to_device(np.array(slots), self._device)
        self._buffers.counters.index_copy_(0, at, to_device(state, self._device))
        self._buffers.averages.index_fill_(0, at, 0.0)

    def _given(
        self, batch: Batch, starts: NDArray[np.integer], first: NDArray[np.integer], rows: int
    ) -> NDArray[np.int8]:
        """Flags of rows that are computed again: what was done to them then."""
        given = np.zeros((rows, self._buffers.row_gates.shape[1]), np.int8)
        for at in np.flatnonzero(batch.again).tolist():
            request = self._requests.get(int(batch.slots[at]))
            begin, end = int(first[at]), int(first[at] + batch.again[at])
            for index, steered in request.gates.items() if request is not None else ():
                for stretches, flag in ((steered.early, Flag.STEER | Flag.EARLY), (steered.late, Flag.GIVEN)):
                    for start, stop in stretches:
                        inside = slice(*(int(starts[at]) + min(max(p, begin), end) - begin for p in (start, stop)))
                        given[inside, index] |= int(flag)
        return given

    def _collect(self, *, wait: bool) -> None:
        """Learn from the reports that have arrived; with ``wait``, from all."""
        while self._reports and (wait or self._reports[0].copied.query()):
            report = self._reports.popleft()
            report.copied.synchronize()
            self._learn(report.owners, *(part.numpy() for part in report.host))
            for request in report.owners.values():
                if request.ended and not any(request in later.owners.values() for later in self._reports):
                    self._end(request)
        self._reclaim()

    def _learn(
        self,
        owners: dict[int, Judged],
        slots: NDArray[np.int32],
        positions: NDArray[np.int32],
        flags: NDArray[np.int8],
        averages: NDArray[np.float32],
    ) -> None:
        for row, index in np.argwhere(flags).tolist():
            request, position, flag = owners.get(int(slots[row])), int(positions[row]), int(flags[row, index])
            if request is None or index not in self._ids:
                continue
            steered = request.gates.setdefault(index, Steered(self._ids[index]))
            if position < steered.learnt:
                continue
            steered.learnt = position + 1
            if flag & Flag.FIRED:
                self._say("opened", request, steered, position, float(averages[row, index]))
            if flag & (Flag.STEER | Flag.EARLY) and not (steered.early or steered.late):
                self._tainted(request.key, position)
            for stretches, bit in ((steered.early, Flag.EARLY), (steered.late, Flag.STEER)):
                if flag & bit:
                    _append(stretches, position)
            steered.rows += bool(flag & Flag.STEER)
            if steered.steering and not flag & Flag.STEER:
                self._say("closed", request, steered, position)
            steered.steering = bool(flag & Flag.STEER)

    def _end(self, request: Judged) -> None:
        for steered in request.gates.values():
            if steered.steering:
                self._say("closed", request, steered, steered.learnt)
        request.gates = {}

    def _say(
        self,
        kind: Literal["opened", "closed"],
        request: Judged,
        steered: Steered,
        position: int,
        average: float | None = None,
    ) -> None:
        about = (steered.gate, kind, request.key, request.request_id)
        self._events.append(GateEvent(self._numbered, *about, position, average, steered.rows))
        self._numbered += 1

    def _reclaim(self) -> None:
        """Free the places of gates that are armed no more and have steered nobody who is still there."""
        oldest = self._reports[0].step if self._reports else self._step + 1
        held = {index for request in self._requests.values() for index in request.gates} if self._retired else set()
        for index in [i for i, step in self._retired.items() if step < oldest and i not in held]:
            del self._retired[index], self._ids[index]
            self._buffers.rules[index, Rule.LAYER] = -1
            self._free.append(index)
        self._switch()

    def _switch(self) -> None:
        """Let the op return at once at layers that no gate reads."""
        read = {layer for index, layer in self._reads.items() if index in self._ids}
        for layer, tap in self._taps.layers.items():
            if tap.gated is not None:
                tap.gated.fill_(layer in read)


def _append(stretches: Stretches, position: int) -> None:
    if stretches and stretches[-1][1] == position:
        stretches[-1][1] = position + 1
    else:
        stretches.append([position, position + 1])
