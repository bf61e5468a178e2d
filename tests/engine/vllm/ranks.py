"""Tensor-parallel ranks under observation; a script: ``python -m tests.engine.vllm.ranks SETTINGS … OUT``.

Runs one batch, orders its last request to be steered once it has begun to answer, and writes what each rank saw.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from monitor.wire.orders import Act, Steer
from tests.harness.wire import Wire

TOKENS = 120


class Watch:
    """Mixed into vLLM's worker: keeps what every step left in the taps' buffers."""

    model_runner: Any

    def watch(self) -> None:
        tap = self.model_runner.plumbob_tap
        end, self.seen = tap.end, []

        def watched(*args: Any, **kwargs: Any) -> None:
            rows = tap._rows
            if tap._batch is not None:
                entries = tap.taps.row_entry[:rows].clone()
                self.seen.append((tap.taps.scores[:rows].tolist(), entries.tolist(), tap.exporter is not None))
            end(*args, **kwargs)

        tap.end = watched

    def watched(self) -> list[Any]:
        return self.seen


def main() -> None:
    settings, endpoint, prompts, out = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
    from vllm import LLM, SamplingParams

    llm = LLM(**settings, worker_extension_cls="tests.engine.vllm.ranks.Watch")
    wire = Wire(endpoint)
    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    # The core says HELLO; the exporter, in another process, has to find the monitor too before all is told.
    wire.pump(10.0)
    for number in itertools.count():
        llm.llm_engine.add_request(f"first-{number}", {"prompt_token_ids": [1]}, SamplingParams(max_tokens=1))
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
        wire.pump(0.5)
        if wire.sequences:
            break
    llm.collective_rpc("watch")
    for index, prompt in enumerate(prompts):
        llm.llm_engine.add_request(str(index), {"prompt_token_ids": prompt}, sampling)
    ordered, tokens = False, {}
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
        wire.pump(0.0)
        target = next((seen for seen in wire.requests if seen.started.request_id == str(len(prompts) - 1)), None)
        if target is not None and not ordered and len(target.positions) > target.started.prompt_tokens:
            wire.order(Steer(target.started.engine_request_id, [Act("random-0", add=0.5)]))
            ordered = True
    wire.pump(2.0)
    frames = {
        seen.started.request_id: {
            "positions": seen.positions,
            "scores": np.array(seen.scores).tolist(),
            "steered": seen.steered,
        }
        for seen in wire.requests
        if not seen.started.request_id.startswith("first-")
    }
    ranks = llm.collective_rpc("watched")
    seen = {"ranks": ranks, "frames": frames, "tokens": tokens, "sequences": wire.sequences, "drift": wire.hello.drift}
    Path(out).write_text(json.dumps(seen))
    wire.close()


if __name__ == "__main__":
    main()
