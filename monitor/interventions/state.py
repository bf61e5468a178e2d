"""State of requests that are steered or may be, kept once for all that act on them."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from monitor.events import ProbeFired, Request
from monitor.policy import Decision
from monitor.store import Applied, Fired, RequestEnded, SteeredRequest, Store, stored_identity
from monitor.telemetry.stats import Stats

Identity = tuple[str, str]
"""Id of an engine, and the engine's own id of the request."""


@dataclass(frozen=True, slots=True)
class Case:
    """A decision, and the firing that it is about."""

    fired: ProbeFired
    decision: Decision

    def because(self, reason: str) -> "Case":
        """The same with something added to the decision's reason."""
        return replace(self, decision=replace(self.decision, reason=f"{self.decision.reason}; {reason}"))

    def held(self, why: str) -> "Case":
        """The same in ``shadow``."""
        if self.decision.mode == "shadow":
            return self
        return replace(self, decision=replace(self.decision, mode="shadow")).because(f"held to shadow: {why}")


@dataclass(frozen=True, slots=True)
class Failure:
    """A rule that fails closed and could not steer: the generation is stopped for it, or will be."""

    case: Case
    why: str


@dataclass(slots=True)
class RequestState:
    """One request: what was done to it, and what may be left to do."""

    rules: set[str] = field(default_factory=set[str])
    """Names of the rules that were carried out."""
    orders: set[str] = field(default_factory=set[str])
    """Ids of the policy's orders to steer it."""
    fail_closed: dict[str, Case] = field(default_factory=dict[str, Case])
    """Orders to steer, by id, that the generation is stopped for should the engine refuse them."""
    left_to_gates: dict[str, Case | None] = field(default_factory=dict[str, Case | None])
    """Cases that gates decide, by the gate's id; ``None``: the gate has opened."""
    stand_ins: dict[str, str] = field(default_factory=dict[str, str])
    """Ids of orders to steer, by the gate that does the same where it can."""
    failure: Failure | None = None
    left_out_by: set[str] = field(default_factory=set[str])
    """Gates that do not steer it, or may have been armed too late to."""
    admitted: bool = False
    """The steering that it asked for is recorded."""
    inherited: set[str] = field(default_factory=set[str])
    """Of ``rules``, those that an earlier monitor carried out, as long as this one has not come across them."""
    gate_tokens: dict[str, int] = field(default_factory=dict[str, int])
    """Tokens that gates have steered, as far as they are counted, by the gate's id."""


class RequestStates:
    """Keeps the state of requests until they end, whether or not their engine is lost meanwhile.

    Args:
        max_requests: Requests to keep; beyond it the one that was touched longest ago is forgotten. As many that have
            ended are kept with the tokens that gates steered of them, since gates may say more of those.
        stats: Where those that are forgotten are counted.
        store: Knows what a monitor before this one did to them, and is to know what this one does.
    """

    def __init__(self, max_requests: int, stats: Stats, store: Store) -> None:
        self._max_requests, self._stats, self._store = max_requests, stats, store
        self._states: OrderedDict[Identity, RequestState] = OrderedDict()
        self._ended: OrderedDict[Identity, dict[str, int]] = OrderedDict()
        self._told = {identity: dict(known.fired) for identity, known in store.state.requests.items() if known.fired}
        """Firings on requests in flight that a monitor before this one told of, by probe."""

    def of(self, engine: str, engine_request_id: str) -> RequestState:
        """State of a request, from here on if there was none."""
        identity = (engine, engine_request_id)
        if (state := self._states.get(identity)) is None:
            known = self._store.state.request(engine, engine_request_id) or SteeredRequest(0.0)
            state = self._states[identity] = RequestState(
                set(known.rules), admitted=known.admitted, inherited=set(known.rules)
            )
        self._states.move_to_end(identity)
        if len(self._states) > self._max_requests:
            oldest, forgotten = self._states.popitem(last=False)
            self._stats.forgotten["request",] += 1
            if forgotten.gate_tokens:
                self._keep_tokens(oldest, forgotten.gate_tokens)
        return state

    def find(self, engine: str, engine_request_id: str) -> RequestState | None:
        """State of a request; ``None`` where nothing is known of it."""
        return self._states.get((engine, engine_request_id))

    def on(self, engine: str) -> Iterator[RequestState]:
        """The states of an engine's requests."""
        for identity in [identity for identity in self._states if identity[0] == engine]:
            yield self._states[identity]

    def carried_out(self, request: Request, cases: Sequence[Case], *, ended: bool = False) -> None:
        """Keep which rules were carried out on a request.

        Args:
            request: In flight, unless it has ended.
            cases: Those that were carried out, of whole rules.
            ended: It has: the next monitor does not hear of it.
        """
        rules = self.of(request.engine, request.engine_request_id).rules
        fresh = {case.decision.rule for case in cases} - rules
        rules |= fresh
        if fresh and not ended:
            self._store.note(Applied(request.engine, request.engine_request_id, tuple(sorted(fresh))))

    def told(self, fired: ProbeFired) -> bool:
        """Tell whether a monitor before this one recorded a firing."""
        return fired.probe in self._told.get(stored_identity(fired.request.engine, fired.request.engine_request_id), {})

    def tell(self, fired: ProbeFired, *, gate: bool = False) -> None:
        """Keep that a firing on a request in flight was told, for the next monitor.

        Args:
            fired: The firing.
            gate: A gate of the engine saw it.
        """
        request = fired.request
        self._store.note(
            Fired(request.engine, request.engine_request_id, fired.probe, fired.position, fired.aggregate, gate)
        )

    def by_gates(self, engine: str, engine_request_id: str) -> list[Fired]:
        """Firings on a request that gates saw, and that a monitor before this one told of."""
        return [
            fired for fired in self._told.get(stored_identity(engine, engine_request_id), {}).values() if fired.gate
        ]

    def finish(self, request: Request) -> RequestState | None:
        """Let go of a request that has ended.

        Returns:
            Its state; ``None`` where nothing was known of it.
        """
        identity = (request.engine, request.engine_request_id)
        state = self._states.pop(identity, None)
        self._told.pop(stored_identity(*identity), None)
        if self._store.state.request(*identity) is not None:
            self._store.note(RequestEnded(*identity))
        if state is not None and state.gate_tokens:
            self._keep_tokens(identity, state.gate_tokens)
        return state

    def count_steered(self, request: Request, gate: str, tokens: int) -> int:
        """Count the tokens of a request that a gate has steered: one that opens again counts on.

        Args:
            request: In flight, or ended.
            gate: Id of the gate.
            tokens: Steered since the request began.

        Returns:
            Those of them that were not counted yet.
        """
        identity = (request.engine, request.engine_request_id)
        if (state := self._states.get(identity)) is not None:
            counted = state.gate_tokens
        else:
            counted = self._ended.get(identity, {})
            self._keep_tokens(identity, counted)
        fresh = max(0, tokens - counted.get(gate, 0))
        counted[gate] = tokens
        return fresh

    def _keep_tokens(self, identity: Identity, counted: dict[str, int]) -> None:
        self._ended[identity] = counted
        self._ended.move_to_end(identity)
        if len(self._ended) > self._max_requests:
            self._ended.popitem(last=False)
            self._stats.forgotten["ended_request",] += 1
