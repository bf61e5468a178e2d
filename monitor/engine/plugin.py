"""The entry point of the vLLM plugin (``vllm.general_plugins``).

vLLM calls :func:`register` in every process, without any configuration, so it only installs wrappers. Without
``additional_config.plumbob`` each of them returns at once and nothing in the engine changes.
"""

from typing import Any

from monitor.engine.wrap import Method, wrap_once
from monitor.errors import EngineError

_unfit: list[Exception] = []
"""Why this vLLM cannot be tapped; told only to those who ask for it."""


def register() -> None:
    """Install the wrappers; may be called more than once. Never fails: whoever does not use Plumbob must not notice."""
    try:
        from vllm.engine.arg_utils import EngineArgs

        wrap_once(EngineArgs, "create_engine_config", _create_engine_config)

        from monitor.engine import core, runner_v1

        core.install()
        runner_v1.install()
    except (ImportError, AttributeError) as error:
        _unfit.append(error)


def _create_engine_config(method: Method) -> Method:
    """Check bundle, model and features in the front process, before anything is started."""

    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        from monitor.engine import compat, settings
        from probes.bundle import load_bundle
        from probes.models import identify, resolve_model

        wanted = settings.read_wanted(self.additional_config)
        if wanted is None:
            return method(self, *args, **kwargs)
        found = compat.require_version(allow_untested=wanted.allow_untested)
        if _unfit:
            raise EngineError(f"vLLM {found} cannot be tapped: {_unfit[0]}.", "Install a version that it is tested on.")
        bundle = load_bundle(wanted.bundle)
        bundle.require_model(identify(resolve_model(self.model), self.model))
        self.additional_config = {**self.additional_config, settings.KEY: settings.take_over(wanted, bundle)}
        vllm_config = method(self, *args, **kwargs)
        compat.require_features(vllm_config)
        return vllm_config

    return create_engine_config
