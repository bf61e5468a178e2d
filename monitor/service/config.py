"""The configuration of the monitor, one value: the section ``monitor`` of the file."""

import os
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field

from monitor.addresses import is_loopback, join_address
from monitor.configuration import Flag, OptionalPath, Port, Section
from monitor.errors import AuditError, ConfigError

METRICS_PORT: Final = 9400
GRPC_PORT: Final = 9401


def default_endpoint() -> str:
    """The place where engine and monitor of this user meet when nothing else is said."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or Path(tempfile.gettempdir()) / f"plumbob-{os.getuid()}")
    return f"ipc://{base / 'plumbob' / 'engine.sock'}"


def default_audit() -> Path:
    """The audit log of this user.

    Raises:
        AuditError: There is no home directory.
    """
    if (state := default_state()) is None:
        raise AuditError(
            "There is no home directory to keep an audit log in.",
            "Name a file with --audit, or keep none with --audit none.",
        )
    return state / "audit.jsonl"


def default_state() -> Path | None:
    """The folder of this user's monitor's state; ``None``: there is no home directory."""
    try:
        base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    return Path(base).absolute() / "plumbob"


def _or_default_endpoint(given: Any) -> Any:
    return given or default_endpoint()


def _octal(given: Any) -> Any:
    # YAML reads 0660 as an octal number.
    return f"{given:04o}" if type(given) is int else given


def _group(given: Any) -> Any:
    return str(given) if type(given) is int else given


class SocketMode(StrEnum):
    """Who may connect to the socket at which engine and monitor meet."""

    OWNER = "0600"
    GROUP = "0660"
    ALL = "0666"
    """Everybody who can enter its directory."""


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


class Limits(Section):
    """Bounds on what the monitor keeps, and on how long it waits."""

    max_requests: Annotated[int, Field(ge=1)] = 65_536
    """Requests in flight, of all engines; those beyond are unscored."""
    max_engines: Annotated[int, Field(ge=1)] = 256
    """Engines, with those that were lost; frames of those beyond are skipped."""
    silence_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
    """An engine from which nothing came for so long is lost; it says HELLO every second."""
    hello_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    """Without any engine for so long, a monitor that was started warns of it, and again ever more rarely."""
    forget_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    """A lost engine is listed for so long."""
    ack_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """At least so long between two confirmations to one engine."""
    resync_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """At least so long between two requests to resync to one engine."""
    audit_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    """A file of the audit log that has reached this size is closed, and another begun."""
    audit_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 604_800.0
    """And one whose first line is so old."""
    settle_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    """Engines are not confirmed until durable sinks have settled; one without progress for so long is left out."""


class MonitorConfig(Section):
    """The monitor's settings; files are taken as they are, and are read when it starts."""

    bundle: Annotated[Path, Flag("-b")]
    """Directory of the bundle that was fitted to the model; that of the demo model ships."""
    policy: Annotated[OptionalPath, Flag("-p")] = None
    """Policy file; without one, every probe alerts and nothing is steered."""
    trust: Annotated[tuple[Path, ...], Flag(metavar="KEY")] = ()
    """Public key that may have signed the bundle, else it is refused; with none, it need not be signed."""
    endpoint: Annotated[str, BeforeValidator(_or_default_endpoint), Flag()] = Field(default_factory=default_endpoint)
    """Socket file at which engine and monitor meet, as ipc://SOCKET."""
    socket_group: Annotated[str | None, BeforeValidator(_group), Flag(metavar="GROUP")] = None
    """Group, by name or number, that the socket file and a directory made for it are given to: the engine's user's."""
    socket_mode: Annotated[SocketMode, BeforeValidator(_octal), Flag()] = SocketMode.GROUP
    """Mode of the socket file: its owner may connect (0600), its group too (0660), or everybody (0666)."""
    metrics_host: Annotated[str, Flag(metavar="HOST")] = "127.0.0.1"
    """Interface that the Prometheus metrics listen on; there is no authentication yet."""
    metrics_port: Annotated[Port, Flag()] = METRICS_PORT
    """TCP port of the Prometheus metrics."""
    grpc_host: Annotated[str, Flag(metavar="HOST")] = "127.0.0.1"
    """Interface that gRPC events, status and orders listen on; there is no authentication yet."""
    grpc_port: Annotated[Port, Flag()] = GRPC_PORT
    """TCP port of gRPC events and status."""
    audit: Annotated[OptionalPath, AfterValidator(_absolute), Flag(metavar="FILE")] = Field(
        default_factory=default_audit
    )
    """File in which interventions are recorded, else plumbob/audit.jsonl of $XDG_STATE_HOME; none: no file."""
    sinks: Annotated[tuple[str, ...], Flag(metavar="NAME")] = ("log",)
    """Sink that takes events, beside watchers and the audit log: log, and what other packages install."""
    state: Annotated[OptionalPath, AfterValidator(_absolute), Flag()] = Field(default_factory=default_state)
    """Folder of what a monitor that is started again has to know, else plumbob of $XDG_STATE_HOME; none: nowhere."""
    probe_workers: Annotated[int, Field(ge=1, le=64), Flag()] = 1
    """Processes for the bundle's probes that the engine does not run, if it has any."""
    allow_control: Annotated[bool, Flag()] = False
    """Let everybody on this host order engines to steer, over gRPC; its interface has to be the loopback one."""
    limits: Limits = Limits()
    """Bounds on what it keeps, and on how long it waits."""

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus metrics."""
        return f"http://{join_address(self.metrics_host, self.metrics_port)}/metrics"

    @property
    def grpc_address(self) -> str:
        """Address of events and status."""
        return join_address(self.grpc_host, self.grpc_port)

    def require_control(self) -> None:
        """Check that nobody beyond this host could give orders: there are no credentials yet.

        Raises:
            ConfigError: Orders are taken on an interface that others reach.
        """
        if self.allow_control and not is_loopback(self.grpc_host):
            raise ConfigError(
                f"With allow_control, everybody who reaches {self.grpc_address} could order engines to steer: "
                "there are no credentials yet.",
                "Set grpc_host (--grpc-host) to 127.0.0.1, or leave allow_control (--allow-control) out.",
            )
