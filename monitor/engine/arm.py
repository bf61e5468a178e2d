"""One engine in a process of its own, for benchmarks and tests: ``python -m monitor.engine.arm SETTINGS``.

Requests and answers are lines of JSON on stdin and stdout; the engine ends with stdin. SETTINGS are arguments of
``vllm.LLM``, as JSON.
"""

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Start the engine, say so, then answer each request until stdin ends.

    A request is ``{"prompts": [[token, …], …], "tokens": n, "logprobs": bool}``, all of one batch; the answer holds
    the seconds it took, the tokens generated for each prompt (greedy, end of sequence ignored), and, where asked for,
    the log-probability of every token of each prompt but the first.
    """
    settings: dict[str, Any] = json.loads(sys.argv[1])
    # vLLM and its processes print to stdout; answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    from vllm import LLM, SamplingParams

    llm = LLM(**settings)
    vocabulary = llm.llm_engine.vllm_config.model_config.get_vocab_size()
    answers.write(json.dumps({"vocabulary": vocabulary}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        prompts: Any = [{"prompt_token_ids": ids} for ids in request["prompts"]]
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=request["tokens"],
            ignore_eos=True,
            prompt_logprobs=0 if request.get("logprobs") else None,
        )
        begin = time.perf_counter()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        answer: dict[str, Any] = {
            "seconds": time.perf_counter() - begin,
            "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        }
        if request.get("logprobs"):
            answer["logprobs"] = [
                [step[token].logprob for token, step in zip(ids, output.prompt_logprobs or [], strict=True) if step]
                for ids, output in zip(request["prompts"], outputs, strict=True)
            ]
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
