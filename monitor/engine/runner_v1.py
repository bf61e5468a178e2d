"""The V1 model runner: the only module that touches it.

Four methods are wrapped, on every class that defines them (the CPU runner overrides some):

* ``load_model``: puts the taps into the model once its weights are there, before anything is compiled;
* ``_update_states``: finished and new requests, and the orders that ride with the step. It runs even when nothing is
  scheduled, which is how the last request of a burst is seen to end;
* ``_prepare_inputs``: which request each row belongs to, in the order of the batch;
* ``execute_model``: when it returns, the scores are there. Dummy and warm-up runs come through neither of the two
  before, so the row map is cleared after every step.

Nothing here may fail a request: whatever goes wrong disarms the taps, is logged once, and serving goes on.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from monitor.engine.link import Exporter, Step
from monitor.engine.settings import inherited, switched_on
from monitor.engine.slots import Slots
from monitor.engine.taps import Taps
from monitor.engine.wrap import Method, wrap_once
from monitor.frames import ROW, Order, Started
from probes.bundle import load_bundle
from probes.errors import BundleError

ORDERS_FIELD: Final = "plumbob_orders"
"""Attribute of ``SchedulerOutput`` under which orders reach the workers, so that all ranks apply them at one step."""
REQUEST_FIELD: Final = "plumbob"
"""Key of ``SamplingParams.extra_args`` under which the user's request id reaches the workers."""

SLOTS_PER_SEQUENCE: Final = 2
"""Preempted requests keep their slot, so there are more than can run at once."""

logger = logging.getLogger("vllm.plumbob")


class RunnerTap:
    """What one model runner needs: taps, slots, and the way out.

    Args:
        runner: The model runner, its model loaded.
    """

    def __init__(self, runner: Any) -> None:
        settings = inherited()
        bundle = load_bundle(settings.bundle)
        scheduler = runner.vllm_config.scheduler_config
        slots = SLOTS_PER_SEQUENCE * scheduler.max_num_seqs
        self.taps = Taps(runner.model, bundle, runner.max_num_tokens, slots)
        self.slots = Slots(self.taps, bundle, slots)
        self.exporter = (
            Exporter(settings.endpoint, settings.engine, len(bundle.probes), self.slots.in_flight)
            if settings.endpoint
            else None
        )
        self._rows = np.empty(0, ROW)
        self._started: list[Started] = []
        self._finished: list[int] = []
        logger.info(
            "Plumbob reads %d probes at layers %s of %s (bundle %s)",
            len(bundle.probes),
            bundle.layers,
            type(runner.model).__name__,
            bundle.digest[:12],
        )

    def update(self, scheduler_output: Any) -> None:
        """Take in who has come and gone, and the orders of this step."""
        for key in scheduler_output.finished_req_ids:
            if (slot := self.slots.finish(key)) is not None:
                self._finished.append(slot)
        for new in scheduler_output.scheduled_new_reqs:
            arguments = new.sampling_params.extra_args if new.sampling_params else None
            request_id = (arguments or {}).get(REQUEST_FIELD) or new.req_id
            # An adapter makes another model of it, and a prompt of embeddings has no tokens whose roles could be read.
            scored = new.lora_request is None and new.prompt_token_ids is not None
            started = self.slots.start(new.req_id, request_id, new.prompt_token_ids or [], scored=scored)
            if started is not None:
                self._started.append(started)
        orders: list[Order] = getattr(scheduler_output, ORDERS_FIELD, [])
        for order in orders:
            try:
                self.slots.order(order)
            except BundleError as error:
                # One order of a monitor with another bundle is no reason to be switched off.
                logger.warning("Plumbob refused an order: %s", error)

    def map_rows(self, runner: Any, scheduled: Any) -> None:
        """Set the row map of the coming forward pass."""
        batch = runner.input_batch
        keys = batch.req_ids
        self._rows = self.slots.map_rows(keys, scheduled, batch.num_computed_tokens_cpu[: len(keys)])

    def finish_step(self) -> None:
        """Clear the row map and send what the step left."""
        rows, self._rows = self._rows, np.empty(0, ROW)
        if len(rows):
            self.taps.row_slot.fill_(-1)
        if self.exporter is None or not (len(rows) or self._started or self._finished):
            return
        scored = rows["slot"] >= 0
        scores = self.taps.scores[: len(rows)].numpy()
        self.exporter.offer(
            Step(
                rows=rows if scored.all() else rows[scored],
                # Copied, since the buffer is the next step's too.
                scores=scores.copy() if scored.all() else scores[scored],
                unscored=self.slots.unscored,
                finished=self._finished,
                started=self._started,
                monotonic_ns=time.monotonic_ns(),
            )
        )
        self._started, self._finished = [], []

    def disarm(self) -> None:
        """Leave every row alone from now on, and send nothing more."""
        for tap in self.taps.layers.values():
            tap.table[..., 0] = 0.0
        self.taps.row_slot.fill_(-1)
        if self.exporter is not None:
            self.exporter.close()


def install() -> None:
    """Wrap the V1 model runners of this process, once."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    for runner_class in (GPUModelRunner, CPUModelRunner):
        wrap_once(runner_class, "load_model", _load_model)
        wrap_once(runner_class, "_update_states", _update_states)
        wrap_once(runner_class, "_prepare_inputs", _prepare_inputs)
        wrap_once(runner_class, "execute_model", _execute_model)


def _tap_of(runner: Any) -> RunnerTap | None:
    return runner.__dict__.get("plumbob_tap")


def _guarded(runner: Any, step: Callable[[RunnerTap], None]) -> None:
    """Run our part of a step; disarm for good when it fails."""
    tap = _tap_of(runner)
    if tap is None:
        return
    try:
        step(tap)
    except Exception:
        logger.exception("Plumbob failed inside the engine and is switched off; serving goes on, unmonitored")
        runner.plumbob_tap = None
        tap.disarm()


def _load_model(method: Method) -> Method:
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = method(self, *args, **kwargs)
        # A failure here is a start that failed, not a request: it is not guarded.
        if switched_on(self.vllm_config) and _tap_of(self) is None:
            self.plumbob_tap = RunnerTap(self)
        return loaded

    return load_model


def _update_states(method: Method) -> Method:
    def update_states(self: Any, scheduler_output: Any) -> Any:
        result = method(self, scheduler_output)
        _guarded(self, lambda tap: tap.update(scheduler_output))
        return result

    return update_states


def _prepare_inputs(method: Method) -> Method:
    def prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        result = method(self, scheduler_output, num_scheduled_tokens)
        _guarded(self, lambda tap: tap.map_rows(self, num_scheduled_tokens))
        return result

    return prepare_inputs


def _execute_model(method: Method) -> Method:
    def execute_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        _guarded(self, lambda tap: tap.finish_step())
        return result

    return execute_model
