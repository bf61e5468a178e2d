"""One engine of a benchmark: ``python -m monitor.engine.arm SETTINGS``, requests and answers as lines of JSON."""

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Start the engine, then answer each request on stdin with its seconds on stdout, until stdin ends."""
    settings = json.loads(sys.argv[1])
    # vLLM and its processes print to stdout; answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    import numpy as np
    from vllm import LLM, SamplingParams

    extra: dict[str, Any] = {"additional_config": {"plumbob": settings["plumbob"]}} if settings["plumbob"] else {}
    llm = LLM(
        settings["model"],
        enforce_eager=settings["eager"],
        max_model_len=2048,
        max_num_seqs=max(settings["batch"], 16),
        **extra,
    )
    vocabulary = llm.llm_engine.vllm_config.model_config.get_vocab_size()
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        generator = np.random.default_rng(request["seed"])
        ids = generator.integers(100, vocabulary, (request["batch"], request["prompt"])).tolist()
        prompts: Any = [{"prompt_token_ids": row} for row in ids]
        sampling = SamplingParams(temperature=0.0, max_tokens=request["tokens"], ignore_eos=True)
        begin = time.perf_counter()
        llm.generate(prompts, sampling, use_tqdm=False)
        answers.write(json.dumps({"seconds": time.perf_counter() - begin}) + "\n")


if __name__ == "__main__":
    main()
