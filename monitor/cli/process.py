"""``plumbob monitor``: the monitor's process, from its files to its servers and back."""

import asyncio
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from monitor.actions import LogSink
from monitor.api import ApiServer, MetricsExporter, MonitorCollector
from monitor.api.address import require_free
from monitor.ingest import LocalSource
from monitor.policy import Policy, default_policy, load_policy
from monitor.runtime import Monitor
from probes.bundle import Bundle, load_bundle

logger = logging.getLogger("plumbob")


def run_monitor(
    bundle_path: Path,
    policy_path: Path | None,
    *,
    endpoint: str,
    host: str,
    metrics_port: int,
    grpc_port: int,
    trust: Sequence[Path] = (),
) -> None:
    """Monitor until interrupted or terminated.

    Args:
        bundle_path: What the engines score with.
        policy_path: What to do when a probe fires; ``None``: alert.
        endpoint: Where engines find the monitor.
        host: Interface of both servers.
        metrics_port: Of ``/metrics``.
        grpc_port: Of the gRPC server.
        trust: Public keys, one of which must have signed the bundle; none: it need not be signed.

    Raises:
        PlumbobError: A file is wrong or an address is in use; nothing is left running.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    bundle = load_bundle(bundle_path)
    if trust:
        from probes.signing import require_signature

        require_signature(bundle, trust)
    policy = load_policy(policy_path, bundle) if policy_path else default_policy(bundle)
    asyncio.run(_monitor(bundle, policy, endpoint, host, metrics_port, grpc_port))


async def _monitor(bundle: Bundle, policy: Policy, endpoint: str, host: str, metrics_port: int, grpc_port: int) -> None:
    # First of all, since a socket file outlives the one who bound it.
    require_free("The metrics exporter", host, metrics_port)
    require_free("The gRPC server", host, grpc_port)
    monitor = Monitor(bundle, policy, LocalSource(endpoint), sinks=[LogSink()])
    exporter: MetricsExporter | None = None
    server: ApiServer | None = None
    try:
        registry = CollectorRegistry()
        registry.register(MonitorCollector(monitor.stats, monitor.status, monitor.events, bundle))
        exporter = MetricsExporter(registry, host=host, port=metrics_port)
        server = await ApiServer.start(monitor.events, monitor.status, bundle, host=host, port=grpc_port)
        logger.info(
            "reading %d probes for engines at %s; gRPC %s, metrics http://%s/metrics, policy %s",
            len(bundle.probes),
            endpoint,
            server.address,
            exporter.address,
            policy.name,
        )
        await _until_signalled(monitor)
    finally:
        if server is not None:
            await server.stop()
        if exporter is not None:
            exporter.close()
        monitor.close()


async def _until_signalled(monitor: Monitor) -> None:
    running = asyncio.create_task(monitor.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        logger.info("stopping")
