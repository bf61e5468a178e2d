"""Everything around one model runner's taps: slots, steering, gates, scores of cached prefixes, and frames out.

The wrappers of both runners (:mod:`monitor.engine.vllm.runner_v1`, :mod:`monitor.engine.vllm.runner_v2`) call, for each
step and in this order: :meth:`RunnerTap.meet` before the runner lets go of anybody, :meth:`RunnerTap.update`,
:meth:`RunnerTap.begin` before the forward pass, and :meth:`RunnerTap.end` behind it. A step in which nothing is
computed is met, updated and ended. Nothing here may fail a request (:mod:`monitor.engine.guarded`): where a part of a
step fails, :meth:`RunnerTap.pass_over` takes the place of the end, and the next step is read again.
"""

import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, device, nn

from monitor.engine.backlog import Backlog
from monitor.engine.batch import NEVER, Batch, Gap
from monitor.engine.exporter import Exporter, Step
from monitor.engine.faults import Faults
from monitor.engine.gates.history import DOWNSTREAM
from monitor.engine.gates.host import Gates
from monitor.engine.intake import Intake
from monitor.engine.kv_scores import Blocks, KvScores, find_group
from monitor.engine.rows import commit, map_rows
from monitor.engine.settings import inherited
from monitor.engine.slots import Slots
from monitor.engine.staging import Stage, Staging
from monitor.engine.steering.table import ENTRIES_PER_SLOT, Steering, to_device
from monitor.engine.streams import Streams
from monitor.engine.taps import Taps
from monitor.wire.frames import Started
from monitor.wire.orders import Stop
from probes.bundle import load_bundle

SLOTS_PER_SEQUENCE: Final = 2
"""Preempted requests keep their slot, so there are more than can run at once."""

logger = logging.getLogger("vllm.plumbob")


