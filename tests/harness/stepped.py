"""An engine that tests reach into: core, worker and the monitor's end in one process, which takes each step by hand.

So orders arrive at the very step that they are meant for, no frame is lost, and what is left in the engine's tables can
be read. Tests send functions into the process (:meth:`Engine.do`), those at the end of this module among them.
"""

import itertools
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from monitor.ingest import Arrival, MemorySource, read_arrival
from monitor.policy import Policy
from monitor.service.monitor import Monitor
from monitor.sinks import MemorySink
from monitor.wire.frames import Refusal
from monitor.wire.orders import Disarm, Order
from probes.bundle import load_bundle
from tests.harness import warm
from tests.harness.wire import Seen, Wire

SECONDS = 120.0
"""Until what is waited for must have come, on a machine that does other things beside."""


@dataclass(frozen=True)
class Ask:
    """A request, and what happens to it."""

    prompt: list[int]
    tokens: int
    asked: str = ""
    """What it says in ``vllm_xargs.plumbob``."""
    orders: tuple[Order, ...] = ()
    """Sent when it has ``after`` tokens, with its key."""
    after: int = 1
    abort: int | None = None
    """Whoever asked goes away when it has so many tokens; ``None``: stays."""


@dataclass(frozen=True)
class Told:
    """What came of it."""

    ask: Ask
    ids: list[int]
    """Tokens of the answer."""
    logprobs: np.ndarray
    """Of the whole vocabulary, ``(tokens, vocabulary)``."""
    cached: int
    """Tokens of the prompt that came from the prefix cache."""
    seen: Seen


@dataclass(frozen=True)
class Answer:
    """A request's answer as its client gets it, and what was told of it."""

    ids: list[int]
    text: str
    logprobs: list[float]
    """Of each token."""
    ended: tuple[str | None, int | str | None]
    """Reasons to finish and to stop."""
    seen: Seen


