"""The engine core: the user's request ids, orders that ride with a step, and a prefix cache without steered blocks.

* ``Scheduler.__init__`` introduces the engine to the monitor; plugins are loaded too late for that of the engine core.
* ``EngineCore.preprocess_add_request`` is the last place that knows the id which the user of the API sees; it travels
  to the workers in ``extra_args``, and so does what the request asked for (:mod:`monitor.engine.vllm.admission`).
* ``Scheduler.schedule`` takes the orders that have arrived, and what undoes those whose lease has ended
  (:mod:`monitor.engine.steering.leases`), and attaches them to the step, so that every rank applies them at the same
  one. Those to stop a generation it carries out itself, and ``Scheduler.update_from_output`` says so to who waits for
  the answer; before it hands out a step's tokens, it ends the requests that gates have stopped in that step. It also
  tells the workers which steered answers repeat themselves (:mod:`monitor.engine.steering.guard`).
* ``KVCacheCoordinator.cache_blocks`` stops at the first token that may be steered: steered KV never serves anyone else.
  Where a gate judges, it stops also at what the step itself computes, so that whatever is found was read before.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from monitor.engine.gates.compiling import gate_entries, judgement
from monitor.engine.inbox import OrderInbox
from monitor.engine.intake import (
    ADMISSION_FIELD,
    ORDERS_FIELD,
    PART_FIELD,
    REFUSALS_FIELD,
    REPEATS_FIELD,
    REQUEST_FIELD,
    STOPPED_FIELD,
)
from monitor.engine.selftest import outcome_of
from monitor.engine.settings import Settings, inherited, switched_on
from monitor.engine.steering.caps import require_together
from monitor.engine.steering.guard import Guard, Repeats
from monitor.engine.steering.leases import Leases
from monitor.engine.steering.refusals import refusal
from monitor.engine.vllm import admission
from monitor.engine.vllm.requests import named
from monitor.engine.vllm.stop import deliver, stop
from monitor.engine.vllm.versions import vllm_version
from monitor.engine.vllm.wrap import Method, require_fields, wrap_once
from monitor.errors import OrderError
from monitor.wire.frames import VERSION, Hello, Refusal
from monitor.wire.orders import Arm, Disarm, Order, Steer, Stop
from probes.bundle import load_bundle

logger = logging.getLogger("vllm.plumbob")

_ALL: Final = 2**31 - 1
"""So many tokens of a request are clean: nothing steers it."""


def install() -> None:
    """Wrap the engine core's classes of this process, once."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore

    require_fields(SamplingParams, "extra_args")
    require_fields(SchedulerOutput, "finished_req_ids", "scheduled_new_reqs", "kv_cache_block_copies")
    wrap_once(EngineCore, "preprocess_add_request", _preprocess_add_request)
    wrap_once(Scheduler, "__init__", _init)
    wrap_once(Scheduler, "add_request", _add_request)
    wrap_once(Scheduler, "schedule", _schedule)
    wrap_once(Scheduler, "update_from_output", _update_from_output)
    wrap_once(KVCacheCoordinator, "cache_blocks", _cache_blocks)


def _init(method: Method) -> Method:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        method(self, *args, **kwargs)
        settings = inherited() if switched_on(self.vllm_config) else None
        if settings is not None and settings.guard:
            speculative = self.vllm_config.speculative_config
            self.plumbob_guard = Guard(1 if speculative is None else 1 + speculative.num_speculative_tokens)
        if settings is not None and settings.endpoint is not None:
            self.plumbob_inbox = OrderInbox(settings.endpoint, _hello(self.vllm_config, settings))
            self.plumbob_leases = Leases()
            if settings.gates:
                self.plumbob_gates = dict[str, Arm]()
                self.plumbob_bundle = load_bundle(settings.bundle)

    return init


def _preprocess_add_request(method: Method) -> Method:
    def preprocess_add_request(self: Any, request: Any) -> Any:
        if switched_on(self.vllm_config) and request.sampling_params is not None:
            arguments = request.sampling_params.extra_args or {}
            # The front has refused what may not be; this is for requests that come by another way.
            written = arguments.get(admission.FIELD)
            admitted = None if written is None else admission.read_admission(written)
            if admitted is not None and admitted.prompt:
                # Steered keys and values serve nobody else, and others' unsteered ones do not serve it.
                request.cache_salt = f"{request.cache_salt or ''}plumbob-{request.request_id}"
            request_id, part = named(request.request_id, request.external_req_id)
            # A new dictionary: with n > 1, siblings share the old one. What a client wrote there is overwritten.
            request.sampling_params.extra_args = {
                **arguments,
                REQUEST_FIELD: request_id,
                PART_FIELD: part,
                ADMISSION_FIELD: admitted,
            }
        return method(self, request)

    return preprocess_add_request


