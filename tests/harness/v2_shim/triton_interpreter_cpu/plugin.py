"""What else vLLM needs to do on a CPU what it does on a GPU; a ``vllm.general_plugins`` entry point."""

from typing import Any


def register() -> None:
    """Patch this process."""
    _make_booleans_of_masks()
    _allow_asynchronous_scheduling()


def _make_booleans_of_masks() -> None:
    """Let the interpreter load and store by masks that were broadcast: it has made integers of them.

    N-gram speculation needs it.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    def masked(name: str, position: int) -> None:
        method = getattr(InterpreterBuilder, name)

        def with_boolean_mask(self: Any, *args: Any) -> Any:
            args[position].data = args[position].data.astype(bool)
            return method(self, *args)

        setattr(InterpreterBuilder, name, with_boolean_mask)

    masked("create_masked_load", 1)
    masked("create_masked_store", 2)


def _allow_asynchronous_scheduling() -> None:
    """Leave asynchronous scheduling on where it is asked for: it is GPUs' default, and CPUs have it switched off."""
    from vllm.platforms.cpu import CpuPlatform

    check_and_update_config = CpuPlatform.check_and_update_config

    def keep(self: Any, vllm_config: Any) -> None:
        wanted = vllm_config.scheduler_config.async_scheduling
        check_and_update_config(vllm_config)
        vllm_config.scheduler_config.async_scheduling = wanted

    CpuPlatform.check_and_update_config = keep
