"""Events that a listener of a real server has heard."""

from monitor.events import request_of


def about(listener, request_id, kind) -> list:
    """Events of a kind that are about a request."""
    return [
        recorded.event
        for recorded in listener.events
        if isinstance(recorded.event, kind)
        and (request := request_of(recorded.event)) is not None
        and request.request_id == request_id
    ]
