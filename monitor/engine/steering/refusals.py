"""Orders that are not carried out, as the monitor is told of them."""

from monitor.errors import OrderError
from monitor.wire.frames import Refusal
from monitor.wire.orders import Order


def refusal(order: Order, error: OrderError, key: str = "") -> Refusal:
    """Of an order, for want of what the error says; not numbered yet, as −1 says.

    Args:
        order: What is not carried out.
        error: Why.
        key: The one request that a gate for all does not steer; empty: it is refused as a whole.
    """
    id, named = (getattr(order, field, None) or "" for field in ("id", "key"))
    tag = type(order).__struct_config__.tag
    return Refusal(number=-1, order=str(tag), id=id, key=key or named, cause=error.cause, reason=str(error))


def admission_refusal(key: str, error: OrderError) -> Refusal:
    """Of what a request itself asked for; not numbered yet."""
    return Refusal(number=-1, order="admission", id="", key=key, cause=error.cause, reason=str(error))
