"""The monitor's side of the gates: which ones engines have, and what follows from what they decide.

A gate that opens has seen its probe fire at the very token, and from there on the request's rows are steered and no
part of a verdict. So where the gate judges as the probe does, its opening is the probe's firing: the verdict takes it
over, and every rule about the probe decides. Where it judges otherwise, the other actions of its own rule follow.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, get_args

import msgspec

from monitor.events import Guarded, Ordered, OrderKind, OrderResult, ProbeFired, Request, words
from monitor.ingest import Link
from monitor.interventions import Actions, Arming, GateDecisions
from monitor.interventions.deduplicator import Once
from monitor.interventions.gates import GateFacts
from monitor.interventions.operator import Operator
from monitor.policy import Policy
from monitor.sinks import Recorder
from monitor.sinks.audit import Recalled
from monitor.telemetry.stats import Stats
from monitor.verdicts import VerdictTable
from monitor.wire.frames import GateEvent, GuardEvent, Hello, Refusal, Started
from monitor.wire.orders import Order
from probes.bundle import Bundle

ORDER_KINDS: Final[dict[str, OrderKind]] = {kind: kind for kind in get_args(OrderKind)}
"""What an engine may refuse; a later release may have more."""
MAX_ADMITTED: Final = 65_536
"""Requests that are remembered to have asked to be steered; as many as are followed at once."""


class Gating:
    """Arms gates, and carries what they decide to events and actions.

    Args:
        bundle: Has the probes.
        policy: Has the gates.
        recorder: Takes events.
        stats: Where all is counted.
        verdicts: Where firings are taken over.
        send_order: Sends orders to engines.
        operator: Has gates of its own, as long as their leases run.
        recalled: What an earlier monitor left on record, by engine.
        max_engines: Engines whose numbers are kept.
    """

    def __init__(
        self,
        bundle: Bundle,
        policy: Policy,
        recorder: Recorder,
        stats: Stats,
        verdicts: VerdictTable,
        send_order: Callable[[str, Order], bool],
        *,
        operator: Operator,
        recalled: Mapping[str, Recalled],
        max_engines: int,
    ) -> None:
        self._policy, self._recorder, self._stats, self._verdicts = policy, recorder, stats, verdicts
        self._probes = {probe.name: probe for probe in bundle.all_probes}
        self.arming = Arming(
            policy,
            bundle,
            recorder,
            stats,
            send_order,
            before={engine: found.armed for engine, found in recalled.items()},
            keep=operator.keeps,
            in_flight=verdicts.in_flight,
        )
        told = {engine: found.decisions for engine, found in recalled.items()}
        self._operator = operator
        self._guarded = Once[GuardEvent]({engine: found.guarded for engine, found in recalled.items()}, max_engines)
        self._admitted = OrderedDict.fromkeys(
            (engine, key) for engine, found in recalled.items() for key in found.admitted
        )
        """Requests whose admission is told: they are heard of again after a loss."""
        self._decisions = GateDecisions(recorder, stats, self._facts, told, max_engines)

    def hello(self, link: Link, hello: Hello) -> None:
        """An engine said who it is."""
        self.arming.hello(hello, enforced=link.fits is True and not link.shadow)
        self._operator.hello(link)

    def change_policy(self, policy: Policy) -> None:
        """Arm and decide by another policy from here on."""
        self._policy = policy
        self.arming.change_policy(policy)

    def finish(self, request: Request) -> None:
        """A request ended."""
        self._admitted.pop((request.engine, request.engine_request_id), None)
        self.arming.finish(request)
        self._operator.finish(request)

    def lost(self, engine: str) -> None:
        """An engine fell silent."""
        self.arming.lost(engine)
        self._operator.lost(engine)

    def fresh(self, link: Link, events: Sequence[GateEvent]) -> list[GateEvent]:
        """What of a frame's decisions was not told yet."""
        return self._decisions.fresh(link.engine, link.model, events) if events else []

    def refused(self, link: Link, refusals: Sequence[Refusal], actions: Actions) -> None:
        """Tell what an engine did not do, or does no more, each once.

        What a gate cannot, the monitor orders from now on; what a rule cannot that fails closed, stops the generation.
        """
        for refusal in self._decisions.fresh_refusals(link.engine, link.model, refusals):
            request = self._verdicts.find(link.engine, refusal.key, link.model)
            if refusal.cause == "expired":
                if self._operator.expired(link.engine, refusal.id, refusal.key):
                    self._tell_refusal(link, refusal, request, "expired")
                continue
            self._tell_refusal(link, refusal, request, "refused")
            if refusal.order == "arm" and refusal.key:
                if request is not None and self.arming.left_out(request, refusal.id) and not link.held:
                    actions.follow(link.engine, refusal.id, refusal.key)
                continue
            if self.arming.refused(link.engine, refusal.id) and not link.held:
                actions.follow(link.engine, refusal.id)
            self._operator.refused(link.engine, refusal.id, refusal.key)
            # Where an order came too late, there is nothing left to stop.
            if refusal.order == "steer" and refusal.cause != "request" and request is not None and not link.held:
                actions.refused(request, refusal.id, refusal.reason)

    def _tell_refusal(self, link: Link, refusal: Refusal, request: Request | None, result: OrderResult) -> None:
        kind = ORDER_KINDS.get(refusal.order)
        if kind is None:
            return
        if request is None and refusal.key:
            request = Request(link.engine, link.model, "", refusal.key, 0)
        self._stats.orders["engine", kind, result] += 1
        detail = f"{refusal.order} {refusal.id}".strip()
        self._recorder.record(
            Ordered(
                refusal.id,
                kind,
                result,
                link.engine,
                link.model,
                request,
                "engine",
                None,
                f"{detail} ({refusal.cause})",
                refusal.reason,
            )
        )

    def guarded(self, link: Link, events: Sequence[GuardEvent]) -> None:
        """Tell whom an engine's guard released, each once; to be called before the verdict table lets requests go."""
        fresh, missing = self._guarded.fresh(link.engine, events)
        if missing:
            self._stats.guarded_lost[link.model,] += missing
        for event in fresh:
            request = self._verdicts.find(link.engine, event.key, link.model)
            if request is None:
                request = Request(link.engine, link.model, event.request_id, event.key, 0)
            self._stats.guarded[link.model,] += 1
            self._recorder.record(
                Guarded(
                    request=request,
                    position=event.position,
                    repetition=event.repetition,
                    threshold=event.threshold,
                    window=event.window,
                    gates=tuple(event.gates),
                    number=event.number,
                    reason=words.guard_released(
                        event.repetition, event.window, event.threshold, event.position, event.gates
                    ),
                )
            )

    def admitted(self, link: Link, started: Sequence[Started]) -> None:
        """Tell what requests that begin asked to be steered by, each once."""
        for new in started:
            if new.admitted is None or (link.engine, new.key) in self._admitted:
                continue
            self._admitted[link.engine, new.key] = None
            if len(self._admitted) > MAX_ADMITTED:
                self._admitted.popitem(last=False)
            request = Request(link.engine, link.model, new.request_id, new.key, new.prompt_tokens)
            acts = " and ".join(words.steering(**msgspec.structs.asdict(act)) for act in new.admitted.acts)
            where = " from the prompt on" if new.admitted.prompt else ""
            detail = f"{acts}{where} {words.span(new.admitted.tokens)}"
            self._stats.orders["request", "admission", "sent"] += 1
            self._recorder.record(
                Ordered("", "admission", "sent", link.engine, link.model, request, "request", None, detail, "")
            )

    def tell(self, link: Link, events: Sequence[GateEvent], actions: Actions) -> list[GateEvent]:
        """Tell decisions on requests that the verdict table follows, and let follow what follows from them.

        Returns:
            The others.
        """
        rest: list[GateEvent] = []
        for event in events:
            request = self._verdicts.find(link.engine, event.key, link.model)
            if request is None:
                rest.append(event)
            else:
                self._tell(link, event, request, actions, ended=False)
        return rest

    def tell_ended(self, link: Link, events: Sequence[GateEvent], actions: Actions) -> None:
        """The same, of requests that are not followed: they have ended, or there was no room for them."""
        for event in events:
            request = Request(link.engine, link.model, event.request_id, event.key, 0)
            self._tell(link, event, request, actions, ended=True)

    def _tell(self, link: Link, event: GateEvent, request: Request, actions: Actions, *, ended: bool) -> None:
        self.arming.heard_of(link.engine, event.gate)
        facts = self._decisions.facts(event)
        if event.kind == "opened" and facts.rule and not ended:
            self.arming.opened(request, event.gate)
            actions.opened(request, event.gate)
        if event.kind == "closed" or not facts.rule or event.average is None:
            return self._decisions.tell(event, request)
        fired = ProbeFired(
            request=request,
            probe=facts.probe,
            aggregate=event.average,
            threshold=facts.threshold,
            position=event.position,
            role=self._role(facts.probe, event.position, request),
        )
        decisions = [decision for decision in self._policy.decide(fired) if decision.gate != event.gate]
        if not facts.at_probe_threshold:
            decisions = [decision for decision in decisions if decision.rule == facts.rule]
        elif self._verdicts.note_fired(fired):
            self._stats.probe_fired[request.model, fired.probe] += 1
            self._recorder.record(fired)
        self._decisions.tell(event, request)
        return actions.apply(fired, decisions, held=link.held, ended=ended)

    def _facts(self, gate: str) -> GateFacts | None:
        return self.arming.facts(gate) or self._operator.facts(gate)

    def _role(self, name: str, position: int, request: Request) -> str:
        """Who wrote the token, as far as it is known."""
        if position >= request.prompt_tokens > 0:
            return "assistant"
        roles = [role for role in self._probes[name].roles if role != "assistant"]
        return roles[0] if len(roles) == 1 and request.prompt_tokens else "prompt"
