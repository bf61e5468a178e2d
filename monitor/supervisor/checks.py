"""Everything that would fail later, found before anything is started."""

import asyncio
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from monitor.addresses import require_free
from monitor.configuration import Effective
from monitor.engine.vllm.installed import require_plugin
from monitor.errors import PortError, PrerequisiteError
from monitor.ingest import LocalSource
from monitor.service.config import MonitorConfig
from monitor.service.inputs import read_bundle, read_policy
from monitor.sinks import require_sinks
from monitor.sinks.audit import require_log
from monitor.supervisor.config import ServeConfig
from monitor.supervisor.engine_command import engine_environment, own_arguments, read_api_key
from monitor.supervisor.vllm_arguments import Said, read_arguments
from probes.models import DEMO, Progress, identify, no_progress, resolve_model
from probes.models.markers import roles_in_words


class Checked(NamedTuple):
    """What was found where nothing is wrong."""

    model: Path
    """The model's directory."""
    said: Said
    """What the further arguments of vLLM say."""
    roles: str
    """How the roles of tokens are told, in words."""


def check_serve(config: ServeConfig, progress: Progress = no_progress) -> Checked:
    """Find everything that would fail later.

    Raises:
        PlumbobError: The first thing that is wrong, and what to do about it.
    """
    read_api_key(config)
    monitor = config.monitor
    monitor.require_control()
    bundle = read_bundle(monitor)
    for name in config.allow_steering:
        bundle.vector(name).require_cap()
    require_vllm(allow_untested=config.allow_untested)
    path = resolve_model(config.model, progress)
    bundle.require_model(identify(path, config.model))
    read_policy(monitor.policy, bundle)
    require_sinks(monitor.sinks)
    require_ports(
        (config.host, config.port), (monitor.metrics_host, monitor.metrics_port), (monitor.grpc_host, monitor.grpc_port)
    )
    asyncio.run(_require_endpoint(monitor))
    if monitor.audit is not None:
        require_log(monitor.audit)
    environment = engine_environment(config)
    require_plugin(environment)
    said = read_arguments(own_arguments(config, str(path)), config.vllm_arguments, monitor.bundle, environment)
    if not config.eager and not said.eager:
        require_compiler()
    return Checked(path, said, roles_in_words(path, bundle.manifest.markers))


def check_files(effective: Effective) -> list[str]:
    """Hold a configuration against the files that it names; nothing of this machine is looked at but vLLM's parser.

    Returns:
        What was found, in lines.

    Raises:
        PlumbobError: The first thing that is wrong. A model that is not set is not: the monitor alone needs none.
    """
    assumed = {setting.path: DEMO for setting in effective.missing if setting.path == ("model",)}
    config = effective.assuming(assumed).read(ServeConfig)
    read_api_key(config)
    config.monitor.require_control()
    bundle = read_bundle(config.monitor)
    for name in config.allow_steering:
        bundle.vector(name).require_cap()
    policy = read_policy(config.monitor.policy, bundle)
    require_sinks(config.monitor.sinks)
    signed = f", signed by one of {len(config.monitor.trust)} trusted keys" if config.monitor.trust else ""
    arguments = [_read_further(config)] if config.vllm_arguments else []
    return [
        f"model {'not set: for plumbob monitor alone' if assumed else config.model}",
        f"bundle {bundle.path} ({bundle.digest[:12]}) for {bundle.manifest.model.name}{signed}",
        f"policy {policy.name}: {len(policy.rules)} rules, {len(policy.gates)} gates",
        *arguments,
    ]


def _read_further(config: ServeConfig) -> str:
    """What is to be said of the arguments for vLLM, where they can be."""
    from monitor.engine.vllm.versions import vllm_version

    try:
        version = vllm_version()
    except PrerequisiteError:
        return "vllm_arguments not checked: vLLM is not installed"
    own = own_arguments(config, config.model)
    read_arguments(own, config.vllm_arguments, config.monitor.bundle, engine_environment(config))
    return f"vllm_arguments: vLLM {version} takes them"


def require_ports(api: tuple[str, int], metrics: tuple[str, int], grpc: tuple[str, int]) -> None:
    """Check that three servers can listen.

    Args:
        api: Interface and port of the API.
        metrics: Of the metrics exporter.
        grpc: Of the gRPC server.

    Raises:
        PortError: An address cannot be had, or two servers were given the same port.
    """
    wanted: dict[int, str] = {}
    for what, interface, number in (
        ("The API server (--host, --port)", *api),
        ("The metrics exporter (--metrics-host, --metrics-port)", *metrics),
        ("The gRPC server (--grpc-host, --grpc-port)", *grpc),
    ):
        if number in wanted:
            raise PortError(f"{wanted[number]} and {what} are both given port {number}.", "Choose another for one.")
        require_free(what, interface, number)
        wanted[number] = what


async def _require_endpoint(config: MonitorConfig) -> None:
    """Listen for a moment, as the monitor will; raises PortError where another does."""
    LocalSource(config.endpoint, group=config.socket_group, mode=int(config.socket_mode, 8)).close()


def require_vllm(*, allow_untested: bool) -> str:
    """The installed version of vLLM.

    Raises:
        PrerequisiteError: vLLM is missing or was not tested.
    """
    # Reads package metadata only: nothing of vLLM is imported into this process.
    from monitor.engine.vllm.versions import require_version

    return require_version(allow_untested=allow_untested)


def require_compiler() -> None:
    """Raise PrerequisiteError where Inductor would find no C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise PrerequisiteError(
            f"The C++ compiler {compiler} is not installed, and vLLM compiles the model.",
            "Install it (on Debian: apt-get install g++), or serve with --eager.",
        )
