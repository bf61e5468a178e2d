"""Gates from the host's side: arming, which requests they apply to, and what they have decided.

The device decides (:mod:`monitor.engine.ops.gate`) and the host learns of it behind the step: at once on a CPU, on a
GPU a step or two later, from copies that nobody waits for. What it learns is, for each gate and request, at which
positions taps steered. That is what rows are steered by that are computed again, so only a step that has such rows
waits for copies still under way; and it goes to the monitor, as events.

A gate that is disarmed, or armed anew to do something else, keeps its place until no request is left that it steered.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monitor.engine.batch import Batch
from monitor.engine.gates.compiling import gate_entries, judgement
from monitor.engine.gates.history import History, Judged, Steered, as_they_were
from monitor.engine.ops.gate import open_rows
from monitor.engine.ops.gate_layout import FOREVER, Counter, Flag, Rule
from monitor.engine.staging import Stage
from monitor.engine.steering.caps import require_together
from monitor.engine.steering.table import to_device
from monitor.engine.taps import Taps
from monitor.errors import OrderError
from monitor.wire.frames import GateEvent, Started
from monitor.wire.orders import Arm, Stop
from probes.bundle import Bundle
from probes.scoring.roles import Role


@dataclass(frozen=True, slots=True)
class Report:
    """Flags and averages of a step's gates, on their way to the host."""

    step: int
    owners: dict[int, Judged]
    """The request that held each slot then."""
    host: tuple[Tensor, ...]
    """Slots, positions, flags and averages of its rows."""
    copied: torch.cuda.Event


