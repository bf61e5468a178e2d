"""Everything around one model runner's taps: slots, steering, gates, scores of cached prefixes, and frames out.

The wrappers of both runners (:mod:`monitor.engine.vllm.runner_v1`, :mod:`monitor.engine.vllm.runner_v2`) call, for each
step and in this order: :meth:`RunnerTap.update`, :meth:`RunnerTap.begin` before the forward pass, and
:meth:`RunnerTap.end` behind it. A step in which nothing is computed is updated and ended. Nothing here may fail a
request: what goes wrong disarms the taps, is logged once, and serving goes on (:func:`guarded`).
"""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.profiler import record_function

from monitor.engine.batch import Batch, Gap
from monitor.engine.exporter import Exporter, Step
from monitor.engine.gates.history import DOWNSTREAM
from monitor.engine.gates.host import Gates
from monitor.engine.kv_scores import KvScores, find_group
from monitor.engine.rows import commit, map_rows
from monitor.engine.settings import inherited
from monitor.engine.slots import Slots
from monitor.engine.staging import Stage, Staging
from monitor.engine.steering.guard import Repeats, release
from monitor.engine.steering.refusals import admission_refusal, refusal
from monitor.engine.steering.table import ENTRIES_PER_SLOT, Steering, to_device
from monitor.engine.streams import Streams
from monitor.engine.taps import Taps
from monitor.errors import OrderError
from monitor.wire.bounds import bounded_id
from monitor.wire.frames import GuardEvent, Refusal, Started
from monitor.wire.orders import Admission, Arm, Order, Release, Steer, Stop, Stream
from probes.bundle import load_bundle

ORDERS_FIELD: Final = "plumbob_orders"
"""Attribute of ``SchedulerOutput`` under which orders reach the workers, so that all ranks apply them at one step."""
REQUEST_FIELD: Final = "plumbob"
"""Key of ``SamplingParams.extra_args`` under which the user's request id reaches the workers."""
PART_FIELD: Final = "plumbob_part"
"""The same for which part of the user's request it is."""
TYPED_FIELD: Final = "plumbob_typed"
"""The same for whether markers of the chat template were typed into its messages; written by the front alone."""
ADMISSION_FIELD: Final = "plumbob_admission"
"""The same for what a request itself asked for, an ``Admission``; always written by the core."""
REFUSALS_FIELD: Final = "plumbob_refusals"
"""Attribute of ``SchedulerOutput`` under which the core says what it refused, for the exporter to tell."""
REPEATS_FIELD: Final = "plumbob_repeats"
"""The same for answers that repeat themselves."""

LOGGED_REFUSALS: Final = 20
"""Orders refused that are logged, and as many releases by the guard; all go to the monitor."""
SLOTS_PER_SEQUENCE: Final = 2
"""Preempted requests keep their slot, so there are more than can run at once."""

logger = logging.getLogger("vllm.plumbob")


class Blocks(Protocol):
    """Finds the KV blocks of a request."""

    def __call__(self, engine_request_id: str, group: int, /) -> Sequence[int]:
        """Block ids of a request in one KV cache group, in the order of its positions."""
        ...