class Engine:
    """The process, from outside.

    Args:
        settings: Arguments of ``vllm.LLM``.
        endpoint: Where the monitor's end is to bind.
    """

    def __init__(self, settings: dict[str, Any], endpoint: str) -> None:
        context = warm.context()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, settings, endpoint))
        self._process.start()
        theirs.close()
        self._receive()

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of a module in there, with :class:`Inside` first."""
        self._pipe.send((function, arguments))
        return self._receive()

    def close(self) -> None:
        """End it."""
        self._pipe.close()
        self._process.join(30)
        self._process.kill()

    def _receive(self) -> Any:
        # Ends with EOFError where the process does.
        ok, answer = self._pipe.recv()
        assert ok, answer
        return answer


class Inside:
    """The engine from inside, and the monitor's end."""

    def __init__(self, settings: dict[str, Any], endpoint: str) -> None:
        from vllm import LLM

        self.wire = Wire(endpoint)
        self.llm = LLM(**settings)
        self.scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        (runner,) = self.llm.llm_engine.collective_rpc(lambda worker: worker.model_runner)
        self.tap = runner.plumbob_tap
        self.names = map(str, itertools.count())
        self.relayed = 0
        """Orders of a monitor that this step has led to."""
        self.until(lambda: self.wire.engine and not self.tap.exporter._away)

    def step(self) -> list[Any]:
        """One step; the monitor's end has read of it, and what it orders then rides with the next."""
        waiting, exporter = self.scheduler.plumbob_inbox._orders, self.tap.exporter
        outputs = self.llm.llm_engine.step()
        expected, self.relayed = waiting.qsize(), 0
        self.until(lambda: [*self.wire.sequences[-1:], -1][0] == exporter._sequence - 1)
        self.until(lambda: waiting.qsize() == expected + self.relayed)
        return outputs

    def order(self, *orders: Order) -> None:
        """Orders that ride with the next step."""
        waiting = self.scheduler.plumbob_inbox._orders
        expected = waiting.qsize() + len(orders)
        for order in orders:
            self.wire.order(order)
        self.until(lambda: waiting.qsize() == expected)

    def until(self, condition: Callable[[], object]) -> None:
        """Read what the engine tells until it holds."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            self.wire.pump(0.01)


def _serve(pipe: Any, settings: dict[str, Any], endpoint: str) -> None:
    # The engine core and the worker in this process as well; so small a model is slower on several threads.
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="WARNING", OMP_NUM_THREADS="1")
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    import torch

    # The fork server has read OMP_NUM_THREADS long ago.
    torch.set_num_threads(1)
    inside = None
    while True:
        try:
            if inside is None:
                inside = Inside(settings, endpoint)
                pipe.send((True, None))
            function, arguments = pipe.recv()
            pipe.send((True, function(inside, *arguments)))
        except EOFError:
            return
        except Exception:
            pipe.send((False, traceback.format_exc()))
            if inside is None:
                return


def generate(inside: Inside, asks: Sequence[Ask], fresh: bool = False) -> list[Told]:
    """Serve requests, as many at once as the engine takes, greedily and beyond the end of sequence.

    Args:
        inside: The engine.
        asks: What is asked.
        fresh: Empty the prefix cache first.
    """
    from vllm import SamplingParams

    if fresh:
        assert inside.llm.reset_prefix_cache()
    asked = dict(zip(inside.names, asks, strict=False))
    for name, ask in asked.items():
        sampling = SamplingParams(temperature=0.0, max_tokens=ask.tokens, ignore_eos=True, detokenize=False)
        sampling.logprobs, sampling.extra_args = -1, {"plumbob": ask.asked} if ask.asked else None
        inside.llm.llm_engine.add_request(name, {"prompt_token_ids": ask.prompt}, sampling)
    outputs: dict[str, Any] = {}
    ordered: set[str] = set()
    while inside.llm.llm_engine.has_unfinished_requests():
        for output in inside.step():
            name, ask = output.request_id, asked[output.request_id]
            outputs[name], count = output, len(output.outputs[0].token_ids)
            if output.finished:
                continue
            if count == ask.abort:
                inside.llm.llm_engine.abort_request([name])
            elif ask.orders and count >= ask.after and name not in ordered:
                ordered.add(name)
                key = _seen(inside, [name])[name].started.engine_request_id
                inside.order(*(msgspec.structs.replace(order, engine_request_id=key) for order in ask.orders))
    # Who has ended is told with the step after.
    inside.step()
    seen = _seen(inside, asked)
    return [_told(ask, outputs[name], seen[name]) for name, ask in asked.items()]


def answers(
    inside: Inside,
    prompts: Sequence[list[int]],
    tokens: int,
    orders: Sequence[Order] = (),
    after: int = 10,
) -> list[Answer]:
    """Serve requests greedily and beyond the end of sequence.

    Args:
        inside: The engine.
        prompts: Of all requests, which are served at once.
        tokens: The most of each answer.
        orders: Arrive between the step with which the last request has ``after`` tokens and the one behind it; those
            that name no request are for that one.
        after: See ``orders``.
    """
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, logprobs=1)
    names = list(itertools.islice(inside.names, len(prompts)))
    for name, prompt in zip(names, prompts, strict=True):
        inside.llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
    outputs: dict[str, Any] = {}
    while inside.llm.llm_engine.has_unfinished_requests():
        outputs |= {output.request_id: output.outputs[0] for output in inside.step()}
        if orders and names[-1] in outputs and len(outputs[names[-1]].token_ids) == after:
            key = _seen(inside, names)[names[-1]].started.engine_request_id
            inside.order(*(_about(order, key) for order in orders))
            orders = ()
    # Who has ended is told with the step after.
    inside.step()
    seen = _seen(inside, names)
    return [
        Answer(
            list(output.token_ids),
            output.text,
            [step[token].logprob for token, step in zip(output.token_ids, output.logprobs, strict=True)],
            (output.finish_reason, output.stop_reason),
            seen[name],
        )
        for name, output in ((name, outputs[name]) for name in names)
    ]


def _about(order: Order, key: str) -> Order:
    named = getattr(order, "engine_request_id", None)
    return msgspec.structs.replace(order, engine_request_id=key) if named == "" else order


def refusals(inside: Inside) -> list[Refusal]:
    """What the engine has refused since its start."""
    return [refusal for _, refusal in sorted(inside.wire.refused.items())]


def begin_monitoring(inside: Inside, bundle: Path, policy: Policy) -> None:
    """Have a monitor read each step's frame, and its orders ride with the next step."""
    source, inside.sink = MemorySource(), MemorySink()
    inside.monitor = Monitor(load_bundle(bundle), policy, source, sinks=[inside.sink])

    def relay(identity: bytes, parts: list[bytes]) -> None:
        inside.monitor.receive(read_arrival(identity, parts))
        for receiver, message in source.sent:
            inside.wire.send(receiver, message)
            inside.relayed += receiver.endswith(b"/core")
        source.sent.clear()

    inside.wire.relay = relay
    # The engine said HELLO before.
    inside.monitor.receive(Arrival(f"{inside.wire.engine}/core".encode(), inside.wire.hello))
    waiting, expected = inside.scheduler.plumbob_inbox._orders, len(source.sent)
    for receiver, message in source.sent:
        inside.wire.send(receiver, message)
    source.sent.clear()
    inside.until(lambda: waiting.qsize() == expected)


