"""``plumbob order`` and ``plumbob trace``: what an operator does, and what is kept of a request that was escalated."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from monitor.cli.console import out
from monitor.errors import PrerequisiteError
from monitor.service.config import GRPC_PORT
from probes.errors import PlumbobError

ANSWER_SECONDS: Final = 5.0
"""Seconds to wait for a monitor to answer a call."""

order = typer.Typer(
    help="Order engines to steer, for a while; the monitor must run with --allow-control.", no_args_is_help=True
)

Address = Annotated[str, typer.Option(help="host:port of the monitor's gRPC server.")]
Vector = Annotated[str, typer.Argument(metavar="VECTOR", help="A steering vector of the bundle.")]
Lease = Annotated[
    float, typer.Option(metavar="SECONDS", help="When to undo it, at most 3600; the engine does so in any case.")
]
Dose = Annotated[float | None, typer.Option(help="Add so much, relative to the norm of the residual stream.")]
Ablate = Annotated[bool, typer.Option("--ablate", help="Take the projection away.")]
Low = Annotated[float | None, typer.Option(help="Keep the projection at this at least.")]
High = Annotated[float | None, typer.Option(help="Keep the projection at this at most.")]
Tokens = Annotated[int | None, typer.Option(min=1, help="The most that are steered of a request.")]

_ADDRESS: Final = f"127.0.0.1:{GRPC_PORT}"


@order.command("steer")
def steer_request(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST", help="Id of a request in flight.")],
    vector: Vector,
    lease: Lease,
    dose: Dose = None,
    ablate: Ablate = False,
    low: Low = None,
    high: High = None,
    tokens: Tokens = None,
    address: Address = _ADDRESS,
) -> None:
    """Steer a request in flight from its next step on."""
    from monitor.v1.control_service_pb2 import SteerRequest

    act = _act(vector, dose, ablate, low, high)
    wanted = SteerRequest(request_id=request_id, act=act, lease_seconds=lease, tokens=tokens)
    with _control(address) as call:
        answer = call("Steer", wanted)
    out.print(Text(f"{answer.order.id}: {answer.order.detail}, for {lease:g} s at most"))


@order.command("arm")
def arm_gate(
    probe: Annotated[str, typer.Argument(metavar="PROBE", help="A probe that the engine reads.")],
    vector: Vector,
    lease: Lease,
    dose: Dose = None,
    ablate: Ablate = False,
    low: Low = None,
    high: High = None,
    tokens: Tokens = None,
    threshold: Annotated[float | None, typer.Option(help="In logits, instead of the probe's own.")] = None,
    release: Annotated[float | None, typer.Option(help="Stay open until averages fall below this, in logits.")] = None,
    hold: Annotated[int | None, typer.Option(min=0, help="Steer so many tokens after the last one over it.")] = None,
    address: Address = _ADDRESS,
) -> None:
    """Let engines steer whatever request a probe fires in, from the very token at which it does."""
    from monitor.v1.control_service_pb2 import ArmRequest

    wanted = ArmRequest(
        probe=probe,
        act=_act(vector, dose, ablate, low, high),
        lease_seconds=lease,
        threshold=threshold,
        release=release,
        hold=hold,
        tokens=tokens,
    )
    with _control(address) as call:
        answer = call("Arm", wanted)
    out.print(Text(f"{answer.order.id}: {answer.order.detail}, on {answer.engines} engines, for {lease:g} s at most"))


@order.command("release")
def release_order(
    id: Annotated[str, typer.Argument(metavar="ORDER", help="Its id.")], address: Address = _ADDRESS
) -> None:
    """Undo an order to steer before its lease ends."""
    from monitor.v1.control_service_pb2 import ReleaseRequest

    with _control(address) as call:
        call("Release", ReleaseRequest(id=id))
    out.print(Text(f"{id}: released"))


@order.command("disarm")
def disarm_gate(
    id: Annotated[str, typer.Argument(metavar="ORDER", help="Its id.")], address: Address = _ADDRESS
) -> None:
    """Undo an order to arm before its lease ends."""
    from monitor.v1.control_service_pb2 import DisarmRequest

    with _control(address) as call:
        call("Disarm", DisarmRequest(id=id))
    out.print(Text(f"{id}: disarmed"))


@order.command("list")
def list_orders(address: Address = _ADDRESS) -> None:
    """Print the orders whose leases run."""
    from monitor.v1.control_service_pb2 import ListOrdersRequest

    with _control(address) as call:
        answer = call("ListOrders", ListOrdersRequest())
    for found in answer.orders:
        out.print(Text(_printable(f"{found.id}: {found.detail}, for another {found.remaining_seconds:.0f} s")))


def trace(
    request_id: Annotated[
        str | None, typer.Argument(metavar="[REQUEST]", help="Id of a request that was escalated.")
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a trace.")] = False,
    address: Address = _ADDRESS,
) -> None:
    """Print what was read and decided of a request that a rule escalated; without one, list those."""
    from monitor.cli.watch import format_event, format_json
    from monitor.v1.monitor_service_pb2 import GetTraceRequest, ListTracesRequest

    with _reading(address) as call:
        if request_id is None:
            answer = call("ListTraces", ListTracesRequest())
        else:
            answer = call("GetTrace", GetTraceRequest(request_id=request_id))
    for found in answer.traces:
        if json_lines:
            out.out(format_json(found), highlight=False)
            continue
        state = "finished" if found.finished else "in flight"
        when = f"{found.escalated.ToDatetime():%Y-%m-%d %H:%M:%S} UTC"
        part = f" ({found.request.part})" if found.request.part else ""
        out.print(
            Text(_printable(f"{found.request.request_id}{part} escalated {when}, {state}, {found.request.model}"))
        )
        for event in found.events:
            out.print(format_event(event), soft_wrap=True)
        for point in found.points:
            read = (f"{a.logits:.2f}" if a.HasField("logits") else "–" for a in point.averages)
            averages = ", ".join(f"{probe} {value}" for probe, value in zip(found.probes, read, strict=False))
            out.print(Text(f"token {point.position}: {averages}"))


def _act(vector: str, dose: float | None, ablate: bool, low: float | None, high: float | None) -> Any:
    """The steering to be done, as a message.

    Raises:
        PlumbobError: It is not exactly one thing.
    """
    from monitor.v1 import event_pb2
    from monitor.v1.control_service_pb2 import Act

    clamp = low is not None or high is not None
    if (dose is not None) + ablate + clamp != 1:
        raise PlumbobError("An order does exactly one thing.", "Give one of --dose, --ablate, and --low with --high.")
    if dose is not None:
        return Act(vector=vector, operation=event_pb2.OPERATION_ADD, dose=dose)
    if ablate:
        return Act(vector=vector, operation=event_pb2.OPERATION_ABLATE)
    return Act(vector=vector, operation=event_pb2.OPERATION_CLAMP, low=low, high=high)


Call = Callable[[str, Any], Any]


@contextmanager
def _control(address: str) -> Generator[Call]:
    from monitor.v1.control_service_pb2_grpc import ControlServiceStub

    with _calling(address, ControlServiceStub, "It takes no orders: start it with --allow-control.") as call:
        yield call


@contextmanager
def _reading(address: str) -> Generator[Call]:
    from monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub

    with _calling(address, MonitorServiceStub, "Use the same version of plumbob on both sides.") as call:
        yield call


@contextmanager
def _calling(address: str, stub: Callable[[Any], Any], missing: str) -> Generator[Call]:
    """Call a monitor; what it refuses is an error with its own words.

    Raises:
        PrerequisiteError: No monitor answers, or it has no such service.
        PlumbobError: It refuses.
    """
    import grpc

    from monitor.api.client import channel_to

    if not address.strip():
        raise PlumbobError(f"'{address}' is no address of a monitor.", "Write it as host:port, or leave it out.")
    with channel_to(address) as channel:
        service = stub(channel)
        try:
            yield lambda name, message: getattr(service, name)(message, timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            code, said = error.code(), error.details() or ""  # type: ignore[attr-defined]
            if code is grpc.StatusCode.UNIMPLEMENTED:
                raise PrerequisiteError(f"The monitor at {address} does not do that.", missing) from error
            unreachable = code is grpc.StatusCode.UNAVAILABLE and not said.startswith(("Engine", "No engine"))
            if unreachable or code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise PrerequisiteError(
                    f"No monitor answers at {address}.", "Start one with plumbob monitor, or name its --address."
                ) from error
            raise PlumbobError(f"The monitor refuses: {said}") from error


def _printable(text: str) -> str:
    """Ids are chosen by clients: they must not send escape codes to a terminal."""
    return "".join(char if char.isprintable() else "�" for char in text)