def _schedule(method: Method) -> Method:
    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        orders, refusals, repeats = list[Order](), list[Refusal](), list[Repeats]()
        try:
            _gather(self, orders, refusals, repeats)
        except Exception as error:
            # What was gathered before rides with the step; serving goes on.
            _note_fault(self, "orders", error)
        output = method(self, *args, **kwargs)
        if orders:
            setattr(output, ORDERS_FIELD, orders)
        if refusals:
            setattr(output, REFUSALS_FIELD, refusals)
        if repeats:
            setattr(output, REPEATS_FIELD, repeats)
        return output

    return schedule


def _gather(scheduler: Any, orders: list[Order], refusals: list[Refusal], repeats: list[Repeats]) -> None:
    """Gather what is to ride with the coming step, in the lists that are given."""
    inbox: OrderInbox | None = scheduler.__dict__.get("plumbob_inbox")
    guard: Guard | None = scheduler.__dict__.get("plumbob_guard")
    # Before the orders: what they steer from this step on has yielded no token yet.
    if guard is not None:
        repeats += guard.judge(scheduler.requests)
    if inbox is None:
        return
    arrived, refused = scheduler.plumbob_leases.take(inbox.take(), time.monotonic(), scheduler.requests.keys())
    refusals += refused
    refusals += _stop(scheduler, arrived)
    for order in arrived:
        # Blocks registered so far hold only tokens scheduled before this step, and this order begins with it.
        if isinstance(order, Steer) and (request := scheduler.requests.get(order.engine_request_id)) is not None:
            _keep_private(scheduler, request, request.num_computed_tokens)
    kept, unarmed = _note_gates(scheduler, arrived)
    orders += kept
    refusals += unarmed
    if orders:
        inbox.hello = msgspec.structs.replace(inbox.hello, armed=sorted(scheduler.__dict__.get("plumbob_gates", ())))


def _note_fault(scheduler: Any, part: str, error: Exception) -> None:
    inbox: OrderInbox | None = scheduler.__dict__.get("plumbob_inbox")
    if inbox is None or inbox.faults.count == 0:
        logger.exception("Plumbob failed inside the engine core ('%s'); serving goes on", part)
    if inbox is not None:
        inbox.faults.note(part, error)


def _stop(scheduler: Any, orders: Sequence[Order]) -> list[Refusal]:
    """End the generations that are to be stopped; what could not be done."""
    refusals: list[Refusal] = []
    for order in orders:
        if isinstance(order, Stop):
            try:
                answer = stop(scheduler, order)
            except OrderError as error:
                refusals.append(refusal(order, error))
            else:
                scheduler.__dict__.setdefault("plumbob_answers", []).append(answer)
    return refusals


def _update_from_output(method: Method) -> Method:
    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any, *args: Any) -> Any:
        # Ended before vLLM looks at the step's tokens: those of requests that have ended go nowhere. Where a request
        # has ended meanwhile, as with two gates at once, there is nothing to refuse: nobody ordered it.
        if stopped := getattr(model_runner_output, STOPPED_FIELD, []):
            try:
                _stop(self, stopped)
            except Exception as error:
                _note_fault(self, "stops", error)
        outputs = method(self, scheduler_output, model_runner_output, *args)
        _count_step(self, scheduler_output)
        if answers := self.__dict__.pop("plumbob_answers", []):
            deliver(outputs, answers)
        return outputs

    return update_from_output


def _count_step(scheduler: Any, computed: Any) -> None:
    """Have HELLO say how far the engine has come: a monitor that gets no frames meanwhile says that nobody reads."""
    inbox: OrderInbox | None = scheduler.__dict__.get("plumbob_inbox")
    if inbox is None:
        return
    try:
        inbox.steps = (inbox.steps or 0) + (computed.total_num_scheduled_tokens > 0)
        inbox.running = len(scheduler.running)
    except Exception as error:
        _note_fault(scheduler, "count steps", error)


def _keep_private(scheduler: Any, request: Any, clean_tokens: int) -> None:
    """A request may be steered: let no token from here on enter the prefix cache, and the guard watch the answer."""
    guard: Guard | None = scheduler.__dict__.get("plumbob_guard")
    if guard is not None:
        guard.watch(request.request_id)
    request.plumbob_clean_tokens = min(getattr(request, "plumbob_clean_tokens", clean_tokens), clean_tokens)


