"""Wrappers that both model runners share."""

from typing import Any

from monitor.engine.guarded import tap_of
from monitor.engine.settings import switched_on
from monitor.engine.tapped import RunnerTap
from monitor.engine.vllm.wrap import Method


def load_model(method: Method) -> Method:
    """Put the taps into the model once its weights are there, before anything is compiled or captured."""

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = method(self, *args, **kwargs)
        # A failure here is a start that failed, not a request: it is not guarded.
        if switched_on(self.vllm_config) and tap_of(self) is None:
            exports = self.vllm_config.parallel_config.rank == 0
            self.plumbob_tap = RunnerTap(
                self.vllm_config, self.model, self.device, self.max_num_tokens, exports=exports
            )
        return loaded

    return wrapped


def initialize_kv_cache(method: Method) -> Method:
    """Tell the taps how large the KV cache is."""

    def wrapped(self: Any, kv_cache_config: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, kv_cache_config, *args, **kwargs)
        if (tap := tap_of(self)) is not None:
            tap.bind_kv(kv_cache_config)
        return result

    return wrapped