class Gates:
    """The gates of one engine process.

    Args:
        taps: With buffers for gates.
        bundle: Probes and vectors.
        tainted: Takes the engine's id of a request, and the first position that a gate steered.
    """

    def __init__(self, taps: Taps, bundle: Bundle, tainted: Callable[[str, int], None]) -> None:
        if taps.gates is None:
            raise ValueError("these taps have no gates")
        self._taps, self._bundle, self._history = taps, bundle, History(tainted)
        self._buffers = taps.gates
        self._device = taps.row_entry.device
        self._free = list(range(len(self._buffers.rules) - 1, -1, -1))
        self._armed: dict[str, tuple[int, Arm]] = {}
        self._ids: dict[int, str] = {}
        self._retired: dict[int, int] = {}
        """Places of gates that are armed no more, and the step from which on they steered nobody anew."""
        self._reads: dict[int, int] = {}
        """The layer that each gate reads."""
        self._stopping: dict[int, str] = {}
        """Messages of the gates that stop, by their place."""
        self._stopped: list[Stop] = []
        self._requests: dict[int, Judged] = {}
        self._fresh: set[int] = set()
        """Slots whose state on the device is that of a request that has ended."""
        self._reports: deque[Report] = deque()
        self._step = 0
        self._roles_written = 0

    @property
    def active(self) -> bool:
        """True while a gate is armed, or rows may come again that one has steered."""
        return bool(self._ids)

    def take_events(self) -> list[GateEvent]:
        """Take the events since the last call, oldest first."""
        return self._history.take_events()

    def take_stopped(self) -> list[Stop]:
        """Take the requests that gates have stopped since the last call."""
        stopped, self._stopped = self._stopped, []
        return stopped

    def start(self, started: Started) -> None:
        """Take in a request that has a slot."""
        self._requests[started.slot] = Judged(
            started.slot, started.engine_request_id, started.request_id, max(started.prompt_tokens - 1, 0)
        )
        self._fresh.add(started.slot)

    def extend(self, engine_request_id: str, prompt_tokens: int) -> None:
        """Follow a streaming session whose answer has become part of its prompt."""
        for request in self._requests.values():
            if request.engine_request_id == engine_request_id:
                request.respond = max(prompt_tokens - 1, 0)
                for index in range(len(self._buffers.rules)):
                    self._buffers.counters[request.slot, index, Counter.RESPOND] = self._respond(index, request)

    def finish(self, slot: int) -> None:
        """Let a request go."""
        request = self._requests.pop(slot, None)
        if request is None:
            return
        request.ended = True
        if not any(request in report.owners.values() for report in self._reports):
            self._history.end(request)
        self._reclaim()

    def settle(self) -> None:
        """Learn everything that has been decided; for when nothing is computed, so that nothing waits for it."""
        self._collect(wait=True)

    def steered(self, slot: int) -> list[Steered]:
        """History of each gate on a slot's request, up to the last row; waits for copies still under way."""
        self._collect(wait=True)
        request = self._requests.get(slot)
        return [] if request is None else list(request.gates.values())

    def exempt(self, slot: int) -> list[str]:
        """Let no gate steer a slot's request any more; the ids of those that did so to its last row.

        Gates that stop go on: whoever has an answer repeat itself gets rid of the steering alone.
        """
        request = self._requests.get(slot)
        if request is None:
            return []
        request.exempt = True
        for index in range(len(self._buffers.rules)):
            if index not in self._stopping:
                self._buffers.counters[slot, index, Counter.ARMED] = 0
        return self._history.close(request)

    def armed_for(self, engine_request_id: str) -> list[Arm]:
        """The gates that may steer a request, which may be about to come."""
        request = next(
            (request for request in self._requests.values() if request.engine_request_id == engine_request_id), None
        )
        if request is not None and request.exempt:
            return []
        return [order for _, order in self._armed.values() if request is None or order.id not in request.without]

    def arm(
        self,
        order: Arm,
        upcoming: Callable[[int], int],
        require_beside: Callable[[str, Sequence[Arm]], None] = lambda engine_request_id, gates: None,
    ) -> dict[str, OrderError]:
        """Arm a gate, or tune it.

        Args:
            order: What for.
            upcoming: Tells the next position of a slot's request.
            require_beside: Raises OrderError where a request's orders leave no room for these gates.

        Returns:
            Keys of requests in flight that it does not steer, since their orders leave no room for it, and the reason.

        Raises:
            OrderError: The bundle has no such probe or vector, the gate cannot read the probe, no gate is free, the
                dose is over the cap, alone or together with other gates, or what is to be done makes no sense.
        """
        # Which places are free depends on what was learnt: all of it, here, or ranks would not agree.
        self._collect(wait=True)
        rule, limit = judgement(self._bundle, order)
        entries = gate_entries(self._bundle, order)
        others = [gate for _, gate in self._armed.values() if gate.id != order.id]
        require_together(self._bundle, {}, [*others, order])
        stops = order.stop is not None
        chosen = [request for request in self._requests.values() if stops or not request.exempt]
        index, before = self._armed.get(order.id, (-1, None))
        refused: dict[str, OrderError] = {}
        if before is None or _identity(before) != _identity(order):
            if not self._free:
                raise OrderError(
                    "gate",
                    f"All {len(self._buffers.rules)} gates are in use.",
                    "Disarm one and wait for the requests that it steered to end, or start the engine with more.",
                )
            previous = index if before is not None and before.probe == order.probe else -1
            if before is not None:
                self.disarm(order.id)
            if not self.active:
                # Nothing was kept of requests that came meanwhile, and all of it is written now.
                self._fresh.clear()
            for request in chosen:
                request.without.discard(order.id)
                try:
                    require_beside(request.engine_request_id, [*self.armed_for(request.engine_request_id), order])
                except OrderError as error:
                    request.without.add(order.id)
                    refused[request.engine_request_id] = error
            index = self._free.pop()
            if order.stop is not None:
                self._stopping[index] = order.stop
            self._begin(index, previous, [one for one in chosen if order.id not in one.without], upcoming)
            for layer, entry in entries.items():
                if (table := self._taps.layers[layer].gate_table) is not None:
                    table[index].copy_(to_device(entry, self._device))
        self._armed[order.id], self._ids[index], self._reads[index] = (index, order), order.id, rule[Rule.LAYER]
        self._buffers.limits[index].copy_(to_device(np.array(limit), self._device))
        self._buffers.rules[index].copy_(to_device(np.array(rule, np.int32), self._device))
        self._switch()
        return refused

    def disarm(self, gate: str) -> None:
        """Steer no more by a gate, from the next row on.

        Raises:
            OrderError: No such gate is armed.
        """
        if gate not in self._armed:
            raise OrderError("gate", f"No gate '{gate}' is armed.", f"Armed are: {', '.join(self._armed) or 'none'}.")
        index, _ = self._armed.pop(gate)
        self._buffers.counters[:, index, Counter.ARMED] = 0
        self._retired[index] = self._step
        self._reclaim()

    def open(
        self,
        batch: Batch,
        scheduled: NDArray[np.integer],
        first: NDArray[np.integer],
        stage: Stage,
        rows: int,
        cached: tuple[NDArray[np.void], Tensor] | None = None,
    ) -> None:
        """Make ready for a pass, once the rows are mapped.

        Args:
            batch: Who is in it.
            scheduled: Rows of each request, shape ``(requests,)``.
            first: Position of each one's first row, shape ``(requests,)``.
            stage: Knows each row's slot and position.
            rows: Rows of the step.
            cached: What requests of the step have in the prefix cache: rows of dtype :data:`monitor.wire.frames.ROW`,
                those of one request together and in order, and their scores, ``(rows, probes)``, on the device; NaN
                where there are none.
        """
        self._step += 1
        self._collect(wait=bool(batch.again.any()))
        buffers = self._buffers
        if self._fresh:
            self._reset(sorted(self._fresh))
            self._fresh.clear()
        starts = np.cumsum(scheduled) - scheduled
        if batch.again.any():
            given = as_they_were(self._requests, batch, starts, first, rows, len(buffers.rules))
            buffers.row_gates[:rows].copy_(to_device(given, self._device))
        texts = bool((batch.answer_roles != Role.ASSISTANT).any())
        if batch.prompts or texts or self._roles_written:
            written = max(rows, self._roles_written)
            roles = np.full(written, Role.ASSISTANT, np.int8)
            roles[:rows] = np.repeat(batch.answer_roles, scheduled)
            for slot, begin, position, count in zip(batch.slots, starts, first, scheduled, strict=True):
                if (prompt := batch.prompts.get(int(slot))) is not None:
                    part = prompt[position : position + count]
                    roles[begin : begin + len(part)] = part
            buffers.row_role[:written].copy_(to_device(roles, self._device))
            self._roles_written = rows if batch.prompts or texts else 0
        if cached is not None:
            self._read_cached(*cached)
        buffers.row_slot.copy_(stage.slots)
        buffers.row_position[:rows].copy_(stage.positions[:rows])
        open_rows(buffers.row_slot, buffers.row_position, buffers.counters, buffers.row_gates, rows)

    def close(self, stage: Stage, rows: int) -> None:
        """Behind a pass: let the stage have the flags, have them brought to the host, and clear the rows."""
        buffers = self._buffers
        stage.gates[:rows].copy_(buffers.row_gates[:rows])
        self._report(buffers.row_slot, buffers.row_position, stage.gates, buffers.row_average, rows=rows)
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

    def _report(self, *parts: Tensor, rows: int) -> None:
        """Have the host learn slots, positions, flags and averages of rows."""
        if self._device.type == "cpu":
            slots, positions, flags, averages = (part.numpy()[:rows] for part in parts)
            self._stop(slots, flags)
            return self._history.learn(self._ids, self._requests, slots, positions, flags, averages)
        host = tuple(torch.empty_like(part[:rows], device="cpu", pin_memory=True) for part in parts)
        for target, part in zip(host, parts, strict=True):
            target.copy_(part[:rows], non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return self._reports.append(Report(self._step, dict(self._requests), host, copied))

    def _stop(self, slots: NDArray[np.int32], flags: NDArray[np.int8]) -> None:
        """Note the requests of rows that have opened a gate that stops."""
        for index, message in self._stopping.items():
            for row in np.flatnonzero(flags[:, index] & Flag.FIRED).tolist():
                if (request := self._requests.get(int(slots[row]))) is not None:
                    self._stopped.append(Stop(request.engine_request_id, message, self._ids[index]))

    def _respond(self, index: int, request: Judged) -> int:
        """The first row that a gate may steer: one that stops steers none."""
        return FOREVER if index in self._stopping else request.respond

    def _read_cached(self, rows: NDArray[np.void], scores: Tensor) -> None:
        """Judge tokens that are not computed: they may open a gate, and cannot be steered."""
        gates, buffers = len(self._buffers.rules), self._buffers
        chosen = to_device(np.unique(rows["slot"]).astype(np.int64), self._device)
        respond = buffers.counters[chosen, :, Counter.RESPOND]
        # No row of theirs is a response until they have been read.
        buffers.counters[chosen, :, Counter.RESPOND] = FOREVER
        slots, positions = (to_device(rows[name].astype(np.int32), self._device) for name in ("slot", "position"))
        flags = torch.zeros(len(rows), gates, dtype=torch.int8, device=self._device)
        averages = torch.zeros(len(rows), gates, device=self._device)
        for layer in sorted({self._reads[index] for index in self._ids}):
            torch.ops.plumbob.gate(
                scores,
                slots,
                positions,
                to_device(rows["role"].astype(np.int8), self._device),
                torch.ones(1, dtype=torch.int32, device=self._device),
                buffers.limits,
                buffers.rules,
                buffers.averages,
                buffers.counters,
                flags,
                averages,
                len(rows),
                layer,
            )
        buffers.counters[chosen, :, Counter.RESPOND] = respond
        self._report(slots, positions, flags, averages, rows=len(rows))

    def _begin(self, index: int, previous: int, chosen: list[Judged], upcoming: Callable[[int], int]) -> None:
        """Give a place to a gate; its averages are those of the gate at ``previous``, if that is not −1."""
        state, averages = self._buffers.counters, self._buffers.averages
        # A copy: it may be the same place.
        kept = (state[:, previous].clone(), averages[:, previous].clone()) if previous >= 0 else None
        counters = np.zeros((len(state), len(Counter)), np.int32)
        for request in chosen:
            row = counters[request.slot]
            row[Counter.ARMED], row[Counter.SEEN] = 1, upcoming(request.slot)
            row[Counter.RESPOND] = self._respond(index, request)
        state[:, index].copy_(to_device(counters, self._device))
        averages[:, index] = 0.0
        if kept is not None:
            for counter in (Counter.COUNT, Counter.STREAK, Counter.CALM):
                state[:, index, counter] = kept[0][:, counter]
            averages[:, index] = kept[1]

    def _reset(self, slots: list[int]) -> None:
        """Begin anew in slots that have changed hands."""
        state = np.zeros((len(slots), *self._buffers.counters.shape[1:]), np.int32)
        for row, slot in enumerate(slots):
            if (request := self._requests.get(slot)) is None:
                continue
            state[row, :, Counter.RESPOND] = [self._respond(index, request) for index in range(state.shape[1])]
            for index, order in self._armed.values():
                exempt = request.exempt and index not in self._stopping
                state[row, index, Counter.ARMED] = order.id not in request.without and not exempt
        at = to_device(np.array(slots), self._device)
        self._buffers.counters.index_copy_(0, at, to_device(state, self._device))
        self._buffers.averages.index_fill_(0, at, 0.0)

    def _collect(self, *, wait: bool) -> None:
        """Learn from the reports that have arrived; with ``wait``, from all."""
        while self._reports and (wait or self._reports[0].copied.query()):
            report = self._reports.popleft()
            report.copied.synchronize()
            self._history.learn(self._ids, report.owners, *(part.numpy() for part in report.host))
            for request in report.owners.values():
                if request.ended and not any(request in later.owners.values() for later in self._reports):
                    self._history.end(request)
        self._reclaim()

    def _reclaim(self) -> None:
        """Free the places of gates that are armed no more and have steered nobody who is still there."""
        oldest = self._reports[0].step if self._reports else self._step + 1
        held = set[int]()
        if self._retired:
            # Those that have ended, too, as long as what became of them is under way.
            owners = [owner for report in self._reports for owner in report.owners.values()]
            held = {index for request in [*self._requests.values(), *owners] for index in request.gates}
        for index in [i for i, step in self._retired.items() if step < oldest and i not in held]:
            del self._retired[index], self._ids[index]
            self._stopping.pop(index, None)
            self._buffers.rules[index, Rule.LAYER] = -1
            self._free.append(index)
        self._switch()

    def _switch(self) -> None:
        """Let the op return at once at layers that no gate reads."""
        read = {layer for index, layer in self._reads.items() if index in self._ids}
        for layer, tap in self._taps.layers.items():
            if tap.gated is not None:
                tap.gated.fill_(layer in read)


def _identity(order: Arm) -> tuple[Any, ...]:
    """The parts of a gate that cannot be tuned: with others, it is another gate."""
    return order.acts, order.probe, order.max_dose, order.stop
