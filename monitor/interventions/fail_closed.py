"""Rules that fail closed: a generation that cannot be steered as they say is stopped, which is recorded."""

from typing import Final, Protocol

from monitor.events import Request
from monitor.interventions.orders import SendOrder
from monitor.interventions.state import Case, Failure, Identity, RequestState, RequestStates
from monitor.policy import SteerAction, StopAction
from monitor.wire.orders import Stop

UNREACHABLE: Final = "the engine could not be reached"


class RecordIntervention(Protocol):
    """Records what was done to a generation, or would have been."""

    def __call__(self, case: Case, action: SteerAction | StopAction, *, sent: bool, refusal: str) -> None:
        """Record it; ``refusal`` says why nothing was changed, empty where it was."""
        ...


class FailClosed:
    """Stops generations, each once, as soon as their engine can be reached.

    Args:
        states: Of requests.
        send_order: Sends orders.
        record: Records what was stopped, and what ended before it could be.
    """

    def __init__(self, states: RequestStates, send_order: SendOrder, record: RecordIntervention) -> None:
        self._states, self._send, self._record = states, send_order, record
        self._waiting: dict[Identity, None] = {}
        """Requests to be stopped, whose engine could not be reached; no more than there are states."""

    def stop(self, case: Case, why: str) -> None:
        """Stop a generation that is not steered as it was to be.

        Args:
            case: Of the action that could not be carried out.
            why: In words.
        """
        request = case.fired.request
        state = self._states.of(request.engine, request.engine_request_id)
        if state.failure is None:
            state.failure = Failure(case, why)
            self._waiting[request.engine, request.engine_request_id] = None
            self._try(request.engine, request.engine_request_id)

    def tick(self) -> None:
        """Stop what could not be stopped before."""
        for identity in list(self._waiting):
            self._try(*identity)

    def finish(self, request: Request, state: RequestState) -> None:
        """Tell of a request that ended before it could be stopped."""
        identity = (request.engine, request.engine_request_id)
        if identity in self._waiting and state.failure is not None:
            del self._waiting[identity]
            self._tell(state.failure, refusal=f"{UNREACHABLE} before the request ended")

    def forget_engine(self, engine: str) -> None:
        """Ask no more of an engine that is gone."""
        for identity in [identity for identity in self._waiting if identity[0] == engine]:
            del self._waiting[identity]

    def _try(self, engine: str, engine_request_id: str) -> None:
        state = self._states.find(engine, engine_request_id)
        if state is None or state.failure is None:
            # It was forgotten for want of room, which is counted there.
            del self._waiting[engine, engine_request_id]
            return
        decision = state.failure.case.decision
        action = decision.action
        message = action.on_refusal.message if isinstance(action, SteerAction) and action.on_refusal else ""
        if self._send(engine, Stop(engine_request_id, message, f"{decision.rule}:closed")):
            del self._waiting[engine, engine_request_id]
            self._tell(state.failure)

    def _tell(self, failure: Failure, refusal: str = "") -> None:
        reason = f"that was refused ({failure.why.rstrip('.')}), and the rule fails closed: stop"
        self._record(failure.case.because(reason), StopAction(""), sent=not refusal, refusal=refusal)
