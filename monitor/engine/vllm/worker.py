"""Workers: the scores of cached prefixes take their memory from the KV cache that they go with."""

from typing import Any

from monitor.engine.guarded import tap_of
from monitor.engine.kv_scores import share_of_kv_memory
from monitor.engine.vllm.wrap import Method, wrap_once


def install() -> None:
    """Wrap the workers of this process, once."""
    from vllm.v1.worker.cpu_worker import CPUWorker
    from vllm.v1.worker.gpu_worker import Worker

    for worker_class in (Worker, CPUWorker):
        wrap_once(worker_class, "determine_available_memory", _determine_available_memory)


def _determine_available_memory(method: Method) -> Method:
    def determine_available_memory(self: Any) -> int:
        available = method(self)
        tap = tap_of(self.model_runner)
        if tap is None:
            return available
        share = share_of_kv_memory(self.model_runner.get_kv_cache_spec(), len(tap.bundle.probes))
        return int(available / (1 + share))

    return determine_available_memory
