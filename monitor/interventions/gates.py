"""Gates that engines have armed: those of the policy that enforce, and none of an earlier one.

1. An engine that says HELLO, fits and is not held to shadow is ordered to arm the gates of the policy that are about
   its model. So is one that was lost and is heard again: it tunes what it has.
2. Gates of another policy are disarmed: those that the engine says are armed, or, where it does not say, those that the
   store says an earlier monitor armed, and any that is heard of by what it decides.
3. An engine that is held to shadow is ordered to disarm all of them.
4. What an engine cannot do by a gate, because it has none for it or refuses, the monitor orders itself, from the next
   step on; so it does for a request that the gate leaves out, since its orders leave no room for it under the cap, and
   for one that was in flight before the gate was ordered, which may have read past what the gate should see. Until the
   gate is heard to open there all the same, that request may be steered twice for a few steps, within the caps: less
   of a risk than a firing that nobody acts on.
5. Another policy may come at any time: what it does not want is disarmed, and what it wants is armed. What both want
   stays as it is, since a gate's id says what the gate does.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from monitor.events import Ordered, OrderKind, Request, words
from monitor.interventions.gate_facts import OPERATOR_PREFIX, GateFacts, policy_facts
from monitor.interventions.orders import SendOrder, arm_order
from monitor.interventions.state import RequestStates
from monitor.policy import GATE_PREFIX, Policy, PolicyGate
from monitor.sinks.recorder import Recorder
from monitor.telemetry.stats import Stats
from monitor.wire.frames import Hello
from monitor.wire.orders import Disarm
from probes.bundle import Bundle

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Engine:
    model: str = ""
    sent: set[str] = field(default_factory=set[str])
    """Gates that it was ordered to arm."""
    refused: set[str] = field(default_factory=set[str])
    """Gates that it cannot arm; what they would decide, the monitor orders."""
    before: set[str] = field(default_factory=set[str])
    """Gates that an earlier monitor armed, as far as is known; to be disarmed."""
    disarmed: set[str] = field(default_factory=set[str])
    """Gates that it was ordered to disarm, so that each is recorded once."""
    said: Hello | None = None
    """Its last HELLO."""
    enforced: bool = False
    """It scores with the bundle and is not held to shadow."""


class Gates:
    """Keeps the gates of engines as the policy wants them.

    Args:
        policy: Has the gates.
        bundle: Has their probes.
        recorder: Takes an event for every order.
        stats: Where orders are counted.
        send_order: Sends orders.
        states: Of requests: which gates leave them out.
        before: Gates that an earlier monitor armed, by engine, as far as the store knows.
        keep: Tells whether a gate is an operator's whose lease still runs.
        in_flight: Keys of the requests in flight of an engine.
    """

    def __init__(
        self,
        policy: Policy,
        bundle: Bundle,
        recorder: Recorder,
        stats: Stats,
        send_order: SendOrder,
        *,
        states: RequestStates,
        before: Mapping[str, Collection[str]],
        keep: Callable[[str], bool],
        in_flight: Callable[[str], Iterable[str]],
    ) -> None:
        self._bundle = bundle
        self._facts: dict[str, GateFacts] = {}
        self._take(policy)
        self._recorder, self._stats, self._send, self._keep = recorder, stats, send_order, keep
        self._states, self._before, self._in_flight = states, before, in_flight
        self._engines: dict[str, _Engine] = {}

    def change_policy(self, policy: Policy) -> None:
        """Arm the gates of another policy, and disarm those that it does not have."""
        self._take(policy)
        for engine, state in self._engines.items():
            # Tried again: another gate may have made room.
            state.sent -= state.refused
            state.refused.clear()
            if state.said is not None:
                self._bring_up_to_date(engine, state, state.said)

    def facts(self, gate: str) -> GateFacts | None:
        """Facts of a gate of the policy, or of the one before it, whose decisions may still be under way."""
        return self._facts.get(gate)

    def holds(self, request: Request, gate: str) -> bool:
        """True where its engine decides on the request by this gate, as far as is known."""
        state = self._engines.get(request.engine)
        if state is None or gate not in state.sent or gate in state.refused:
            return False
        found = self._states.find(request.engine, request.engine_request_id)
        return found is None or gate not in found.left_out_by

    def hello(self, hello: Hello, *, enforced: bool) -> None:
        """Bring an engine's gates up to date.

        Args:
            hello: What it said.
            enforced: It scores with the bundle, and is not held to shadow.
        """
        engine = hello.engine
        state = self._engines.get(engine)
        if state is None:
            state = self._engines[engine] = _Engine(before=set(self._before.get(engine, ())))
        state.model, state.said, state.enforced = hello.model, hello, enforced
        # What it has armed again since it was disarmed, is disarmed again.
        state.disarmed &= set(hello.armed or ())
        self._bring_up_to_date(engine, state, hello)

    def _bring_up_to_date(self, engine: str, state: _Engine, hello: Hello) -> None:
        wanted = {id: gate for id, gate in self._gates.items() if state.enforced and gate.rule.covers(hello.model)}
        self._disarm_others(engine, state, hello, wanted)
        # First what it has: there may be too few for all, and one that is taken away leaves its requests unsteered.
        has = (state.sent - state.refused) | set(hello.armed or ())
        for index, gate in enumerate(sorted(wanted.values(), key=lambda gate: gate.id not in has)):
            if gate.id in state.refused:
                continue
            if hello.gates is not None and index >= hello.gates:
                why = f"it has {hello.gates} gates" if hello.gates else "it was started without gates"
                self._refuse(engine, state, gate, f"{why}; the monitor orders this itself, from the next step on")
            elif gate.id not in state.sent:
                self._arm(engine, state, gate, hello)

    def lost(self, engine: str) -> None:
        """Forget what an engine that fell silent was ordered: when it is heard again, its gates are armed again."""
        if (state := self._engines.get(engine)) is not None:
            state.sent.clear()
            state.refused.clear()
            state.disarmed.clear()
            # What it has armed when it is heard again, it says then.
            state.said = None
        for request in self._states.on(engine):
            request.left_out_by.clear()

    def forget(self, engine: str) -> None:
        """Let go of an engine that is gone."""
        self._engines.pop(engine, None)

    def refused(self, engine: str, gate: str) -> bool:
        """Note that an engine does not arm a gate; what it would decide, the monitor orders.

        Returns:
            Whether it was ordered to, and is to have it still.
        """
        if (state := self._engines.get(engine)) is None or gate not in state.sent:
            return False
        state.refused.add(gate)
        return True

    def left_out(self, request: Request, gate: str) -> bool:
        """Note that a gate does not steer one request in flight; true where the monitor is to order it instead."""
        if (state := self._engines.get(request.engine)) is None or gate not in state.sent:
            return False
        self._states.of(request.engine, request.engine_request_id).left_out_by.add(gate)
        return True

    def opened(self, request: Request, gate: str) -> None:
        """Note that a gate steers a request in flight: it was armed early enough."""
        if (state := self._states.find(request.engine, request.engine_request_id)) is not None:
            state.left_out_by.discard(gate)

    def heard_of(self, engine: str, gate: str) -> None:
        """Disarm a gate that decides and should not: of an earlier policy, or of a lease that has ended."""
        state = self._engines.get(engine)
        if state is not None and self._is_stray(gate):
            self._disarm(engine, state, gate)

    def _take(self, policy: Policy) -> None:
        before = {id: self._facts[id] for id in self._gates} if self._facts else {}
        self._gates, self._max_dose = policy.gates, policy.max_dose
        self._facts = before | {id: policy_facts(gate, self._bundle) for id, gate in self._gates.items()}

    def _is_stray(self, gate: str) -> bool:
        ours = gate.startswith((GATE_PREFIX, OPERATOR_PREFIX))
        return ours and gate not in self._gates and not self._keep(gate)

    def _disarm_others(self, engine: str, state: _Engine, hello: Hello, wanted: Collection[str]) -> None:
        """Disarm what the engine has, or may have, and should not."""
        armed = set(hello.armed or ())
        # What was ordered it may only be about to arm: orders ride with a step, and an idle engine makes none.
        has = state.sent | (armed if hello.armed is not None else state.before)
        for gate in sorted(has):
            if gate not in wanted and (gate in self._gates or self._is_stray(gate)):
                self._disarm(engine, state, gate)
        state.before.clear()

    def _arm(self, engine: str, state: _Engine, gate: PolicyGate, hello: Hello) -> None:
        order = arm_order(gate.id, gate.rule.probe, gate.does, max_dose=self._max_dose)
        if not self._send(engine, order):
            # Tried again with the next HELLO, which is what says that it can be reached.
            logger.warning("The order to arm %s did not reach engine %s.", gate.id, engine)
            return
        if gate.id in state.disarmed or gate.id not in (hello.armed or ()):
            for engine_request_id in self._in_flight(engine):
                self._states.of(engine, engine_request_id).left_out_by.add(gate.id)
        state.sent.add(gate.id)
        state.disarmed.discard(gate.id)
        self._tell(engine, state, gate.id, "arm", words.rule_decided(gate.rule.name, "enforce", gate.does))

    def _disarm(self, engine: str, state: _Engine, gate: str) -> None:
        if gate in state.disarmed or not self._send(engine, Disarm(gate)):
            return
        state.sent.discard(gate)
        state.disarmed.add(gate)
        self._tell(engine, state, gate, "disarm", f"disarm {gate}, which no rule in force wants")

    def _refuse(self, engine: str, state: _Engine, gate: PolicyGate, why: str) -> None:
        state.refused.add(gate.id)
        logger.error("Engine %s does not decide by gate %s: %s.", engine, gate.id, why)
        self._tell(engine, state, gate.id, "arm", words.rule_decided(gate.rule.name, "enforce", gate.does), why)

    def _tell(self, engine: str, state: _Engine, gate: str, kind: OrderKind, detail: str, why: str = "") -> None:
        result = "refused" if why else "sent"
        self._stats.orders["policy", kind, result] += 1
        self._recorder.record(Ordered(gate, kind, result, engine, state.model, None, "policy", None, detail, why))
