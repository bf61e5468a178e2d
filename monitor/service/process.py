"""``plumbob monitor``: the monitor's process, from its configuration to its servers and back.

SIGHUP has it read its policy file again, and look where its audit log is (:mod:`monitor.service.hangup`).
"""

import asyncio
import logging
import signal
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from monitor.addresses import require_free
from monitor.api import ApiServer
from monitor.errors import PolicyError
from monitor.ingest import LocalSource
from monitor.policy import Policy, load_policy
from monitor.service.awaiting import tell_of_no_engine
from monitor.service.config import MonitorConfig
from monitor.service.hangup import Terminal
from monitor.service.inputs import read_bundle, read_policy
from monitor.service.monitor import Monitor
from monitor.service.series import expected_series
from monitor.sinks import open_sinks
from monitor.sinks.audit import AuditLog
from monitor.store import MemoryStore
from monitor.telemetry import MetricsExporter, MonitorCollector
from probes.bundle import Bundle

JOURNAL: Final = "journal"
"""The store's folder, in that of the monitor's state."""

logger = logging.getLogger("plumbob")


def run_monitor(config: MonitorConfig) -> None:
    """Monitor until interrupted or terminated.

    Raises:
        PlumbobError: A file is wrong or an address is in use; nothing is left running.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    config.require_control()
    bundle = read_bundle(config)
    asyncio.run(_monitor(config, bundle, read_policy(config.policy, bundle)))


async def _monitor(config: MonitorConfig, bundle: Bundle, policy: Policy) -> None:
    # First of all, since a socket file outlives the one who bound it.
    require_free("The metrics exporter", config.metrics_host, config.metrics_port)
    require_free("The gRPC server", config.grpc_host, config.grpc_port)
    sinks = open_sinks(config.sinks)
    with ExitStack() as stack:
        # The log waits for the store, and is closed before it.
        store = stack.enter_context(closing(MemoryStore(None if config.state is None else config.state / JOURNAL)))
        log = None if config.audit is None else stack.enter_context(closing(_open_audit(config, config.audit, store)))
        source = LocalSource(config.endpoint, group=config.socket_group, mode=int(config.socket_mode, 8))
        monitor = Monitor(
            bundle,
            policy,
            source,
            sinks=[sink for sink in sinks if getattr(sink, "returns_at_once", False)],
            slow_sinks=[sink for sink in sinks if not getattr(sink, "returns_at_once", False)],
            audit=log,
            store=store,
            limits=config.limits,
            workers=config.probe_workers,
        )
        await _serve(config, monitor, source, log)
    if log is not None:
        _tell(log)


def _open_audit(config: MonitorConfig, path: Path, store: MemoryStore) -> AuditLog:
    limits = config.limits
    return AuditLog(path, store=store, segment_bytes=limits.audit_bytes, segment_seconds=limits.audit_seconds)


def _tell(log: AuditLog | None) -> None:
    """Say where the audit log is and how it ends: against that, a truncated one shows."""
    if log is None:
        logger.warning("no audit log is kept (--audit none): what is done to requests is not recorded")
    else:
        logger.info("audit log %s, record %d, head %s", log.path, log.head.sequence, log.head.hash)


async def _serve(config: MonitorConfig, monitor: Monitor, source: LocalSource, log: AuditLog | None) -> None:
    exporter: MetricsExporter | None = None
    server: ApiServer | None = None
    awaiting: asyncio.Task[None] | None = None
    try:
        # Before anybody can know that it serves.
        _on_hang_up(monitor, config.policy)
        registry = CollectorRegistry()
        registry.register(
            MonitorCollector(
                monitor.stats,
                monitor.status,
                monitor.events,
                monitor.bundle,
                lambda: expected_series(monitor.policy),
            )
        )
        exporter = MetricsExporter(
            registry, lambda: monitor.status().unready, host=config.metrics_host, port=config.metrics_port
        )
        server = await ApiServer.start(
            monitor.events,
            monitor.status,
            monitor.bundle,
            host=config.grpc_host,
            port=config.grpc_port,
            traces=monitor.traces,
            control=monitor.interventions.operator if config.allow_control else None,
        )
        logger.info(
            "reading %d probes for engines at %s; gRPC %s, metrics http://%s/metrics, policy %s",
            len(monitor.bundle.all_probes),
            config.endpoint,
            server.address,
            exporter.address,
            monitor.policy.name,
        )
        if config.allow_control:
            logger.warning("everybody on this host may order engines to steer, at %s (--allow-control)", server.address)
        logger.info("the monitor %s", source.describe())
        _tell(log)
        awaiting = asyncio.create_task(tell_of_no_engine(monitor.stats, source.describe, config.limits.hello_seconds))
        await _until_signalled(monitor)
    finally:
        if awaiting is not None:
            awaiting.cancel()
        if server is not None:
            await server.stop()
        if exporter is not None:
            exporter.close()
        monitor.close()


def _on_hang_up(monitor: Monitor, path: Path | None) -> None:
    """Read the policy again on SIGHUP, or end where the terminal is gone."""
    terminal = Terminal()

    def hang_up() -> None:
        if terminal.gone:
            signal.raise_signal(signal.SIGTERM)
        else:
            # What rotates logs sends it as well.
            monitor.look_at_audit()
            _read_policy_again(monitor, path)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up)


def _read_policy_again(monitor: Monitor, path: Path | None) -> None:
    """Let another policy decide; one that cannot be used changes nothing, and is an event."""
    if path is None:
        return monitor.refuse_policy(monitor.policy.name, "There is no file to read again: start with --policy.")
    try:
        policy = load_policy(path, monitor.bundle)
    except PolicyError as error:
        return monitor.refuse_policy(str(path), str(error))
    return monitor.change_policy(policy)


async def _until_signalled(monitor: Monitor) -> None:
    running = asyncio.create_task(monitor.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        logger.info("stopping")
