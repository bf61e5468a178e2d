"""Intake of the scheduler's output of each step: requests that began and ended, and the orders that ride with it."""

import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from monitor.engine.faults import Faults
from monitor.engine.gates.host import Gates
from monitor.engine.slots import Slots
from monitor.engine.steering.guard import Repeats, release
from monitor.engine.steering.refusals import admission_refusal, refusal
from monitor.engine.streams import Streams
from monitor.errors import OrderError
from monitor.wire.bounds import bounded_id
from monitor.wire.frames import GuardEvent, Refusal, Started
from monitor.wire.orders import Admission, Arm, Order, Release, Steer, Stop, Stream

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
STOPPED_FIELD: Final = "plumbob_stopped"
"""Attribute of ``ModelRunnerOutput`` under which a worker tells the core which requests its gates have stopped."""

LOGGED_REFUSALS: Final = 20
"""Orders refused that are logged, and as many releases by the guard; all go to the monitor."""

logger = logging.getLogger("vllm.plumbob")


class Intake:
    """Takes in what the scheduler says; what is to be told of it waits here for the next frame.

    Args:
        slots: Follow requests.
        gates: The engine's, as long as they are in use.
        streams: Are switched by orders.
        faults: Counts requests that could not be taken in.

    Attributes:
        missed: What the scheduler said in steps in which it was not taken in; as many as may fail one after the other.
    """

    def __init__(self, slots: Slots, gates: Callable[[], Gates | None], streams: Streams, faults: Faults) -> None:
        self._slots, self._gates, self._streams, self._faults = slots, gates, streams, faults
        self.missed: list[Any] = []
        self._started: list[Started] = []
        self._finished: list[int] = []
        self._refused = 0
        self._refusals: list[Refusal] = []
        self._releases = 0
        self._guarded: list[GuardEvent] = []

    @property
    def waiting(self) -> bool:
        """Something waits for a frame."""
        return bool(self._started or self._finished or self._refusals or self._guarded)

    def take_changes(self) -> tuple[list[int], list[Started]]:
        """Take the slots of requests that have ended, and the requests that have begun."""
        finished, self._finished = self._finished, []
        started, self._started = self._started, []
        return finished, started

    def take_told(self) -> tuple[list[Refusal], list[GuardEvent]]:
        """Take what was refused, and whom the guard released."""
        refused, self._refusals = self._refusals, []
        guarded, self._guarded = self._guarded, []
        return refused, guarded

    def update(self, scheduler_output: Any) -> None:
        """Take in who has come and gone, and the orders of this step."""
        while self.missed:
            # Of a step whose update failed: orders are not carried out twice.
            self._take_in(self.missed[0], again=True)
            self.missed.pop(0)
        self._take_in(scheduler_output)
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

    def _take_in(self, scheduler_output: Any, *, again: bool = False) -> None:
        for engine_request_id in scheduler_output.finished_req_ids:
            self._finish(engine_request_id)
        for new in scheduler_output.scheduled_new_reqs:
            try:
                if again:
                    self._finish(new.req_id)
                self._start(new)
            except Exception as error:
                # Of one request: the others of the step are read.
                self._faults.note("start", error)
                logger.exception("Plumbob could not take in a request: it is served unread")
                self._slots.leave_out(new.req_id)

    def _finish(self, engine_request_id: str) -> None:
        if (slot := self._slots.finish(engine_request_id)) is not None:
            self._finished.append(slot)
            if (gates := self._gates()) is not None:
                gates.finish(slot)

    def _start(self, new: Any) -> None:
        arguments: dict[str, Any] = (new.sampling_params.extra_args if new.sampling_params else None) or {}
        admission: Admission | None = arguments.get(ADMISSION_FIELD)
        if new.req_id in self._slots:
            # It was preempted and is steered as before, or is a session that goes on.
            admission = None
        # LoRA makes another model of it, and a prompt of embeddings has no tokens whose roles could be read.
        scored = new.lora_request is None and new.prompt_token_ids is not None
        started = self._slots.start(
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
        gates = self._gates()
        if gates is not None and started is not None:
            gates.start(started)
        elif gates is not None:
            gates.extend(new.req_id, len(new.prompt_token_ids or []))

    def _admit(self, engine_request_id: str, admission: Admission) -> Started | None:
        """Steer a request as it asked for; ``None`` where it is served unsteered instead."""
        try:
            return self._slots.admit(engine_request_id, admission)
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
        event = release(repeats, self._slots, self._gates(), self._releases)
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
        gates = self._gates()
        if isinstance(order, Stream):
            self._streams.select(order.layer, order.rows)
        elif isinstance(order, Steer | Release):
            self._slots.order(order)
        elif isinstance(order, Stop):
            # The core ends the request; there is nothing left for a worker to do.
            pass
        elif gates is None:
            raise OrderError(
                "gate",
                f"Gate '{order.id}' cannot be used: this engine has none.",
                'Start it with "gates": N in additional_config.plumbob.',
            )
        elif isinstance(order, Arm):
            refused = gates.arm(order, self._slots.upcoming, self._slots.require_beside)
            for engine_request_id, error in refused.items():
                self._refuse(refusal(order, error, engine_request_id))
        else:
            gates.disarm(order.id)
