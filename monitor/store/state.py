"""The state that the entries of a store come to: bounded, and the same whenever they are read again."""

from collections import OrderedDict
from collections.abc import Iterator
from hashlib import sha256
from typing import Final

from monitor.store.entries import (
    Admitted,
    AlertFired,
    Applied,
    Armed,
    Channel,
    Confirmed,
    Disarmed,
    EngineForgotten,
    Entry,
    Fired,
    LogHead,
    Noted,
    PartlyDelivered,
    PolicyInForce,
    Processed,
    ProcessedRange,
    Recording,
    RequestEnded,
    Resumed,
)
from monitor.store.numbers import Numbers
from monitor.store.values import EngineState, FiringAlert, SteeredRequest

MAX_REQUESTS: Final = 65_536
"""Steered requests; beyond it the one noted longest ago is forgotten."""
MAX_ENGINES: Final = 1024
MAX_ALERTS: Final = 4096
MAX_LOGS: Final = 64
"""Logs; a monitor has one, and another where its file was given another name."""
MAX_GATES: Final = 1024
"""Gates of one engine; it has far fewer."""
NUMBERS: Final = 4096
"""Numbers of one engine and channel: it keeps no more for its monitor, so that none further back is repeated."""
ID_CHARACTERS: Final = 256
"""Of a longer id, a digest is kept."""
MAX_AGE_SECONDS: Final = 86_400.0
"""An engine or request of which nothing was noted for so long is forgotten."""
ALERT_SECONDS: Final = 600.0
"""A rule's alert is firing for so long after the last time."""


class State:
    """Engines, steered requests, the policy in force, and alerts that are firing.

    Nothing in it depends on anything but the entries and their times, so that it is the same after a restart.
    """

    def __init__(self) -> None:
        self.engines: OrderedDict[str, EngineState] = OrderedDict()
        """By id."""
        self.requests: OrderedDict[tuple[str, str], SteeredRequest] = OrderedDict()
        """By engine and the engine's own id of the request."""
        self.policy: PolicyInForce | None = None
        self.logs: OrderedDict[str, LogHead] = OrderedDict()
        """The last known record of each log, by name."""
        self._alerts: OrderedDict[tuple[str, str, str, str], FiringAlert] = OrderedDict()

    def processed(self, channel: Channel) -> dict[str, set[int]]:
        """Numbers that are processed, by engine."""
        return {
            engine: set(numbers)
            for engine, state in self.engines.items()
            if (numbers := state.processed.get(channel)) is not None and numbers
        }

    def request(self, engine: str, engine_request_id: str) -> SteeredRequest | None:
        """One request in flight; ``None``: nothing is known of it."""
        return self.requests.get(stored_identity(engine, engine_request_id))

    def holders(self, entry: Recording) -> tuple[str, ...]:
        """Durable sinks that have already what this entry goes ahead of."""
        if isinstance(entry, Admitted):
            request = self.request(entry.engine, entry.engine_request_id)
            return () if request is None else request.partly
        engine = self.engines.get(entry.engine)
        return () if engine is None else engine.partly.get((entry.channel, entry.number), ())

    def armed(self) -> dict[str, set[str]]:
        """Gates that engines were ordered to arm, by engine."""
        return {engine: set(state.armed) for engine, state in self.engines.items()}

    def firing(self, now: float) -> dict[tuple[str, str, str, str], FiringAlert]:
        """Alerts that are firing, by model, rule, severity and probe."""
        return {key: alert for key, alert in self._alerts.items() if now - alert.last < ALERT_SECONDS}

    def apply(self, noted: Noted) -> None:
        """Take an entry over."""
        time, entry = noted.time, noted.entry
        match entry:
            case Processed() | ProcessedRange() | PartlyDelivered() | Confirmed() | Armed() | Disarmed():
                self._apply_engine(self._engine(entry.engine, time), entry)
            case Admitted():
                request = self._request(entry.engine, entry.engine_request_id, time)
                request.admitted = not entry.again
                request.at, request.partly = ({}, tuple(entry.at)) if entry.again else (entry.at, ())
            case Applied():
                self._request(entry.engine, entry.engine_request_id, time).rules.update(entry.rules)
            case Fired():
                self._request(entry.engine, entry.engine_request_id, time).fired[entry.probe] = entry
            case RequestEnded():
                self.requests.pop(stored_identity(entry.engine, entry.engine_request_id), None)
            case EngineForgotten():
                self.engines.pop(entry.engine, None)
                for identity in [identity for identity in self.requests if identity[0] == entry.engine]:
                    del self.requests[identity]
            case PolicyInForce():
                self.policy = entry
            case AlertFired():
                self._fire(entry, time)
            case LogHead():
                self.logs[entry.name] = entry
                self.logs.move_to_end(entry.name)
                if len(self.logs) > MAX_LOGS:
                    self.logs.popitem(last=False)
            case Resumed():
                for engine in self.engines.values():
                    _resume(engine, entry.settled)
                for request in self.requests.values():
                    if lacking(request.at, entry.settled):
                        request.admitted, request.partly = False, having(request.at, entry.settled)
                        request.at = {}

    def forget_old(self, now: float) -> None:
        """Forget what nothing was noted of for :data:`MAX_AGE_SECONDS`, and alerts that fire no more."""
        for id in [id for id, engine in self.engines.items() if now - engine.time > MAX_AGE_SECONDS]:
            del self.engines[id]
        for identity in [found for found, request in self.requests.items() if now - request.time > MAX_AGE_SECONDS]:
            del self.requests[identity]
        firing = self.firing(now)
        for key in [key for key in self._alerts if key not in firing]:
            del self._alerts[key]

    def entries(self) -> Iterator[Noted]:
        """The fewest entries that come to this state."""
        if self.policy is not None:
            yield Noted(0.0, self.policy)
        yield from (Noted(0.0, log) for log in self.logs.values())
        for engine, state in self.engines.items():
            yield from (Noted(state.time, entry) for entry in _entries_of(engine, state))
        for (engine, id), request in self.requests.items():
            if request.partly:
                yield Noted(request.time, Admitted(engine, id, dict.fromkeys(request.partly, 0), again=True))
            if request.admitted:
                yield Noted(request.time, Admitted(engine, id, request.at))
            yield from (Noted(request.time, fired) for fired in request.fired.values())
            if request.rules or not (request.admitted or request.fired):
                yield Noted(request.time, Applied(engine, id, tuple(sorted(request.rules))))
        for key, alert in self._alerts.items():
            yield Noted(alert.last, AlertFired(*key, alert.times, alert.since))

    def _engine(self, id: str, time: float) -> EngineState:
        engine = self.engines.setdefault(id, EngineState(time))
        engine.time = time
        self.engines.move_to_end(id)
        if len(self.engines) > MAX_ENGINES:
            self.engines.popitem(last=False)
        return engine

    def _request(self, engine: str, id: str, time: float) -> SteeredRequest:
        identity = stored_identity(engine, id)
        request = self.requests.setdefault(identity, SteeredRequest(time))
        request.time = time
        self.requests.move_to_end(identity)
        if len(self.requests) > MAX_REQUESTS:
            self.requests.popitem(last=False)
        return request

    @staticmethod
    def _apply_engine(
        engine: EngineState, entry: Processed | ProcessedRange | PartlyDelivered | Confirmed | Armed | Disarmed
    ) -> None:
        match entry:
            case Processed():
                identity = entry.channel, entry.number
                _numbers(engine, entry.channel).add(entry.number)
                engine.partly.pop(identity, None)
                if entry.at:
                    engine.unsettled[identity] = entry.at
                _forget_numbers(engine, entry.channel)
            case ProcessedRange():
                _numbers(engine, entry.channel).add(entry.first, entry.last)
            case PartlyDelivered():
                engine.partly[entry.channel, entry.number] = entry.sinks
            case Confirmed():
                engine.unsettled.clear()
            case Armed():
                if len(engine.armed) < MAX_GATES:
                    engine.armed.add(entry.gate)
            case Disarmed():
                engine.armed.discard(entry.gate)

    def _fire(self, entry: AlertFired, time: float) -> None:
        key = entry.model, entry.rule, entry.severity, entry.probe
        before = self._alerts.pop(key, None)
        if before is None or time - before.last >= ALERT_SECONDS:
            before = FiringAlert(time if entry.since is None else entry.since, time, 0)
        self._alerts[key] = FiringAlert(before.since, time, before.times + entry.times)
        if len(self._alerts) > MAX_ALERTS:
            self._alerts.popitem(last=False)


