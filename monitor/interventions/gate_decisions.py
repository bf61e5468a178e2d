"""What gates of engines decided, told once each.

An engine repeats a decision with every frame until one that had it is confirmed, and repeats to the next monitor what
the one before it did not confirm. So decisions are numbered: whatever was told already is passed over, by this monitor
or, where its audit log says so, by the one before. A gap in the numbers is a loss, and is counted and told.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from monitor.events import Intervention, InterventionEnded, InterventionsLost, Request, words
from monitor.interventions.deduplicator import Once
from monitor.interventions.gates import GateFacts, unknown_facts
from monitor.sinks.recorder import Recorder
from monitor.telemetry.stats import Stats
from monitor.wire.frames import GateEvent, Refusal

MAX_STEERED: Final = 65_536
"""Requests of which is remembered how many steered tokens are counted; a gate that closes and opens again counts on."""


class GateDecisions:
    """Makes events of decisions.

    Args:
        recorder: Takes the events.
        stats: Where decisions, steered tokens and losses are counted.
        facts: Tells what is known of a gate; ``None``: this monitor did not arm it.
        told: Numbers of the decisions that an earlier monitor told, by engine.
        max_engines: Engines whose numbers are kept; beyond it the one heard longest ago is forgotten.
    """

    def __init__(
        self,
        recorder: Recorder,
        stats: Stats,
        facts: Callable[[str], GateFacts | None],
        told: Mapping[str, AbstractSet[int]],
        max_engines: int,
    ) -> None:
        self._recorder, self._stats, self._facts = recorder, stats, facts
        self._told = Once[GateEvent](told, max_engines)
        self._refused = Once[Refusal]({}, max_engines)
        self._steered: OrderedDict[tuple[str, str, str], int] = OrderedDict()
        """Engine, request and gate to the tokens that are counted already."""

    def fresh(self, engine: str, model: str, events: Sequence[GateEvent]) -> list[GateEvent]:
        """The decisions that were not told yet; what is missing before them is counted as lost."""
        fresh, missing = self._told.fresh(engine, events)
        if missing:
            self._stats.gate_decisions_lost[model,] += missing
            self._recorder.record(InterventionsLost(engine, model, missing))
        return fresh

    def fresh_refusals(self, engine: str, model: str, refusals: Sequence[Refusal]) -> list[Refusal]:
        """The refusals that were not told yet; what is missing before them is counted as lost."""
        fresh, missing = self._refused.fresh(engine, refusals)
        if missing:
            self._stats.refusals_lost[model,] += missing
        return fresh

    def facts(self, event: GateEvent) -> GateFacts:
        """What is known of the gate."""
        return self._facts(event.gate) or unknown_facts(event.gate)

    def tell(self, event: GateEvent, request: Request) -> None:
        """Record a decision."""
        facts = self.facts(event)
        self._stats.gate_decisions[request.model, facts.rule, event.kind] += 1
        if event.kind == "closed":
            self._count_steered(event, request, facts.rule)
            self._recorder.record(
                InterventionEnded(request, facts.rule, event.gate, event.position, event.steered, event.number)
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
                operation=facts.steering.operation,
                low=facts.steering.low,
                high=facts.steering.high,
                gate=event.gate,
                agree=facts.agree,
                agree_of=facts.agree,
                number=event.number,
            )
        )

    def _count_steered(self, event: GateEvent, request: Request, rule: str) -> None:
        # A gate that opens again counts on.
        counted = (request.engine, request.engine_request_id, event.gate)
        self._stats.gate_tokens_steered[request.model, rule] += max(0, event.steered - self._steered.get(counted, 0))
        self._steered[counted] = event.steered
        self._steered.move_to_end(counted)
        if len(self._steered) > MAX_STEERED:
            self._steered.popitem(last=False)


def _reason(event: GateEvent, facts: GateFacts, average: float) -> str:
    read = words.gate_opened(facts.probe, average, facts.threshold, facts.agree, event.position)
    return f"{read}; {facts.what}"
