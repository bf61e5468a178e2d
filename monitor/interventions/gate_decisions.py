"""Decisions of engines' gates: recorded once each, with what follows from them.

An engine repeats a decision with every frame until one that had it is confirmed, and repeats to the next monitor what
the one before it did not confirm. So decisions are numbered: whatever was recorded already is passed over, by this
monitor or, as far as it left word, by the one before. A gap in the numbers is a loss, which is counted and recorded.

A gate that opens has seen its probe reach a threshold at the very token, and from there on the request's rows are
steered and no part of a verdict. So where that is the probe's own threshold, the probe has fired: the verdict takes it
over, and every rule about the probe decides. Where it is the gate's own, the other actions of its rule follow.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from monitor.events import Intervention, InterventionEnded, InterventionsLost, ProbeFired, Request, words
from monitor.ingest import Link
from monitor.interventions.decide import Actions
from monitor.interventions.deduplicator import Deduplicator
from monitor.interventions.gate_facts import GateFacts, unknown_facts
from monitor.interventions.gates import Gates
from monitor.interventions.operator import Operator
from monitor.interventions.state import RequestStates
from monitor.policy import Policy
from monitor.sinks.recorder import Recorder
from monitor.store import Processed
from monitor.telemetry.stats import Stats
from monitor.verdicts import VerdictTable
from monitor.wire.frames import GateEvent
from probes.bundle import Bundle


class GateDecisions:
    """Records decisions, and lets rules decide on what gates have seen.

    Args:
        bundle: Has the probes.
        policy: Decides on firings.
        recorder: Takes the events.
        stats: Where decisions, steered tokens and losses are counted.
        verdicts: Where firings are taken over.
        states: Of requests.
        gates: Those of the policy.
        operator: Has gates of its own, as long as their leases run.
        actions: Carries out what the policy decides.
        processed: Numbers of the decisions that an earlier monitor recorded, by engine.
        max_engines: Engines whose numbers are kept; beyond it the one heard longest ago is forgotten.

    Attributes:
        policy: May be replaced.
    """

    def __init__(
        self,
        bundle: Bundle,
        policy: Policy,
        recorder: Recorder,
        stats: Stats,
        verdicts: VerdictTable,
        states: RequestStates,
        gates: Gates,
        operator: Operator,
        actions: Actions,
        *,
        processed: Mapping[str, AbstractSet[int]],
        max_engines: int,
    ) -> None:
        self._probes = {probe.name: probe for probe in bundle.all_probes}
        self.policy = policy
        self._recorder, self._stats, self._verdicts, self._states = recorder, stats, verdicts, states
        self._gates, self._operator, self._actions = gates, operator, actions
        self._deduplicator = Deduplicator[GateEvent](processed, max_engines, stats)

    def fresh(self, link: Link, events: Sequence[GateEvent]) -> list[GateEvent]:
        """Decisions that were not recorded yet; those that are missing before them are counted as lost."""
        fresh, missing = self._deduplicator.fresh(link.engine, events)
        if missing:
            self._stats.gate_decisions_lost[link.model,] += missing
            self._recorder.record(InterventionsLost(link.engine, link.model, missing))
        return fresh

    def take(self, link: Link, events: Sequence[GateEvent]) -> list[GateEvent]:
        """Take decisions on requests that the verdict table follows.

        Returns:
            The others.
        """
        others: list[GateEvent] = []
        for event in events:
            request = self._verdicts.find(link.engine, event.engine_request_id, link.model)
            if request is None:
                others.append(event)
            else:
                self._take(link, event, request, ended=False)
        return others

    def take_ended(self, link: Link, events: Sequence[GateEvent]) -> None:
        """Take decisions on requests that are not followed: they have ended, or there was no room for them."""
        for event in events:
            request = Request(link.engine, link.model, event.request_id, event.engine_request_id, 0)
            self._take(link, event, request, ended=True)

    def _take(self, link: Link, event: GateEvent, request: Request, *, ended: bool) -> None:
        self._gates.heard_of(link.engine, event.gate)
        facts = self._gates.facts(event.gate) or self._operator.facts(event.gate) or unknown_facts(event.gate)
        if event.kind == "opened" and facts.rule and not ended:
            self._gates.opened(request, event.gate)
            self._actions.opened(request, event.gate)
        if event.kind == "closed" or not facts.rule or event.average is None:
            return self._record(event, request, facts)
        fired = ProbeFired(
            request=request,
            probe=facts.probe,
            aggregate=event.average,
            threshold=facts.threshold,
            position=event.position,
            role=self._role(facts.probe, event.position, request),
        )
        decisions = [decision for decision in self.policy.decide(fired) if decision.gate != event.gate]
        if not facts.at_probe_threshold:
            decisions = [decision for decision in decisions if decision.rule == facts.rule]
        elif self._verdicts.note_fired(fired):
            self._stats.probe_fired[request.model, fired.probe] += 1
            self._recorder.record(fired)
            if not ended:
                self._states.tell(fired, gate=True)
        self._record(event, request, facts)
        return self._actions.apply(fired, decisions, held=link.held, ended=ended)

    def _record(self, event: GateEvent, request: Request, facts: GateFacts) -> None:
        self._stats.gate_decisions[request.model, facts.rule, event.kind] += 1
        processed = Processed(request.engine, "gate", event.number)
        if event.kind == "closed":
            fresh = self._states.count_steered(request, event.gate, event.steered)
            self._stats.gate_tokens_steered[request.model, facts.rule] += fresh
            self._recorder.record(
                InterventionEnded(request, facts.rule, event.gate, event.position, event.steered, event.number),
                processed,
            )
            return
        average = 0.0 if event.average is None else event.average
        self._stats.interventions[request.model, facts.rule, facts.steering.vector, "enforce", True] += 1
        self._recorder.record(
            Intervention(
                request=request,
                rule=facts.rule,
                mode="enforce",
                probe=facts.probe,
                aggregate=average,
                threshold=facts.threshold,
                position=event.position,
                vector=facts.steering.vector,
                dose=facts.steering.dose or 0.0,
                tokens=facts.steering.tokens,
                sent=True,
                reason=_reason(event, facts, average),
                operation="stop" if facts.stops else facts.steering.operation,
                low=facts.steering.low,
                high=facts.steering.high,
                gate=event.gate,
                agree=facts.agree,
                agree_of=facts.agree,
                number=event.number,
            ),
            processed,
        )

    def _role(self, name: str, position: int, request: Request) -> str:
        """Role of the token, as far as it is known."""
        if position >= request.prompt_tokens > 0:
            return "assistant"
        roles = [role for role in self._probes[name].roles if role != "assistant"]
        return roles[0] if len(roles) == 1 and request.prompt_tokens else "prompt"


def _reason(event: GateEvent, facts: GateFacts, average: float) -> str:
    read = words.gate_opened(facts.probe, average, facts.threshold, facts.agree, event.position)
    # Of the token that the opening row yields, too.
    left = "; nothing that the model said behind it left the engine" if facts.stops else ""
    return f"{read}; {facts.what}{left}"
