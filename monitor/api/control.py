"""The calls of ``monitor.v1.ControlService``: an operator's orders."""

from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import Message

from monitor.interventions.leases import Lease, LeaseError, Why
from monitor.interventions.operator import Operator
from monitor.policy import Gate, Steering
from monitor.v1 import control_service_pb2 as pb
from monitor.v1 import event_pb2
from monitor.v1.control_service_pb2_grpc import ControlServiceServicer

Context = grpc.aio.ServicerContext[Any, Any]

_CODES: Final[dict[Why, grpc.StatusCode]] = {
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "unknown": grpc.StatusCode.NOT_FOUND,
    "state": grpc.StatusCode.FAILED_PRECONDITION,
    "full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unreachable": grpc.StatusCode.UNAVAILABLE,
}


class ControlService(ControlServiceServicer):
    """Hands orders on, on the monitor's event loop.

    Args:
        operator: Takes them.
    """

    def __init__(self, operator: Operator) -> None:
        self._operator = operator

    async def Steer(self, request: pb.SteerRequest, context: Context) -> pb.SteerResponse:
        """Steer a request in flight."""
        try:
            steering = _steering(request, None)
            lease = self._operator.steer(_who(context), request.request_id, steering, request.lease_seconds)
        except LeaseError as error:
            await _refuse(context, error)
        return pb.SteerResponse(order=_order(lease, lease.seconds))

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseResponse:
        """Undo that."""
        try:
            self._operator.undo(_who(context), "release", request.id)
        except LeaseError as error:
            await _refuse(context, error)
        return pb.ReleaseResponse()

    async def Arm(self, request: pb.ArmRequest, context: Context) -> pb.ArmResponse:
        """Arm a gate."""
        gate = Gate(**_given(request, "threshold", "release", "hold"))
        try:
            steering = _steering(request, gate)
            lease = self._operator.arm(_who(context), request.probe, steering, request.lease_seconds)
        except LeaseError as error:
            await _refuse(context, error)
        return pb.ArmResponse(order=_order(lease, lease.seconds), engines=len(lease.engines))

    async def Disarm(self, request: pb.DisarmRequest, context: Context) -> pb.DisarmResponse:
        """Undo that."""
        try:
            self._operator.undo(_who(context), "disarm", request.id)
        except LeaseError as error:
            await _refuse(context, error)
        return pb.DisarmResponse()

    async def ListOrders(self, request: pb.ListOrdersRequest, context: Context) -> pb.ListOrdersResponse:
        """Orders whose leases run."""
        return pb.ListOrdersResponse(orders=[_order(lease, left) for lease, left in self._operator.leases])


def _steering(request: pb.SteerRequest | pb.ArmRequest, gate: Gate | None) -> Steering:
    """Steering as it is written: the operator checks it, so that a refusal is counted and on record."""
    act = request.act
    given: dict[str, Any] = {"gate": gate, **_given(request, "tokens")}
    match act.operation:
        case event_pb2.OPERATION_ADD:
            return Steering(act.vector, "add", dose=act.dose, **given)
        case event_pb2.OPERATION_ABLATE:
            return Steering(act.vector, "ablate", **given)
        case event_pb2.OPERATION_CLAMP:
            return Steering(act.vector, "clamp", **_given(act, "low", "high"), **given)
        case _:
            return Steering(act.vector, **given)


def _given(message: Message, *fields: str) -> dict[str, Any]:
    """The optional fields that a message has."""
    return {field: getattr(message, field) for field in fields if message.HasField(field)}


def _order(lease: Lease, left: float) -> pb.Order:
    kind = event_pb2.ORDER_KIND_STEER if lease.kind == "steer" else event_pb2.ORDER_KIND_ARM
    return pb.Order(id=lease.id, kind=kind, detail=lease.detail, remaining_seconds=left)


def _who(context: Context) -> str:
    """The peer, as far as it is known: without TLS, its address."""
    return f"operator {context.peer()}"


async def _refuse(context: Context, error: LeaseError) -> NoReturn:
    await context.abort(_CODES[error.why], str(error))