class RunnerTap:
    """The taps of one model runner, and everything around them.

    Args:
        vllm_config: Of the engine.
        model: Weights loaded, not yet compiled.
        device: Where it runs.
        max_rows: The most rows of a step.
        exports: Whether this process tells the monitor: one rank does.
    """

    def __init__(
        self, vllm_config: Any, model: nn.Module, device: torch.device, max_rows: int, *, exports: bool
    ) -> None:
        settings = inherited()
        bundle = load_bundle(settings.bundle)
        slots = SLOTS_PER_SEQUENCE * vllm_config.scheduler_config.max_num_seqs
        self.bundle = bundle
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
            Exporter(settings.endpoint, settings.engine, len(bundle.probes), self.slots.in_flight, self._staging)
            if settings.endpoint and exports
            else None
        )
        self._device = device
        self._kv: KvScores | None = None
        self._suspended = False
        self._stage = self._staging.spare
        self._batch: Batch | None = None
        self._rows = 0
        self._last_rows = np.empty(0, np.int64)
        self._blocks: Blocks | None = None
        self._started: list[Started] = []
        self._finished: list[int] = []
        self._refused = 0
        self._refusals: list[Refusal] = []
        self._releases = 0
        self._guarded: list[GuardEvent] = []
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

    def update(self, scheduler_output: Any) -> None:
        """Take in who has come and gone, and the orders of this step."""
        for engine_request_id in scheduler_output.finished_req_ids:
            if (slot := self.slots.finish(engine_request_id)) is not None:
                self._finished.append(slot)
                if self._gates is not None:
                    self._gates.finish(slot)
        for new in scheduler_output.scheduled_new_reqs:
            arguments: dict[str, Any] = (new.sampling_params.extra_args if new.sampling_params else None) or {}
            admission: Admission | None = arguments.get(ADMISSION_FIELD)
            if new.req_id in self.slots:
                # It was preempted and is steered as before, or is a session that goes on.
                admission = None
            # LoRA makes another model of it, and a prompt of embeddings has no tokens whose roles could be read.
            scored = new.lora_request is None and new.prompt_token_ids is not None
            started = self.slots.start(
                new.req_id,
                arguments.get(REQUEST_FIELD) or bounded_id(new.req_id),
                new.prompt_token_ids or [],
                scored=scored,
                part=arguments.get(PART_FIELD, ""),
                typed=arguments.get(TYPED_FIELD) is True,
            )
            if admission is not None:
                started = self._admit(new.req_id, admission) or started
            if started is not None:
                self._started.append(started)
            if self._gates is not None and started is not None:
                self._gates.start(started)
            elif self._gates is not None:
                self._gates.extend(new.req_id, len(new.prompt_token_ids or []))
        for refused in getattr(scheduler_output, REFUSALS_FIELD, []):
            self._refuse(refused)
        for repeats in getattr(scheduler_output, REPEATS_FIELD, []):
            self._release(repeats)
        orders: list[Order] = getattr(scheduler_output, ORDERS_FIELD, [])
        for order in orders:
            try:
                self._carry_out(order)
            except OrderError as error:
                # One order of a monitor with another bundle is no reason to be switched off.
                self._refuse(refusal(order, error))
        if self._kv is not None and (copies := scheduler_output.kv_cache_block_copies):
            self._kv.copy_blocks(copies)

    def _admit(self, engine_request_id: str, admission: Admission) -> Started | None:
        """Steer a request as it asked for; ``None`` where it is served unsteered instead."""
        try:
            return self.slots.admit(engine_request_id, admission)
        except OrderError as error:
            self._refuse(admission_refusal(engine_request_id, error))
            return None

    def _refuse(self, refused: Refusal) -> None:
        """Say so to the monitor, and in the log the first few times."""
        self._refused += 1
        self._refusals.append(msgspec.structs.replace(refused, number=self._refused - 1))
        if self._refused <= LOGGED_REFUSALS:
            logger.warning("Plumbob refused an order: %s", refused.reason)

    def _release(self, repeats: Repeats) -> None:
        """Release an answer that repeats itself; tell the monitor, and the log the first few times."""
        event = release(repeats, self.slots, self._gates, self._releases)
        if event is None:
            return
        self._releases += 1
        self._guarded.append(event)
        if self._releases <= LOGGED_REFUSALS:
            logger.warning(
                "Plumbob's guard: request %s repeats itself (%.0f%% of %d tokens) and is steered no more",
                event.request_id,
                100 * event.repetition,
                event.window,
            )

    def _carry_out(self, order: Order) -> None:
        if isinstance(order, Stream):
            self.streams.select(order.layer, order.rows)
        elif isinstance(order, Steer | Release):
            self.slots.order(order)
        elif isinstance(order, Stop):
            # The core ends the request; there is nothing left for a worker to do.
            pass
        elif self._gates is None:
            raise OrderError(
                "gate",
                f"Gate '{order.id}' cannot be used: this engine has none.",
                'Start it with "gates": N in additional_config.plumbob.',
            )
        elif isinstance(order, Arm):
            refused = self._gates.arm(order, self.slots.upcoming, self.slots.require_beside)
            for engine_request_id, error in refused.items():
                self._refuse(refusal(order, error, engine_request_id))
        else:
            self._gates.disarm(order.id)

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
        batch, self._batch = self._batch, None
        stage, self._stage = self._stage, self._staging.spare
        if batch is None:
            return self._offer_nothing_computed()
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
        self._tell_events()
        if self.exporter is None:
            return None
        if batch.gaps and kv is not None and self._blocks is not None:
            # Behind this step's own scores: a request may find blocks that another one fills in the same step.
            self._offer_cached(kv, batch.gaps, self._blocks)
        if stage is self._staging.spare:
            self._started, self._finished = [], []
            return self.exporter.refuse()
        stage.copy(self._rows, self._staging.side)
        states, streamed, copied = self.streams.copy(self._rows, self._last_rows)
        step = Step(
            unscored=self.slots.unscored,
            finished=self._finished,
            started=self._started,
            stage=stage,
            rows=self._rows,
            describe=_describe_step(batch, stage if self._gating else None),
            states=states,
            streamed=streamed,
            states_copied=copied,
        )
        self._started, self._finished = [], []
        return self.exporter.offer(step)

    @contextmanager
    def ungated(self) -> Generator[None]:
        """Have no gate judge or steer meanwhile; to be entered and left while no request is in flight."""
        gates, self._gates = self._gates, None
        try:
            yield
        finally:
            self._gates = gates

    def suspend(self) -> None:
        """Score nothing from the next step on: the weights are not those that the taps were tested with."""
        self._suspended = True

    def resume(self) -> None:
        """Score again."""
        self._suspended = False

    def disarm(self) -> None:
        """Leave every row alone from now on, and send nothing more."""
        self.taps.row_entry.fill_(-1)
        if self._gates is not None:
            self._gates.close_all()
        self.streams.close()
        if self.exporter is not None:
            self.exporter.close()

    def _tell_events(self) -> None:
        events = self._gates.take_events() if self._gates is not None else []
        refused, self._refusals = self._refusals, []
        guarded, self._guarded = self._guarded, []
        if self.exporter is not None:
            self.exporter.tell(events, refused, guarded)

    def _offer_nothing_computed(self) -> None:
        to_tell = bool(self._started or self._finished or self._refusals or self._guarded)
        if self._gates is not None:
            self._gates.settle()
        self._tell_events()
        if self.exporter is not None and to_tell:
            step = Step(unscored=self.slots.unscored, finished=self._finished, started=self._started)
            self._started, self._finished = [], []
            self.exporter.offer(step)

    def _cached(
        self, gaps: list[Gap], blocks: Blocks, kv_slots: Callable[[int], Tensor]
    ) -> tuple[NDArray[np.void], Tensor] | None:
        """The rows that the prefix cache spares this step, and their scores."""
        kv = self._kv
        if kv is None or not gaps:
            return None
        # A block that another request fills in this very step has the scores of the request that had it before.
        kv.scores.index_fill_(0, kv_slots(kv.group)[: self._rows], torch.nan)
        places = np.concatenate(
            [kv.slots(blocks(gap.request.engine_request_id, kv.group), gap.start, gap.end) for gap in gaps]
        )
        return np.concatenate([gap.rows() for gap in gaps]), kv.scores[to_device(places, self._device)]

    def _offer_cached(self, kv: KvScores, gaps: list[Gap], blocks: Blocks) -> None:
        """Frames of what was found in the prefix cache, ahead of what was computed."""
        exporter = self.exporter
        if exporter is None:
            return
        rows = np.concatenate([gap.rows() for gap in gaps])
        kv_slots = np.concatenate(
            [kv.slots(blocks(gap.request.engine_request_id, kv.group), gap.start, gap.end) for gap in gaps]
        )
        size = len(self.taps.scores)
        for begin in range(0, len(rows), size):
            part = slice(begin, begin + size)
            stage = exporter.take()
            if stage is None:
                exporter.refuse()
                continue
            count = len(rows[part])
            torch.index_select(kv.scores, 0, to_device(kv_slots[part], self._device), out=stage.scores[:count])
            stage.copy(count, self._staging.side)
            exporter.offer(
                Step(
                    unscored=self.slots.unscored,
                    finished=self._finished,
                    started=self._started,
                    stage=stage,
                    rows=count,
                    describe=_describe_cached(rows[part]),
                )
            )
            self._started, self._finished = [], []


