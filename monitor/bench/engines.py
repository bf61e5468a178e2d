"""The engines that a benchmark compares, and the monitor beside them.

All engines are resident, each in a process of its own, and take turns. Arms that differ only in what the monitor does
share one tapped engine.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from msgspec.structs import replace

from monitor.bench.arms import EngineKind, Setup, Subject
from monitor.bench.bundle import default_layers, steering_policy, streamed_layer, synthetic_bundle, with_trigger
from monitor.bench.monitor_process import Counters, MonitorProcess
from monitor.bench.result import Facts
from monitor.bench.shapes import write_dummy, write_shape
from monitor.bench.workload import FIRST_TOKEN_ID, Workload, kv_cache_bytes
from monitor.engine.offline import Answer
from monitor.errors import EngineError
from monitor.offline.engine_process import Arm
from monitor.supervisor.checks import require_compiler, require_vllm
from probes.bundle import Bundle, load_bundle
from probes.errors import BundleError
from probes.models import Progress, identify, resolve_model

SETTLE_SECONDS: Final = 0.5
"""Before each run: an engine's threads spin for a while after its last step, on the cores that the other needs."""
_HEARD_SECONDS: Final = 30.0
"""Time that an engine's frames have to reach a monitor that has just begun to listen."""
_ORDER_SECONDS: Final = 0.2
"""Time that an order has to reach the engine core, which looks every 50 ms and applies it at its next step."""
_WAKE: Final = [[FIRST_TOKEN_ID] * 4]
"""A batch to wake an engine with."""
MEMORY_SHARE: Final = 0.9
"""Of a GPU, for all engines together."""


def counted(progress: Progress, what: str, total: int) -> Callable[[], None]:
    """Report progress of a job of so many steps: at once, and with each call of the returned function."""
    so_far = 0
    progress(what, so_far, total)

    def done() -> None:
        nonlocal so_far
        so_far += 1
        progress(what, so_far, total)

    return done


