"""The self-test: the bundle's canaries through the real engine, before its first request and after its weights changed.

The workers compute the canaries as they will compute requests (:mod:`monitor.engine.canary_run`). The engine core
compares the scores with those that the bundle recorded (:mod:`probes.bundle.canaries`), and lets the workers score
requests, or not: a worker that has run the canaries, or whose weights are being changed, scores nothing until it is
told that it may.

* ``EngineCore._initialize_kv_caches`` returns when the model is loaded, compiled and warm, and no request can be there.
* ``Worker.reload_weights`` and its like are where weights change; ``EngineCore.collective_rpc`` and ``wake_up`` are how
  an operator has them called. The test runs again as soon as no request is in flight, at the latest before the next one
  is added. A method of the operator's own that changes weights is not noticed.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitor.engine.canary_run import canaries_of, run_canaries, trust
from monitor.engine.guarded import tap_of
from monitor.engine.settings import Settings, inherited, switched_on
from monitor.engine.vllm.wrap import Method, wrap_once
from monitor.errors import EngineError
from probes.bundle import Probe, load_bundle
from probes.bundle.canaries import TOLERANCE, Canaries

RANKS_AGREE: Final = 0.01
"""The drift between two ranks' scores that their arithmetic may cause: each decides by its own what to steer."""

CHANGES: Final = {
    "start_weight_update": False,
    "update_weights": False,
    "finish_weight_update": True,
    "reload_weights": True,
    "wake_up": True,
}
"""The methods of a worker that change its weights, and whether the weights are whole when they return."""

logger = logging.getLogger("vllm.plumbob")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of the self-test, as the monitor learns it."""

    drift: float | None = None
    """The largest of any probe; ``None``: not tested, with the weights that there are now."""
    shadow: bool = False
    """Nothing may be enforced on what this engine's scores say."""


@dataclass(frozen=True, slots=True)
class _Finding:
    drift: float | None
    problem: EngineError | None


_outcomes: dict[str, Outcome] = {}


def outcome_of(engine: str) -> Outcome:
    """Result of the self-test at start of the engine of this id, in this process."""
    return _outcomes.get(engine, Outcome())


def install() -> None:
    """Wrap the classes of this process's engine core and workers, once."""
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.gpu_worker import Worker

    wrap_once(EngineCore, "_initialize_kv_caches", _initialize_kv_caches)
    wrap_once(EngineCore, "collective_rpc", _collective_rpc)
    wrap_once(EngineCore, "wake_up", _wake_up)
    wrap_once(EngineCore, "add_request", _add_request)
    for name in CHANGES:
        wrap_once(Worker, name, _changing)
    # Called by name through ``collective_rpc``; the CPU's worker inherits them.
    for name, method in (("plumbob_self_test", run_canaries), ("plumbob_trust", trust)):
        setattr(Worker, name, method)


# In the workers.


def _changing(method: Method) -> Method:
    def changing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (tap := tap_of(self.model_runner)) is not None:
            tap.suspend()
        return method(self, *args, **kwargs)

    return changing


# In the engine core.


def judge(probes: Sequence[Probe], canaries: Canaries, measured: Sequence[NDArray[np.floating]]) -> tuple[float, str]:
    """Compare what the ranks measured with what was recorded.

    Args:
        probes: Of the columns of scores, for their names.
        canaries: What was run.
        measured: Scores of each rank, shape ``(tokens, probes)``.

    Returns:
        The largest drift of any probe on any rank, and the probe.

    Raises:
        EngineError: The ranks do not agree.
    """
    first = np.where(np.isnan(canaries.reference), np.nan, measured[0])
    for rank, scores in enumerate(measured[1:], start=1):
        if np.array_equal(measured[0], scores, equal_nan=True):
            continue
        apart = replace(canaries, reference=first).drift(scores)
        if apart.max() > RANKS_AGREE:
            raise EngineError(
                f"Ranks 0 and {rank} read different scores for the same tokens: "
                f"probe '{probes[int(apart.argmax())].name}' by a drift of {apart.max():.3f}.",
                "Each would steer on its own. Report this with the engine's settings.",
            )
    drift = np.max([canaries.drift(scores) for scores in measured], axis=0)
    return float(drift.max()), probes[int(drift.argmax())].name


