"""One engine in a process of its own, for benchmarks and tests: ``python -m monitor.engine.offline SETTINGS``.

Commands and answers are lines of JSON on stdin and stdout; the engine ends with stdin. SETTINGS are arguments of
``vllm.LLM``, as JSON. The loop that a server would run is run here, so that every token can be timed as it arrives.
"""

import itertools
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

_EXTENSION: Final = "monitor.engine.offline.WorkerReport"
_EMPTY_SECONDS: Final = 5.0
_PEAK: Final = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Generate greedily for a batch; answered with :class:`Answer`."""

    prompts: list[list[int]]
    """Token ids of each."""
    tokens: int
    """To generate for each, at most."""
    stops: list[int] = []
    """Tokens that end an answer, which they are part of; end of sequence is none, unless it is named here."""
    logprobs: bool = False
    """Also tell the log-probability of each prompt's tokens."""
    fresh: bool = False
    """Empty the prefix cache first."""


class Profile(msgspec.Struct, frozen=True, tag="profile"):
    """Start or stop torch's profiler in the workers; answered with :class:`Done`. SETTINGS say where traces go."""

    on: bool


class Report(msgspec.Struct, frozen=True, tag="report"):
    """Say what the engine is and what it takes; answered with :class:`Facts`."""


Command = Generate | Profile | Report


class Ready(msgspec.Struct, frozen=True):
    """The first line: the engine can be used."""

    vocabulary: int
    """Tokens of the model."""


class Answer(msgspec.Struct, frozen=True):
    """Answers and times of one batch."""

    seconds: float
    tokens: list[list[int]]
    """Generated for each prompt."""
    times: list[list[float]]
    """When each of them arrived, in seconds since the batch was handed over."""
    logprobs: list[list[float]] = []
    """Of every token of each prompt but the first, where they were asked for."""


class Done(msgspec.Struct, frozen=True):
    """Nothing more to say."""


class Facts(msgspec.Struct, frozen=True):
    """Facts of an engine: settings as vLLM settled them, and the memory it takes."""

    device: str
    dtype: str
    compilation: str
    """Mode of torch.compile."""
    cudagraphs: str
    """Mode of CUDA graphs."""
    runner: str
    """``V1`` or ``V2``."""
    max_num_batched_tokens: int
    prefix_caching: bool
    async_scheduling: bool
    rss_peak_mib: float
    """The largest resident set of each of the engine's processes, summed."""
    cuda_peak_mib: float | None
    """The most that torch had allocated on the worker's GPU; ``None`` without one."""


class WorkerReport:
    """Mixed into vLLM's worker (``worker_extension_cls``), where GPU memory and the model runner can be seen."""

    model_runner: Any

    def plumbob_report(self) -> dict[str, Any]:
        """Device, kind of model runner, and peak memory of the GPU."""
        import torch
        from vllm.platforms import current_platform

        on_cuda = torch.cuda.is_available()
        return {
            "device": current_platform.get_device_name() if on_cuda else _processor(),
            "runner": "V2" if type(self.model_runner).__module__.startswith("vllm.v1.worker.gpu.") else "V1",
            "cuda_peak_mib": torch.cuda.max_memory_allocated() / 2**20 if on_cuda else None,
        }


def main() -> None:
    """Start the engine, say so, then carry out each command until stdin ends."""
    settings: dict[str, Any] = msgspec.json.decode(sys.argv[1])
    # vLLM and its processes print to stdout; answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    from vllm import LLM

    llm = LLM(**settings, worker_extension_cls=_EXTENSION)
    names = map(str, itertools.count())
    answers.write(msgspec.json.encode(Ready(llm.llm_engine.vllm_config.model_config.get_vocab_size())) + b"\n")
    for line in sys.stdin.buffer:
        command: Command = msgspec.json.decode(line, type=Command)
        answers.write(msgspec.json.encode(_carry_out(llm, command, names)) + b"\n")


def _carry_out(llm: Any, command: Command, names: Iterator[str]) -> msgspec.Struct:
    match command:
        case Generate():
            return generate(llm, command, names)
        case Profile(on):
            (llm.start_profile if on else llm.stop_profile)()
            return Done()
        case Report():
            return report(llm)


def generate(llm: Any, command: Generate, names: Iterator[str]) -> Answer:
    """Run the engine until every request of a batch has ended.

    Args:
        llm: A ``vllm.LLM``.
        command: The batch.
        names: Ids for its requests, ascending numbers.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    if command.fresh:
        _empty_prefix_cache(llm)
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=command.tokens,
        ignore_eos=True,
        stop_token_ids=command.stops,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        prompt_logprobs=0 if command.logprobs else None,
    )
    engine, ids = llm.llm_engine, [next(names) for _ in command.prompts]
    tokens, times, logprobs = defaultdict[str, list[int]](list), defaultdict[str, list[float]](list), dict[str, Any]()
    begin = time.perf_counter()
    for name, prompt in zip(ids, command.prompts, strict=True):
        engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter() - begin
        for output in outputs:
            new = output.outputs[0].token_ids
            tokens[output.request_id] += new
            times[output.request_id] += [now] * len(new)
            if output.prompt_logprobs:
                logprobs[output.request_id] = output.prompt_logprobs
    return Answer(
        seconds=time.perf_counter() - begin,
        tokens=[tokens[name] for name in ids],
        times=[times[name] for name in ids],
        logprobs=[
            [step[token].logprob for token, step in zip(prompt, logprobs[name], strict=True) if step]
            for name, prompt in zip(ids, command.prompts, strict=True)
            if command.logprobs
        ],
    )


def _empty_prefix_cache(llm: Any) -> None:
    """Retried: with asynchronous scheduling, a step of the last batch may still hold its blocks."""
    deadline = time.monotonic() + _EMPTY_SECONDS
    while not llm.reset_prefix_cache():
        if time.monotonic() > deadline:
            raise RuntimeError("the prefix cache stays in use")
        time.sleep(0.01)


def report(llm: Any) -> Facts:
    """Report the engine's settings, and the memory it has taken so far."""
    config = llm.llm_engine.vllm_config
    (worker, *_) = llm.collective_rpc("plumbob_report")
    return Facts(
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        compilation=config.compilation_config.mode.name,
        cudagraphs=config.compilation_config.cudagraph_mode.name,
        max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
        prefix_caching=bool(config.cache_config.enable_prefix_caching),
        async_scheduling=bool(config.scheduler_config.async_scheduling),
        rss_peak_mib=sum(map(_rss_peak_mib, _descendants(os.getpid()))),
        **worker,
    )


def _processor() -> str:
    """The processor's name, as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _descendants(process: int) -> list[int]:
    """A process, its children, and theirs."""
    found = [process]
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _descendants(int(child))
    return found


def _rss_peak_mib(process: int) -> float:
    peak = _PEAK.search(Path(f"/proc/{process}/status").read_text())
    return int(peak.group(1)) / 1024 if peak else 0.0


if __name__ == "__main__":
    main()