def end_monitoring(inside: Inside) -> list[Any]:
    """Disarm the monitor's gates, and let it go; its events."""
    inside.wire.relay = lambda identity, parts: None
    inside.monitor.close()
    order(inside, *map(Disarm, inside.wire.hello.armed))
    return inside.sink.events


def order(inside: Inside, *orders: Order) -> None:
    """Give orders that are about no request, and have them carried out."""
    inside.order(*orders)
    # They ride with a step.
    answers(inside, [[1, 2]], 1)


def left(inside: Inside) -> dict[str, int]:
    """How much the engine's tables still hold of requests, once they have ended: all of it is to be 0."""
    from monitor.engine.ops.gate_layout import Counter
    from monitor.engine.steering.table import ENTRIES_PER_SLOT

    # What has changed in the tables is sent with the next step.
    generate(inside, [Ask([1, 2], 1)])
    tap, scheduler = inside.tap, inside.scheduler
    slots, steering, gates = tap.slots, tap._steering, tap._gates
    begin, end, _ = steering.segments.unbind(-1)
    pool = scheduler.kv_cache_manager.block_pool
    return {
        "requests of the scheduler": len(scheduler.requests),
        # One of them is vLLM's own.
        "KV blocks": pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),
        "requests with a slot": len(slots._requests) + len(slots._by_slot),
        "slots": len(steering.segments) - len(slots._free),
        "steered slots": len(steering._held),
        "entries of the steering table": ENTRIES_PER_SLOT * len(steering.segments) - len(steering._free),
        "steered stretches": int((begin < end).sum()),
        "steered rows": int((tap.taps.row_entry >= 0).sum()),
        "gates": len(gates._ids) + len(gates._armed) + len(gates._retired) + len(scheduler.plumbob_gates),
        "slots that a gate judges": int(tap.taps.gates.counters[..., Counter.ARMED].sum()),
        "rows that a gate steers": int(tap.taps.gates.row_gates.count_nonzero()),
        "frames dropped": tap.exporter.dropped,
    }


def protect(inside: Inside, on: bool) -> None:
    """Let steered blocks stay out of the prefix cache, as ever, or let them enter it, as vLLM would."""
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator

    if on:
        KVCacheCoordinator.cache_blocks = inside.cache_blocks
    else:
        inside.cache_blocks = KVCacheCoordinator.cache_blocks
        KVCacheCoordinator.cache_blocks = inside.cache_blocks.__wrapped__


def clear_slots(inside: Inside, on: bool) -> None:
    """Clear the steering of slots whose request has ended, as ever, or leave it to whoever comes next."""
    steering = inside.tap._steering
    if on:
        del steering.clear
        for slot in range(len(steering.segments)):
            steering.clear(slot)
    else:
        steering.clear = lambda slot: None


def _seen(inside: Inside, names: Sequence[str]) -> dict[str, Seen]:
    return {seen.started.request_id: seen for seen in inside.wire.requests if seen.started.request_id in names}


def _told(ask: Ask, output: Any, seen: Seen) -> Told:
    completion = output.outputs[0]
    logprobs = [[step[token].logprob for token in sorted(step)] for step in completion.logprobs]
    return Told(ask, list(completion.token_ids), np.array(logprobs), output.num_cached_tokens, seen)