def _examine(core: Any, vllm_config: Any, settings: Settings) -> _Finding:
    """Run the canaries on all ranks and judge."""
    bundle = load_bundle(settings.bundle)
    columns = bundle.canaries.reference.shape[1] if bundle.canaries else 0
    if untested := ", ".join(probe.name for probe in bundle.all_probes[columns:]):
        logger.warning("Plumbob cannot test this engine with %s: bundle %s has no canaries", untested, bundle.path)
    if not columns:
        return _Finding(None, None)
    measured: list[NDArray[np.float64]] = core.model_executor.collective_rpc("plumbob_self_test")
    # The first rank alone streams.
    streamed = measured[0][:, len(bundle.probes) :]
    drift, probe = judge(
        bundle.all_probes[:columns],
        canaries_of(bundle, vllm_config),
        [np.hstack([scores[:, : len(bundle.probes)], streamed]) for scores in measured],
    )
    if drift <= TOLERANCE:
        logger.info("Plumbob self-test: largest drift %.3f (probe %s), tolerance %.2f", drift, probe, TOLERANCE)
        return _Finding(drift, None)
    problem = EngineError(
        f"The self-test failed: on this engine probe '{probe}' of bundle {bundle.path} has a drift of {drift:.3f}; "
        f"{TOLERANCE} is tolerated.",
        "Fit the bundle to the model as it is served, or set drift to shadow in additional_config.plumbob, "
        "so that nothing is enforced on these scores.",
    )
    return _Finding(drift, problem)


def _settle(core: Any, settings: Settings, finding: _Finding) -> Outcome:
    """Let the workers score, unless that is to be refused."""
    if finding.problem is None or settings.drift == "shadow":
        core.model_executor.collective_rpc("plumbob_trust")
    if finding.problem is not None:
        logger.error("Plumbob: %s", finding.problem)
    return Outcome(finding.drift, shadow=finding.problem is not None)


def _initialize_kv_caches(method: Method) -> Method:
    def initialize_kv_caches(self: Any, vllm_config: Any) -> Any:
        result = method(self, vllm_config)
        if switched_on(vllm_config):
            settings = inherited()
            finding = _examine(self, vllm_config, settings)
            if finding.problem is not None and settings.drift == "refuse":
                raise finding.problem
            _outcomes[settings.engine] = _settle(self, settings, finding)
        return result

    return initialize_kv_caches


def _collective_rpc(original: Method) -> Method:
    def collective_rpc(self: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(method, str) or method not in CHANGES or not switched_on(self.vllm_config):
            return original(self, method, *args, **kwargs)
        _distrust(self)
        result = original(self, method, *args, **kwargs)
        self.plumbob_test_due = CHANGES[method]
        _test_again(self)
        return result

    return collective_rpc


def _wake_up(method: Method) -> Method:
    def wake_up(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not switched_on(self.vllm_config) or not self.model_executor.is_sleeping:
            return method(self, *args, **kwargs)
        _distrust(self)
        result = method(self, *args, **kwargs)
        self.plumbob_test_due = True
        _test_again(self)
        return result

    return wake_up


def _add_request(method: Method) -> Method:
    def add_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        _test_again(self)
        return method(self, *args, **kwargs)

    return add_request


def _distrust(core: Any) -> None:
    """The weights are about to change; the workers suspend themselves."""
    core.plumbob_test_due = False
    _tell(core, Outcome(shadow=True))


def _test_again(core: Any) -> None:
    """Test an engine whose weights have changed, if that is due and nothing is in flight. Never fails a request."""
    if not core.__dict__.get("plumbob_test_due"):
        return
    if core.model_executor.is_sleeping or core.scheduler.has_requests() or core.batch_queue:
        return
    # The canaries' blocks must be nobody's; and what is cached was computed with other weights.
    if not core.scheduler.reset_prefix_cache():
        return
    core.plumbob_test_due = False
    try:
        settings = inherited()
        _tell(core, _settle(core, settings, _examine(core, core.vllm_config, settings)))
    except Exception:
        logger.exception("Plumbob could not test this engine again; it scores nothing until its weights change")


def _tell(core: Any, outcome: Outcome) -> None:
    inbox = core.scheduler.__dict__.get("plumbob_inbox")
    if inbox is not None:
        inbox.hello = msgspec.structs.replace(inbox.hello, drift=outcome.drift, shadow=outcome.shadow)
