"""Disturbances of an engine that takes each step by hand (:mod:`tests.harness.stepped`), in its own process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probes.models.chat import Message
from tests.harness.engines import random_bundle, settings
from tests.harness.models import tiny_model
from tests.harness.stepped import Ask, Engine, Inside, Told, _about, _seen, _told
from tests.harness.tokenizers import CORPUS
from tests.harness.wire import Seen, Wire

SEQUENCES, BLOCK, CHUNK = 4, 32, 64
"""Requests at once, tokens of a KV block, rows of a step."""
LAYERS = (0, 1, 3)
TOKENS = 40


@dataclass(frozen=True)
class Outcome:
    """What became of requests that were served while something happened."""

    told: list[Told]
    lost: int
    """Frames that never arrived."""
    headers: list[Any]
    """Of all frames that arrived since something happened."""
    steps: int


def disturb(
    inside: Inside,
    asks: Sequence[Ask],
    at: int,
    happen: Callable[..., None],
    arguments: Sequence[Any] = (),
    fresh: bool = True,
) -> Outcome:
    """Serve requests; something happens before a step.

    Args:
        inside: The engine.
        asks: What is asked; orders are given as in :func:`tests.harness.stepped.generate`.
        at: Before so many steps have been made.
        happen: A function of a module, called with ``inside`` and ``arguments``.
        arguments: See ``happen``.
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
    headers, dropped, steps = list[Any](), inside.tap.exporter.dropped, 0
    while inside.llm.llm_engine.has_unfinished_requests():
        if steps == at:
            happen(inside, *arguments)
            inside.wire.heard = headers.append
        steps += 1
        for output in inside.step():
            name, ask = output.request_id, asked[output.request_id]
            outputs[name] = output
            if ask.orders and len(output.outputs[0].token_ids) >= ask.after and name not in ordered and steps <= at:
                ordered.add(name)
                key = _seen(inside, [name])[name].started.engine_request_id
                inside.order(*(_about(order, key) for order in ask.orders))
    # Who has ended is told with the step after.
    inside.step()
    inside.wire.heard = lambda header: None
    seen = _seen(inside, asked)
    told = [_told(ask, outputs[name], seen.get(name) or Seen(None)) for name, ask in asked.items()]
    return Outcome(told, inside.tap.exporter.dropped - dropped, headers, steps)


def nothing(inside: Inside) -> None:
    """Nothing happens."""


def another_monitor(inside: Inside, steps: int = 0) -> None:
    """The monitor is gone for so many steps, and another one comes in its place."""
    endpoint = inside.wire.endpoint
    inside.wire.close()
    exporter = inside.tap.exporter
    for _ in range(steps):
        inside.llm.llm_engine.step()
    renewals = exporter.renewals
    inside.wire = Wire(endpoint)
    inside.until(lambda: exporter.renewals > renewals and not exporter._away and inside.wire.engine)


def few_at_once(inside: Inside, rows: int, steps: int = 0) -> None:
    """Another monitor, and no more than so many rows are sent again in a step."""
    from monitor.engine import backlog

    backlog.ROWS = rows
    another_monitor(inside, steps)


def as_many_as_ever(inside: Inside, rows: int) -> None:
    """Undo it."""
    from monitor.engine import backlog

    backlog.ROWS = rows


def no_stage(inside: Inside, steps: int) -> None:
    """So many steps find no stage, and the monitor is there all the time."""
    staging = inside.tap._staging
    taken = []
    while (stage := staging.take()) is not None:
        taken.append(stage)
    for _ in range(steps):
        inside.llm.llm_engine.step()
    for stage in taken:
        staging.give(stage)


def sender_fails(inside: Inside, times: int) -> None:
    """The thread that sends raises as it takes up a frame, so many times."""
    exporter, left = inside.tap.exporter, [times]
    method = exporter._frame

    def frame(*arguments: Any) -> list[bytes]:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("injected")
        return method(*arguments)

    exporter._frame = frame
    for _ in range(times):
        faults = inside.tap.faults.count
        inside.llm.llm_engine.step()
        inside.until(lambda faults=faults: inside.tap.faults.count > faults)
        # It comes back by itself, and what is offered next reaches the monitor.
        inside.until(lambda: not exporter._away)


def taps_fail(inside: Inside, where: str, times: int) -> None:
    """A part of the taps raises in the coming steps, so many times."""
    owner, name = {
        "update": (inside.tap, "update"),
        "batch": (inside.tap.slots, "batch"),
        "finish": (inside.tap.slots, "finish"),
        "begin": (inside.tap, "begin"),
        "stream": (inside.tap.streams, "copy"),
        "end": (inside.tap, "end"),
        "roles": (inside.tap.slots._roles, "prompt"),
    }[where]
    method, left = getattr(owner, name), [times]

    def fail(*arguments: Any, **named: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("injected")
        return method(*arguments, **named)

    setattr(owner, name, fail)


def facts(inside: Inside) -> dict[str, Any]:
    """How the engine stands."""
    slots = inside.tap.slots
    return {
        "faults": inside.tap.faults.count,
        "last": inside.tap.faults.last,
        "untapped": inside.tap.faults.untapped,
        "slots": len(slots._by_slot),
        "requests": len(slots._requests),
        "free": len(slots._free),
        "unscored": slots.unscored,
        "stages": inside.tap._staging.free,
        "steps": inside.scheduler.plumbob_inbox.steps,
    }


def largest(told: Sequence[Told], other: Sequence[Told]) -> float:
    """Largest difference of a score between two servings of the same requests."""
    return max(
        float(np.abs(np.array(one.seen.scores) - np.array(two.seen.scores)).max())
        for one, two in zip(told, other, strict=True)
    )


# Outside.


class House:
    """An engine that is disturbed, and what is asked of it."""

    def __init__(self, engine: Engine, source) -> None:
        self.engine, self.source, self.random = engine, source, np.random.default_rng(5)

    def ask(self, words: int, tokens: int = TOKENS, **more) -> Ask:
        content = " ".join(self.random.choice(CORPUS.split(), words))
        return Ask(self.source.encode([Message("user", content)], respond=True), tokens, **more)

    def disturb(self, asks, at, happen, *arguments, fresh: bool = True):
        return self.engine.do(disturb, asks, at, happen, arguments, fresh)

    def facts(self):
        return self.engine.do(facts)


def start(folder: Path, **more: object) -> House:
    """An engine on a tiny model, ready."""
    from probes.models.activations import TransformersSource

    path = tiny_model(folder / "llama", "llama")
    source = TransformersSource(path, dtype="float32")
    bundle = random_bundle(folder / "bundle", path, source.markers, threshold=1e9, layers=LAYERS)
    endpoint = f"ipc://{folder}/engine.sock"
    options = {
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": SEQUENCES,
        "max_num_batched_tokens": CHUNK,
        "max_logprobs": -1,
        "block_size": BLOCK,
        "kv_cache_memory_bytes": 1 << 27,
        "enable_prefix_caching": True,
        "additional_config": {"plumbob": {"bundle": str(bundle.path), "endpoint": endpoint}},
        **more,
    }
    return House(Engine(settings(path, **options), endpoint), source)