class RunnerTap:
    """The taps of one model runner, and everything around them.

    Args:
        vllm_config: Of the engine.
        model: Weights loaded, not yet compiled.
        device: Where it runs.
        max_rows: The most rows of a step.
        exports: Whether this process tells the monitor: one rank does.
    """

    def __init__(self, vllm_config: Any, model: nn.Module, device: device, max_rows: int, *, exports: bool) -> None:
        settings = inherited()
        bundle = load_bundle(settings.bundle)
        slots = SLOTS_PER_SEQUENCE * vllm_config.scheduler_config.max_num_seqs
        self.bundle = bundle
        self.faults = Faults()
        self.failing = False
        """A part of this step failed."""
        self.taps = Taps(
            model,
            bundle,
            max_rows,
            ENTRIES_PER_SLOT * slots,
            stream=settings.stream,
            dtype=vllm_config.model_config.dtype,
            gates=settings.gates,
            slots=slots,
        )
        self._steering = Steering(self.taps, bundle, slots)
        self.slots = Slots(
            self._steering,
            bundle,
            slots,
            lambda engine_request_id: [] if self._gates is None else self._gates.armed_for(engine_request_id),
            0 if vllm_config.speculative_config is None else vllm_config.speculative_config.num_speculative_tokens,
        )
        self._gates = Gates(self.taps, bundle, self.slots.gated) if settings.gates else None
        self._gating = False
        """A gate may judge or steer in this step."""
        self._staging = Staging(max_rows, len(bundle.probes), device, settings.gates)
        self.streams = Streams(
            self.taps,
            settings.engine,
            self._staging.side,
            rows=settings.stream_rows,
            exports=exports,
            endpoint=settings.endpoint,
        )
        self.exporter = (
            Exporter(
                settings.endpoint, settings.engine, len(bundle.probes), self._in_flight, self._staging, self.faults
            )
            if settings.endpoint and exports
            else None
        )
        self._intake = Intake(self.slots, lambda: self._gates, self.streams, self.faults)
        self._backlog = Backlog(self.slots, max_rows, self._staging.side, self._intake.take_changes, self._settle)
        self._device = device
        self._kv: KvScores | None = None
        self._suspended = False
        self._stage = self._staging.spare
        self._batch: Batch | None = None
        self._rows = 0
        self._scheduled = 0
        self._committed = False
        self._next_told = 0.0
        self._last_rows = np.empty(0, np.int64)
        self._blocks: Blocks | None = None
        logger.info(
            "Plumbob reads %d probes at layers %s of %s (bundle %s)",
            len(bundle.probes),
            bundle.layers,
            type(model).__name__,
            bundle.digest[:12],
        )

    def bind_kv(self, kv_cache_config: Any) -> None:
        """Make room for the scores of cached prefixes, once the size of the KV cache is known."""
        found = find_group(kv_cache_config) if self.bundle.probes else None
        if found is None:
            self._kv = None
            return logger.warning("Plumbob finds no KV cache group that keeps whole prefixes: cached ones are unscored")
        group, block_size = found
        self._kv = KvScores(group, kv_cache_config.num_blocks, block_size, len(self.bundle.probes), self._device)
        return None

    def meet(self, scheduler_output: Any, blocks: Blocks) -> None:
        """A step begins: send what is owed to the monitor of those whose blocks are let go of."""
        self.failing = self._committed = False
        self._scheduled = int(scheduler_output.total_num_scheduled_tokens)
        if self.exporter is None:
            return
        self._backlog.note(self.exporter)
        preempted: set[str] = getattr(scheduler_output, "preempted_req_ids", None) or set()
        leaving = scheduler_output.finished_req_ids | preempted
        if leaving:
            self._backlog.send_last(self.exporter, self._kv, blocks, leaving)
        for engine_request_id in preempted:
            self.slots.let_go(engine_request_id)

    def update(self, scheduler_output: Any) -> None:
        """Take in who has come and gone, and the orders of this step."""
        self._intake.update(scheduler_output)
        if self._kv is not None and (copies := scheduler_output.kv_cache_block_copies):
            self._kv.copy_blocks(copies)

    def begin(
        self,
        keys: Sequence[str],
        scheduled: NDArray[np.integer],
        first: NDArray[np.integer],
        query_start: Tensor,
        batch_first: Tensor | None,
        blocks: Blocks,
        kv_slots: Callable[[int], Tensor],
    ) -> None:
        """Set the row map of the coming forward pass.

        Args:
            keys: Requests in the order of the batch.
            scheduled: Rows of each, shape ``(requests,)``.
            first: Position of each one's first row, as far as the host knows, shape ``(requests,)``.
            query_start: First row of each, and one past the last row, on the device.
            batch_first: As ``first``, on the device, where the device knows better; ``None``: it does not.
            blocks: Finds the KV blocks of a request.
            kv_slots: Takes a KV cache group and tells where each row's keys and values are going to be, int64,
                ``(at least rows,)``; asked only in a step in which gates read what is cached.
        """
        if self.failing:
            return
        rows, requests = int(scheduled.sum()), len(keys)
        self._batch = self.slots.batch(keys, scheduled, first, suspended=self._suspended)
        self._rows, self._blocks = rows, blocks
        self._last_rows = np.cumsum(scheduled, dtype=np.int64) - 1
        taken = self.exporter.take() if self.exporter is not None and not self._suspended else None
        self._stage = self._staging.spare if taken is None else taken
        self._steering.flush()
        if batch_first is None:
            both = to_device(np.stack([self._batch.slots, first.astype(np.int32)]), self._device)
            batch_slot, batch_first = both[0], both[1]
        else:
            batch_slot = to_device(self._batch.slots, self._device)
        map_rows(
            query_start,
            batch_slot,
            batch_first,
            self._steering.segments,
            self._stage.slots,
            self._stage.positions,
            self.taps.row_entry,
            rows,
            requests,
        )
        self._gating = self._gates is not None and self._gates.active
        if self._gates is not None and self._gating:
            cached = self._cached(self._batch.gaps, blocks, kv_slots)
            self._gates.open(self._batch, scheduled, first, self._stage, rows, cached)

    def end(self, kv_slots: Callable[[int], Tensor] | None = None, rejected: Tensor | None = None) -> None:
        """Send what the step left, and clear the row map.

        Args:
            kv_slots: Takes a KV cache group and tells where each row's keys and values went, int64.
            rejected: Which rows are of drafts that were not accepted, bool, ``(rows,)``, on the device: of tokens that
                no request has. ``None``: none.
        """
        if self.failing:
            return None
        if self._batch is None:
            return self._offer_nothing_computed()
        batch, stage = self._batch, self._stage
        if self._steering.active:
            # Dummy and warm-up runs come without a row map of their own.
            self.taps.row_entry.fill_(-1)
        if rejected is not None:
            stage.slots[: self._rows].masked_fill_(rejected, -1)
        if self._gates is not None and self._gating:
            self._gates.close(stage, self._rows)
        kv = self._kv
        commit(
            self.taps.scores,
            stage.slots,
            None if kv is None or kv_slots is None else kv_slots(kv.group),
            None if kv is None else kv.scores,
            stage.scores,
            self._rows,
        )
        self._committed = True
        self._tell_events()
        if self.exporter is not None:
            self._export(self.exporter, batch, stage)
        self._batch, self._stage = None, self._staging.spare
        return None

    def _export(self, exporter: Exporter, batch: Batch, stage: Stage) -> None:
        """Send the rows of a step, behind what is owed to the monitor of the same requests."""
        self._backlog.note(exporter)
        scored = batch.slots >= 0
        if stage is self._staging.spare:
            self._intake.take_changes()
            self.slots.owe(self.slots.begins(batch, scored))
            return exporter.refuse()
        # Behind this step's own scores: a request may find blocks that another one fills in the same step.
        behind = None if self._blocks is None else self._backlog.send(exporter, batch, self._kv, self._blocks)
        sent = scored if behind is None else scored & ~behind
        self.slots.unsent[batch.slots[sent]] = NEVER
        stage.copy(self._rows, self._staging.side)
        states, streamed, copied = self.streams.copy(self._rows, self._last_rows)
        finished, started = self._intake.take_changes()
        step = Step(
            unscored=self.slots.unscored,
            finished=finished,
            started=started,
            stage=stage,
            rows=self._rows,
            describe=_describe_step(batch, stage if self._gating else None, behind),
            states=states,
            streamed=streamed,
            states_copied=copied,
            begins=self.slots.begins(batch, sent),
        )
        self._stage = self._staging.spare
        return exporter.offer(step)

    def fail(self, missed: Any) -> None:
        """A part of a step failed: touch none of its rows, and leave them to :meth:`pass_over`.

        Args:
            missed: The scheduler's output, where it is not taken in yet; else ``None``.
        """
        self.failing = True
        if missed is not None:
            self._intake.missed.append(missed)
            if self._kv is not None and (copies := missed.kv_cache_block_copies):
                self._kv.forget_blocks([target for _, target in copies])
        self.taps.row_entry.fill_(-1)
        if self._gates is not None:
            self._gates.clear()
        stage, self._stage = self._stage, self._staging.spare
        if stage is not self._staging.spare:
            self._staging.give(stage)
        batch, self._batch = self._batch, None
        if batch is not None:
            self.slots.owe(self.slots.begins(batch, batch.slots >= 0))
        self.slots.recover()

    def pass_over(self, kv_slots: Callable[[int], Tensor]) -> None:
        """End a step of which a part failed: its rows are unscored, and no others are taken for theirs."""
        if not self._committed:
            if self._kv is not None and self._scheduled:
                self._kv.forget(kv_slots(self._kv.group)[: self._scheduled])
            self.slots.unscored += self._scheduled
        self._intake.take_changes()
        if self.exporter is not None:
            self.exporter.announce()
            self.exporter.offer(Step(unscored=self.slots.unscored))

    def tell_untapped(self, rows: int) -> None:
        """Say with a step, about once a second, that nothing is scored any more."""
        self.slots.unscored += rows
        if self.exporter is not None and time.monotonic() >= self._next_told:
            self._next_told = time.monotonic() + 1.0
            self.exporter.announce()
            self.exporter.offer(Step(unscored=self.slots.unscored))

    @contextmanager
    def ungated(self) -> Generator[None]:
        """Have no gate judge or steer meanwhile; to be entered and left while no request is in flight."""
        gates, self._gates = self._gates, None
        try:
            yield
        finally:
            self._gates = gates

    def take_stopped(self) -> list[Stop]:
        """Take the requests that gates have stopped with this step."""
        return [] if self._gates is None else self._gates.take_stopped()

    def suspend(self) -> None:
        """Score nothing from the next step on: the weights are not those that the taps were tested with."""
        self._suspended = True

    def resume(self) -> None:
        """Score again."""
        self._suspended = False

    def disarm(self) -> None:
        """Leave every row alone from now on; no request is read any more."""
        self.faults.untapped = True
        self.taps.row_entry.fill_(-1)
        if self._gates is not None:
            self._gates.close_all()
        self.streams.close()

    def _in_flight(self) -> list[Started]:
        return [] if self.faults.untapped else self.slots.in_flight()

    def _settle(self) -> None:
        if self._gates is not None and self._gates.active:
            self._gates.settle()

    def _tell_events(self) -> None:
        events = self._gates.take_events() if self._gates is not None else []
        refused, guarded = self._intake.take_told()
        if self.exporter is not None:
            self.exporter.tell(events, refused, guarded)

    def _offer_nothing_computed(self) -> None:
        to_tell = self._intake.waiting
        if self._gates is not None:
            self._gates.settle()
        self._tell_events()
        if self.exporter is not None and to_tell:
            finished, started = self._intake.take_changes()
            self.exporter.offer(Step(unscored=self.slots.unscored, finished=finished, started=started))

    def _cached(
        self, gaps: list[Gap], blocks: Blocks, kv_slots: Callable[[int], Tensor]
    ) -> tuple[NDArray[np.void], Tensor] | None:
        """The rows that the prefix cache spares this step, and their scores."""
        kv = self._kv
        if kv is None or not gaps:
            return None
        # A block that another request fills in this very step has the scores of the request that had it before.
        kv.forget(kv_slots(kv.group)[: self._rows])
        return np.concatenate([gap.rows() for gap in gaps]), kv.scores[kv.find(blocks, gaps)]


def _describe_step(
    batch: Batch, stage: Stage | None, behind: NDArray[np.bool_] | None
) -> Callable[..., tuple[NDArray[np.void], NDArray[np.bool_] | None]]:
    """Describe the rows of a step.

    Args:
        batch: The step's.
        stage: Where what its gates did is marked as well.
        behind: Requests of the batch whose rows are left out; ``None``: none.
    """

    def describe(
        slots: NDArray[np.int32], positions: NDArray[np.int32], _: NDArray[np.float32]
    ) -> tuple[NDArray[np.void], NDArray[np.bool_] | None]:
        kept = slots >= 0
        rows = batch.describe(slots[kept], positions[kept])
        if stage is not None:
            rows["steered"] |= ((stage.read_gates(len(slots))[kept] & DOWNSTREAM) != 0).any(axis=1)
        if behind is not None:
            stays = np.isin(rows["slot"], batch.slots[behind], invert=True)
            rows = rows[stays]
            kept[np.flatnonzero(kept)] = stays
        return rows, None if kept.all() else kept

    return describe
