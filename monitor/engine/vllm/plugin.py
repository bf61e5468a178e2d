"""The entry point of the vLLM plugin (``vllm.general_plugins``).

vLLM calls :func:`register` in every process, without any configuration, so it only installs wrappers. Without
``additional_config.plumbob`` each of them returns at once and nothing in the engine changes.
"""

from collections.abc import Callable
from typing import Any

from monitor.addresses import require_socket
from monitor.engine.vllm import versions
from monitor.engine.vllm.reading import FRONT, misfits
from monitor.engine.vllm.wrap import Method, wrap_once
from monitor.errors import EngineError

_missing: dict[versions.Runner | None, list[str]] = {}
"""Methods and fields that this vLLM lacks, by model runner; an error only for those who want it tapped."""


def register() -> None:
    """Install the wrappers; may be called more than once. Never fails: engines without Plumbob must not notice."""
    _install(None, _install_front)
    _install(None, _install_requests)
    _install(None, _install_core)
    _install("V1", _install_v1)
    _install("V2", _install_v2)


def _install(runner: versions.Runner | None, installer: Callable[[], None]) -> None:
    try:
        installer()
    except (ImportError, AttributeError) as error:
        _missing.setdefault(runner, []).append(str(error))


def _install_front() -> None:
    from vllm.engine.arg_utils import EngineArgs

    # First what refuses, so that what is missing beside it is refused.
    wrap_once(EngineArgs, "create_engine_config", _create_engine_config)
    wrap_once(EngineArgs, "from_cli_args", _from_cli_args)


def _install_requests() -> None:
    from monitor.engine.vllm import requests, typed

    requests.install()
    typed.install()


def _install_stopped() -> None:
    from monitor.engine.vllm import stopped, stopped_responses

    stopped.install()
    stopped_responses.install()


def _install_core() -> None:
    from monitor.engine import selftest
    from monitor.engine.vllm import core, worker

    core.install()
    selftest.install()
    worker.install()


def _install_v1() -> None:
    from monitor.engine.vllm import runner_v1

    runner_v1.install()


def _install_v2() -> None:
    from monitor.engine.vllm import runner_v2

    runner_v2.install()


def _from_cli_args(method: Method) -> Method:
    """Keep what the front is given beside what the engine is, since that decides what text becomes, too."""

    def from_cli_args(cls: type[Any], args: Any) -> Any:
        made = method(cls, args)
        made.plumbob_front = {name: getattr(args, name, None) for name in FRONT}
        return made

    return from_cli_args


def _create_engine_config(method: Method) -> Method:
    """Check bundle, model and features in the front process, before anything is started."""

    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        from monitor.engine import settings
        from probes.bundle import load_bundle
        from probes.models import identify, resolve_model

        wanted = settings.read_wanted(self.additional_config)
        if wanted is None:
            return method(self, *args, **kwargs)
        versions.require_version(allow_untested=wanted.allow_untested)
        if wanted.endpoint is not None:
            require_socket(wanted.endpoint)
        bundle = load_bundle(wanted.bundle)
        path = resolve_model(self.model)
        bundle.require_model(identify(path, self.model))
        for misfit in misfits({**vars(self), **vars(self).get("plumbob_front", {})}, path, bundle):
            raise EngineError(f"--{misfit.argument.replace('_', '-')} {misfit.why}.", misfit.fix)
        self.additional_config = {**self.additional_config, settings.KEY: settings.take_over(wanted, bundle)}
        vllm_config = method(self, *args, **kwargs)
        # Here, in the processes that answer clients: the others need not import what serves them.
        _install(None, _install_stopped)
        versions.require_features(vllm_config, gates=wanted.gates > 0)
        versions.require_seams(_missing, "V2" if vllm_config.use_v2_model_runner else "V1")
        return vllm_config

    return create_engine_config