def lacking(at: dict[str, int], settled: dict[str, int]) -> bool:
    """True where a durable sink that is still there does not have what it was to have at a position."""
    return any(settled.get(sink, position) < position for sink, position in at.items())


def having(at: dict[str, int], settled: dict[str, int]) -> tuple[str, ...]:
    """The durable sinks that have it."""
    return tuple(sorted(sink for sink, position in at.items() if settled.get(sink, -1) >= position))


def stored_identity(engine: str, engine_request_id: str) -> tuple[str, str]:
    """A request's identity, of bounded length: clients choose a part of its id."""
    if len(engine_request_id) <= ID_CHARACTERS:
        return engine, engine_request_id
    return engine, sha256(engine_request_id.encode(errors="replace")).hexdigest()


def _numbers(engine: EngineState, channel: Channel) -> Numbers:
    return engine.processed.setdefault(channel, Numbers(NUMBERS))


def _forget_numbers(engine: EngineState, channel: Channel) -> None:
    """Forget the positions of what is too far back for its engine to repeat it."""
    if len(engine.unsettled) + len(engine.partly) <= 2 * NUMBERS:
        return
    lowest = _numbers(engine, channel).lowest_kept
    for kept in (engine.unsettled, engine.partly):
        for identity in [identity for identity in kept if identity[0] == channel and identity[1] < lowest]:
            del kept[identity]


def _resume(engine: EngineState, settled: dict[str, int]) -> None:
    """Process again what a durable sink that is still there lost with the monitor that was killed."""
    for (channel, number), at in engine.unsettled.items():
        if lacking(at, settled):
            engine.processed[channel].discard(number)
            engine.partly[channel, number] = having(at, settled)
    engine.unsettled.clear()


def _entries_of(engine: str, state: EngineState) -> Iterator[Entry]:
    for channel, numbers in state.processed.items():
        for first, last in numbers.ranges:
            yield ProcessedRange(engine, channel, first, last)
    for (channel, number), at in state.unsettled.items():
        yield Processed(engine, channel, number, at)
    for (channel, number), sinks in state.partly.items():
        yield PartlyDelivered(engine, channel, number, sinks)
    for gate in sorted(state.armed):
        yield Armed(engine, gate)
    if not state.processed and not state.partly and not state.armed:
        yield Confirmed(engine)
