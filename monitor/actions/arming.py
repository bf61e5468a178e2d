"""Which gates engines have armed: those of the policy that enforce, and none of an earlier one.

1. An engine that says HELLO, fits and is not held to shadow is ordered to arm the gates of the policy that are about
   its model. So is one that was lost and is heard again: it tunes what it has.
2. Gates of another policy are disarmed: those that the engine says are armed, or, where it does not say, those that the
   audit log says an earlier monitor armed, and any that is heard of by what it decides.
3. An engine that is held to shadow is ordered to disarm all of them.
4. What an engine cannot do by a gate, because it has none for it or refuses, the monitor orders itself, from the next
   step on.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from monitor.actions.gates import OPERATOR_PREFIX, GateFacts, arm_order, policy_facts
from monitor.actions.recorder import Recorder
from monitor.events import Ordered, OrderKind
from monitor.frames import Arm, Disarm, Hello, Order
from monitor.policy import GATE_PREFIX, Policy, PolicyGate
from monitor.stats import Stats
from probes.bundle import Bundle

SendOrder = Callable[[str, Order], bool]

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
    """Gates that it was ordered to disarm, so that each is told once."""


class Arming:
    """Keeps the gates of engines as the policy wants them.

    Args:
        policy: Has the gates.
        bundle: Has their probes.
        recorder: Takes an event for every order.
        stats: Where orders are counted.
        send_order: Sends orders.
        before: Gates that an earlier monitor armed, by engine, as far as its audit log says.
        keep: Tells whether a gate is an operator's whose lease still runs.
    """

    def __init__(
        self,
        policy: Policy,
        bundle: Bundle,
        recorder: Recorder,
        stats: Stats,
        send_order: SendOrder,
        *,
        before: Mapping[str, Collection[str]],
        keep: Callable[[str], bool],
    ) -> None:
        self._gates = policy.gates
        self._facts = {id: policy_facts(gate, bundle) for id, gate in self._gates.items()}
        self._recorder, self._stats, self._send, self._keep = recorder, stats, send_order, keep
        self._before = before
        self._engines: dict[str, _Engine] = {}

    def facts(self, gate: str) -> GateFacts | None:
        """What is known of a gate of the policy."""
        return self._facts.get(gate)

    def holds(self, engine: str, gate: str) -> bool:
        """Whether the engine decides by this gate, as far as is known."""
        state = self._engines.get(engine)
        return state is not None and gate in state.sent and gate not in state.refused

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
        state.model = hello.model
        wanted = {id: gate for id, gate in self._gates.items() if enforced and gate.rule.covers(hello.model)}
        self._disarm_others(engine, state, hello, wanted)
        for index, gate in enumerate(wanted.values()):
            if gate.id in state.refused:
                continue
            if hello.gates is not None and index >= hello.gates:
                why = f"it has {hello.gates} gates" if hello.gates else "it was started without gates"
                self._refuse(engine, state, gate, f"{why}; the monitor orders this itself, from the next step on")
            elif gate.id not in state.sent:
                self._arm(engine, state, gate)

    def lost(self, engine: str) -> None:
        """An engine fell silent: when it is heard again, its gates are armed again."""
        if (state := self._engines.get(engine)) is not None:
            state.sent.clear()
            state.refused.clear()
            state.disarmed.clear()

    def forget(self, engine: str) -> None:
        """An engine is gone."""
        self._engines.pop(engine, None)

    def refused(self, engine: str, gate: str) -> None:
        """An engine says that it does not arm a gate; what it would decide, the monitor orders."""
        if (state := self._engines.get(engine)) is not None and gate in state.sent:
            state.refused.add(gate)

    def heard_of(self, engine: str, gate: str) -> None:
        """A gate has decided something: one of an earlier policy, or of a lease that has ended, is disarmed."""
        state = self._engines.get(engine)
        if state is not None and self._is_stray(gate):
            self._disarm(engine, state, gate)

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
        # What it has armed again since is disarmed again.
        state.disarmed &= armed

    def _arm(self, engine: str, state: _Engine, gate: PolicyGate) -> None:
        order: Arm = arm_order(gate)
        if not self._send(engine, order):
            # Tried again with the next HELLO, which is what says that it can be reached.
            logger.warning("The order to arm %s did not reach engine %s.", gate.id, engine)
            return
        state.sent.add(gate.id)
        state.disarmed.discard(gate.id)
        self._tell(engine, state, gate.id, "arm", f"rule '{gate.rule.name}' enforces: {gate.action}")

    def _disarm(self, engine: str, state: _Engine, gate: str) -> None:
        if gate in state.disarmed or not self._send(engine, Disarm(gate)):
            return
        state.sent.discard(gate)
        state.disarmed.add(gate)
        self._tell(engine, state, gate, "disarm", f"disarm {gate}, which no rule in force wants")

    def _refuse(self, engine: str, state: _Engine, gate: PolicyGate, why: str) -> None:
        state.refused.add(gate.id)
        logger.error("Engine %s does not decide by gate %s: %s.", engine, gate.id, why)
        self._tell(engine, state, gate.id, "arm", f"rule '{gate.rule.name}' enforces: {gate.action}", why)

    def _tell(self, engine: str, state: _Engine, gate: str, kind: OrderKind, detail: str, why: str = "") -> None:
        result = "refused" if why else "sent"
        self._stats.orders["policy", kind, result] += 1
        self._recorder.record(Ordered(gate, kind, result, engine, state.model, None, "policy", None, detail, why))
