"""The server around the service: health, reflection, addresses, stopping."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from monitor.api.server import SERVICE
from monitor.errors import PortError
from monitor.v1.monitor_service_pb2 import WatchEventsRequest
from monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).parents[2]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_of_the_server_and_of_the_service(monitor, service):
    async def run():
        async with monitor.serve() as server, grpc.aio.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
            watch = health.Watch(health_pb2.HealthCheckRequest(service=service))
            assert (await watch.read()).status == SERVING
            stop = asyncio.create_task(server.stop(1.0))
            assert (await watch.read()).status == NOT_SERVING
            await stop

    asyncio.run(run())


def test_reflection_lists_the_services(monitor):
    async def run():
        async with monitor.serve() as server, grpc.aio.insecure_channel(server.address) as channel:
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            answer = await call.read()
            assert {service.name for service in answer.list_services_response.service} >= {
                SERVICE,
                "grpc.health.v1.Health",
            }
            call.cancel()

    asyncio.run(run())


def test_stopping_hands_out_what_waits_and_then_says_unavailable(monitor):
    async def run():
        async with monitor.serve() as server, grpc.aio.insecure_channel(server.address) as channel:
            call = MonitorServiceStub(channel).WatchEvents(WatchEventsRequest())
            await call.initial_metadata()
            for _ in range(3):
                monitor.publish_alert()
            stop = asyncio.create_task(server.stop(30.0))
            assert [(await call.read()).event.sequence for _ in range(3)] == [1, 2, 3]
            # Without waiting for the grace period: nobody is left to wait for.
            async with asyncio.timeout(10):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await call.read()
                await stop
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(run())


def test_a_port_in_use_is_named_with_its_fix(monitor):
    async def run():
        async with monitor.serve() as server:
            port = int(server.address.rpartition(":")[2])
            with pytest.raises(PortError, match=rf"127\.0\.0\.1:{port}: Address already in use\. .*another port"):
                async with monitor.serve(port=port):
                    pass

    asyncio.run(run())


def test_a_port_is_refused_even_if_its_owner_would_share_it(monitor):
    with socket.socket() as owner:
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        owner.bind(("127.0.0.1", 0))
        owner.listen()

        async def run():
            with pytest.raises(PortError):
                async with monitor.serve(port=owner.getsockname()[1]):
                    pass

        asyncio.run(run())


def test_a_port_is_free_again_after_a_stop(monitor):
    async def run():
        async with monitor.serve() as server, grpc.aio.insecure_channel(server.address) as channel:
            await channel.channel_ready()
        async with monitor.serve(port=int(server.address.rpartition(":")[2])) as again:
            assert again.address == server.address

    asyncio.run(run())


CLIENT = """
import sys
import grpc
from monitor.v1 import monitor_service_pb2 as messages, monitor_service_pb2_grpc as stubs

with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = stubs.MonitorServiceStub(channel)
    probes = stub.ListProbes(messages.ListProbesRequest(), timeout=20)
    for response in stub.WatchEvents(messages.WatchEventsRequest(after_sequence=0), timeout=20):
        print(len(probes.probes), response.event.alert.request.request_id)
        break
"""


def test_a_client_made_from_the_proto_files_alone(monitor, tmp_path):
    """In a process that has nothing of this project but the .proto files."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    protos = sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "proto")]
    subprocess.run([*command, f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}", *protos], check=True)
    (tmp_path / "client.py").write_text(CLIENT)

    async def run():
        monitor.publish_alert("chat-7")
        async with monitor.serve() as server:
            client = await asyncio.create_subprocess_exec(
                *(sys.executable, "client.py", server.address),
                cwd=tmp_path,
                env={"PATH": ""},
                stdout=subprocess.PIPE,
            )
            output, _ = await client.communicate()
            assert client.returncode == 0
            assert output.decode().split() == ["3", "chat-7"]

    asyncio.run(run())
