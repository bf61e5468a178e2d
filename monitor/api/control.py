"""The calls of ``monitor.v1.ControlService``: an operator's orders."""

from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from monitor.interventions.leases import Lease, LeaseError, Why, Wish
from monitor.interventions.operator import Operator
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
            wish = _wish(request.act, tokens=request.tokens if request.HasField("tokens") else None)
            lease = self._operator.steer(_who(context), request.request_id, wish, request.lease_seconds)
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
        given = {
            name: getattr(request, name) if request.HasField(name) else None
            for name in ("tokens", "threshold", "streak", "release", "hold")
        }
        try:
            wish = _wish(request.act, **given)
            lease = self._operator.arm(_who(context), request.probe, wish, request.lease_seconds)
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


def _wish(act: pb.Act, **given: Any) -> Wish:
    """What is wished."""
    match act.operation:
        case event_pb2.OPERATION_ADD:
            return Wish(act.vector, dose=act.dose, **given)
        case event_pb2.OPERATION_ABLATE:
            return Wish(act.vector, ablate=True, **given)
        case event_pb2.OPERATION_CLAMP:
            low = act.low if act.HasField("low") else None
            high = act.high if act.HasField("high") else None
            return Wish(act.vector, clamp=(low, high), **given)
        case _:
            # Refused with the rest, so that it is counted and on record.
            return Wish(act.vector, **given)


def _order(lease: Lease, left: float) -> pb.Order:
    kind = event_pb2.ORDER_KIND_STEER if lease.kind == "steer" else event_pb2.ORDER_KIND_ARM
    return pb.Order(id=lease.id, kind=kind, detail=lease.detail, remaining_seconds=left)


def _who(context: Context) -> str:
    """The peer, as far as it is known: without TLS, its address."""
    return f"operator {context.peer()}"


async def _refuse(context: Context, error: LeaseError) -> NoReturn:
    await context.abort(_CODES[error.why], str(error))