class EnginePool:
    """Keep the engines of the arms running; a context manager.

    Args:
        subject: The model that is measured.
        setups: The arms; their engines are started one after another.
        workloads: The largest of them decides how much room an engine makes.
        eager: Do not compile.
        profile: Prepare for :meth:`trace`.
        progress: Hears which engine is started.
    """

    def __init__(
        self,
        subject: Subject,
        setups: Sequence[Setup],
        workloads: Sequence[Workload],
        *,
        eager: bool,
        profile: bool,
        progress: Progress,
    ) -> None:
        self._subject, self._setups, self._workloads = subject, setups, workloads
        self._kinds: list[EngineKind] = list(dict.fromkeys(setup.engine for setup in setups))
        self._eager, self._profile, self._progress = eager, profile, progress
        self._stack = ExitStack()
        self._engines: dict[EngineKind, Arm] = {}
        self._seconds = 0.0
        self.bundle: Bundle
        """The bundle of the tapped engine."""

    def __enter__(self) -> Self:
        with self._stack:
            self._enter()
            # Nothing failed: what was started lives on until __exit__.
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def vocabulary(self) -> int:
        """Tokens of the model."""
        return next(iter(self._engines.values())).vocabulary

    def run(self, setup: Setup, workload: Workload, seed: int) -> tuple[Answer, Counters]:
        """Run one batch on one arm, with an empty prefix cache.

        Args:
            setup: The arm.
            workload: The batch.
            seed: Of its prompts.

        Returns:
            The answer, and what the monitor saw of it.

        Raises:
            EngineError: An engine or the monitor ended, or they did not find each other.
        """
        prompts = workload.prompts(self.vocabulary, seed)
        self._prepare(setup)
        time.sleep(SETTLE_SECONDS)
        before, engine = self._monitor_process.counters(), self._engines[setup.engine]
        engine.ask(prompts, workload.tokens, fresh=True)
        if setup.killed:
            time.sleep(self._seconds / 2)
            self._monitor_process.counters()
            self._monitor_process.kill()
        answer = engine.answer()
        self._seconds = answer.seconds
        if setup.killed:
            # Its successor says what was lost in between.
            self._prepare(setup)
        seen = self._settled_counters().since(before)
        self._rest(setup)
        return answer, seen

    def trace(self, setup: Setup, workload: Workload, seed: int) -> Path:
        """Run one batch under torch's profiler.

        Returns:
            The trace of the first worker.

        Raises:
            EngineError: As for :meth:`run`, or there is no trace.
        """
        engine, prompts = self._engines[setup.engine], workload.prompts(self.vocabulary, seed)
        self._prepare(setup)
        before = set(self._traces.iterdir())
        engine.profile(on=True)
        engine.generate(prompts, workload.tokens, fresh=True)
        engine.profile(on=False)
        self._rest(setup)
        made = sorted(path for path in set(self._traces.iterdir()) - before if ".trace.json" in path.name)
        if not made:
            raise EngineError("vLLM wrote no profile.")
        return made[0]

    def facts(self) -> dict[EngineKind, Facts]:
        """Collect the facts of each engine, with the memory that it has taken so far."""
        return {kind: engine.report() for kind, engine in self._engines.items()}

    def _enter(self) -> None:
        require_vllm(allow_untested=self._subject.allow_untested)
        if not self._eager:
            require_compiler()
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="plumbob-bench-")))
        self._traces = directory / "traces"
        self._traces.mkdir()
        path = self._model(directory)
        self.bundle = self._bundle(path, directory)
        endpoint = f"ipc://{directory}/engine.sock"
        self._monitor_process = self._stack.enter_context(
            MonitorProcess(self.bundle.path, endpoint, directory / "monitor.log")
        )
        tap: dict[str, Any] = {
            "bundle": str(self.bundle.path),
            "endpoint": endpoint,
            "allow_untested": self._subject.allow_untested,
            # Answers of random weights, or to random tokens, repeat themselves: it would release what is measured.
            "guard": False,
        }
        modes = [setup.mode for setup in self._setups if setup.mode is not None]
        if any(mode.steer for mode in modes):
            steering_policy(self.bundle)
        if any(mode.stream for mode in modes):
            tap["stream"] = [streamed_layer(self.bundle)]
        shared = self._settings(path)
        for started, kind in enumerate(self._kinds):
            self._progress("starting engines", started, len(self._kinds))
            self._engines[kind] = self._stack.enter_context(
                Arm(
                    kind,
                    directory / f"{kind}.log",
                    {**shared, "additional_config": {"plumbob": tap}} if kind == "tapped" else shared,
                    # A name that no plugin has: vLLM loads none.
                    {"VLLM_PLUGINS": ""} if kind == "stock" else None,
                )
            )
        self._progress("starting engines", len(self._kinds), len(self._kinds))

    def _model(self, directory: Path) -> Path:
        subject = self._subject
        if subject.shape is not None:
            return write_shape(subject.shape, directory / "model")
        path = resolve_model(subject.model, self._progress)
        return write_dummy(path, directory / "model") if subject.dummy_weights else path

    def _bundle(self, path: Path, directory: Path) -> Bundle:
        subject, identity = self._subject, identify(path, self._subject.name)
        target = directory / "bundle"
        if subject.bundle is None:
            layers = default_layers(identity.layers) if subject.layers is None else subject.layers
            return synthetic_bundle(target, identity, layers, subject.probes)
        given = load_bundle(subject.bundle)
        given.require_model(identity)
        if not given.probes:
            raise BundleError(f"Bundle {given.path} has no probes.", "Name another, or leave --bundle out.")
        return with_trigger(target, given)

    def _settings(self, path: Path) -> dict[str, Any]:
        """Arguments of ``vllm.LLM`` that all engines have."""
        longest = max(work.prompt_tokens + work.tokens for work in self._workloads)
        settings: dict[str, Any] = {
            "model": str(path),
            "skip_tokenizer_init": True,
            "enforce_eager": self._eager,
            "max_model_len": longest,
            "max_num_seqs": max(work.requests for work in self._workloads),
            "gpu_memory_utilization": MEMORY_SHARE / len(self._kinds),
            "kv_cache_memory_bytes": kv_cache_bytes(path, self._workloads),
        }
        if self._subject.is_dummy:
            settings["load_format"] = "dummy"
        if self._profile:
            settings["profiler_config"] = {
                "profiler": "torch",
                "torch_profiler_dir": str(self._traces),
                "torch_profiler_with_stack": False,
            }
        return settings

    def _prepare(self, setup: Setup) -> None:
        """Switch the monitor to the arm's mode, and wake the engine; where a monitor listens, until frames reach it."""
        engine, mode = self._engines[setup.engine], setup.mode
        if mode is not None:
            self._monitor_process.set(mode)
        before = self._monitor_process.counters()
        deadline = time.monotonic() + _HEARD_SECONDS
        while True:
            engine.generate(_WAKE, 2, fresh=True)
            if mode is None or not mode.listen:
                return
            seen = self._settled_counters().since(before)
            if seen.frames and (seen.streamed or not mode.stream):
                return
            if time.monotonic() > deadline:
                raise EngineError(f"Arm '{setup.name}': what the engine sends does not reach the monitor.")

    def _rest(self, setup: Setup) -> None:
        """Switch off in the engine what would outlast the arm."""
        if setup.mode is not None and setup.mode.stream:
            self._monitor_process.set(replace(setup.mode, stream=False))
            time.sleep(_ORDER_SECONDS)
            self._engines[setup.engine].generate(_WAKE, 2)

    def _settled_counters(self) -> Counters:
        """Read the monitor's counters once nothing more comes."""
        counters = self._monitor_process.counters()
        while True:
            time.sleep(0.1)
            if (later := self._monitor_process.counters()) == counters:
                return counters
            counters = later