def _judge(scheduler: Any, request: Any, clean_tokens: int) -> None:
    """Gates judge a request: keep what they may steer private, and let others find no more than what was read."""
    gates: dict[str, Arm] = scheduler.__dict__.get("plumbob_gates") or {}
    if any(gate.acts for gate in gates.values()):
        _keep_private(scheduler, request, clean_tokens)
    elif gates:
        request.plumbob_clean_tokens = getattr(request, "plumbob_clean_tokens", _ALL)


def _note_gates(scheduler: Any, orders: list[Order]) -> tuple[list[Order], list[Refusal]]:
    """Keep private what gates may steer from this step on, and remember them for the requests that come.

    Returns:
        The orders without gates that cannot be armed, and why they cannot. The workers never see these: they would arm
        what nobody here ends when its lease does, and whose answers nobody keeps private.
    """
    gates: dict[str, Arm] | None = scheduler.__dict__.get("plumbob_gates")
    if gates is None:
        return orders, []
    kept, refusals = list[Order](), list[Refusal]()
    for order in orders:
        if isinstance(order, Arm):
            try:
                _require_armable(scheduler, gates, order)
            except OrderError as error:
                scheduler.plumbob_leases.forget(order)
                refusals.append(refusal(order, error))
                continue
            gates[order.id] = order
            for request in scheduler.requests.values():
                _judge(scheduler, request, max(request.num_computed_tokens, request.num_prompt_tokens - 1))
        elif isinstance(order, Disarm):
            gates.pop(order.id, None)
        kept.append(order)
    return kept, refusals


def _require_armable(scheduler: Any, gates: dict[str, Arm], order: Arm) -> None:
    """Check that there is a place, and that the bundle allows it; what only the workers know, they refuse."""
    most = scheduler.plumbob_inbox.hello.gates or 0
    if order.id not in gates and len(gates) >= most:
        raise OrderError("gate", f"All {most} gates are in use.", "Disarm one, or start the engine with more.")
    if order.stop is not None and (
        scheduler.vllm_config.use_v2_model_runner or scheduler.vllm_config.device_config.device_type != "cpu"
    ):
        # There, flags reach the host a step or two later: a token would have left.
        raise OrderError(
            "gate",
            f"Gate '{order.id}' is to stop generations, which gates do in engines on a CPU alone so far.",
            "The monitor stops them, from the next step on.",
        )
    judgement(scheduler.plumbob_bundle, order)
    gate_entries(scheduler.plumbob_bundle, order)
    others = [gate for gate in gates.values() if gate.id != order.id]
    require_together(scheduler.plumbob_bundle, {}, [*others, order])


def _add_request(method: Method) -> Method:
    """Keep the answer of a request that a gate may steer private: what a gate decides is known only behind the step.

    Its prompt is shared as ever: a gate steers no row before the prompt's last. So it is with a request that asked to
    be steered; where that is about the prompt as well, the prompt has a salt of its own.
    """

    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        sampling = request.sampling_params
        if sampling and (sampling.extra_args or {}).get(ADMISSION_FIELD):
            _keep_private(self, request, request.num_prompt_tokens - 1)
        _judge(self, request, request.num_prompt_tokens - 1)
        return method(self, request, *args, **kwargs)

    return add_request


def _cache_blocks(method: Method) -> Method:
    def cache_blocks(self: Any, request: Any, num_computed_tokens: int) -> Any:
        clean = getattr(request, "plumbob_clean_tokens", None)
        if clean is not None:
            # What this step computes is for the next one to cache. A request that found it within this step would have
            # tokens that no gate has read: their scores are not there before the step is over.
            num_computed_tokens = min(num_computed_tokens, clean, request.num_computed_tokens)
        return method(self, request, num_computed_tokens)

    return cache_blocks


def _hello(vllm_config: Any, settings: Settings) -> Hello:
    model_config = vllm_config.model_config
    served = model_config.served_model_name
    tested = outcome_of(settings.engine)
    name = served[0] if isinstance(served, list) and served else served
    return Hello(
        version=VERSION,
        engine=settings.engine,
        model=str(name or model_config.model),
        bundle=load_bundle(settings.bundle).digest,
        vllm=vllm_version(),
        drift=tested.drift,
        shadow=tested.shadow,
        gates=settings.gates,
        armed=[],
    )
