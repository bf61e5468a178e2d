"""Orders that are not carried out, as they are reported to the monitor."""

from monitor.errors import OrderError
from monitor.wire.frames import Refusal
from monitor.wire.orders import Order, Release, Steer, Stop, Stream


def refusal(order: Order, error: OrderError, engine_request_id: str = "") -> Refusal:
    """Of an order, for want of what the error says; not numbered yet, as −1 says.

    Args:
        order: What is not carried out.
        error: Why.
        engine_request_id: The one request that a gate for all does not steer; empty: it is refused as a whole.
    """
    named = order.engine_request_id if isinstance(order, Steer | Release | Stop) else ""
    return Refusal(
        number=-1,
        order=str(type(order).__struct_config__.tag),
        id="" if isinstance(order, Stream) else order.id,
        engine_request_id=engine_request_id or named,
        cause=error.cause,
        reason=str(error),
    )


def admission_refusal(engine_request_id: str, error: OrderError) -> Refusal:
    """Of what a request itself asked for; not numbered yet."""
    return Refusal(
        number=-1, order="admission", id="", engine_request_id=engine_request_id, cause=error.cause, reason=str(error)
    )