def _describe_step(
    batch: Batch, stage: Stage | None
) -> Callable[..., tuple[NDArray[np.void], NDArray[np.bool_] | None]]:
    """Describe the rows of a step; with ``stage``, what its gates did is marked as well."""

    def describe(
        slots: NDArray[np.int32], positions: NDArray[np.int32], _: NDArray[np.float32]
    ) -> tuple[NDArray[np.void], NDArray[np.bool_] | None]:
        kept = slots >= 0
        rows = batch.describe(slots[kept], positions[kept])
        if stage is not None:
            rows["steered"] |= ((stage.read_gates(len(slots))[kept] & DOWNSTREAM) != 0).any(axis=1)
        return rows, None if kept.all() else kept

    return describe


def _describe_cached(rows: NDArray[np.void]) -> Callable[..., tuple[NDArray[np.void], NDArray[np.bool_] | None]]:
    def describe(
        _: NDArray[np.int32], __: NDArray[np.int32], scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.void], NDArray[np.bool_] | None]:
        # NaN throughout: never scored. One score that is NaN is the probe's own failure, and is passed on.
        kept = np.logical_not(np.isnan(scores).all(axis=1))
        return rows[kept], kept

    return describe


def tap_of(runner: Any) -> RunnerTap | None:
    """The tap of a model runner, ``None`` where it has none or was switched off."""
    return runner.__dict__.get("plumbob_tap")


def guarded(runner: Any, name: str, step: Callable[[RunnerTap], None]) -> None:
    """Run our part of a step; disarm for good when it fails.

    Args:
        runner: The model runner.
        name: Of the part, in profiles.
        step: The part.
    """
    tap = tap_of(runner)
    if tap is None:
        return
    try:
        with record_function(f"plumbob: {name}"):
            step(tap)
    except Exception:
        logger.exception("Plumbob failed inside the engine and is switched off; serving goes on, unmonitored")
        runner.plumbob_tap = None
        tap.disarm()
