"""The monitor process: messages in, verdicts, decisions, actions, events out; all on one event loop.

A frame goes through it as the design's line goes through the house::

    Source -> Link (lost? ours?) -> VerdictTable -> Interventions -> Recorder
       ^                                                         |
       +----------------------- orders --------------------------+

What probe workers (:mod:`monitor.workers`) read comes later, and goes from there on the same way; a bundle without
probes for them never has that imported.

:meth:`Monitor.receive` takes one message and :meth:`Monitor.tick` does what is due; :meth:`Monitor.run` calls
both.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from monitor.events import (
    AuditChanged,
    EngineChanged,
    EventLog,
    FramesLost,
    PolicyChanged,
    ProbeFired,
    RequestFinished,
    words,
)
from monitor.ingest import Arrival, Link, Malformed, Source, core_identity
from monitor.interventions import Interventions
from monitor.policy import Policy
from monitor.service.config import Limits
from monitor.sinks import BackgroundSink, Confirmations, DurableSink, Mark, Recorder, Sink, StateSink
from monitor.sinks.audit import AuditLog, AuditSink
from monitor.sinks.durable import settled_positions
from monitor.store import Confirmed, EngineForgotten, MemoryStore, Resumed, Store
from monitor.telemetry.stats import SkipReason, Stats, Status
from monitor.traces import Traces
from monitor.verdicts import Tally, VerdictTable
from monitor.wire.codec import RESYNC, encode_ack, encode_order
from monitor.wire.frames import Frame, Hello
from monitor.wire.orders import Order, Stream
from probes.bundle import Bundle

if TYPE_CHECKING:
    from monitor.workers import ProbeWorkers, WorkerPool

_TICK_SECONDS: Final = 0.05
_INVALID_SECONDS: Final = 60.0
"""Seconds between two tellings that an engine's scores are no numbers."""

logger = logging.getLogger(__name__)


class Monitor:
    """Reads engines, and acts on what it reads.

    Args:
        bundle: What the engines score with.
        policy: What to do when a probe fires.
        source: Where messages come from; closed with the monitor.
        sinks: Where events go, beside :attr:`events`; they return at once.
        slow_sinks: The same, each on a thread of its own.
        durable: Sinks that confirmations to engines wait for, beside the audit log.
        audit: Where interventions, engines and the policy are recorded; closed with the monitor. ``None``: nowhere.
        store: What a monitor before this one knew, and the next one will; closed with the monitor. ``None``: nothing
            outlives the process.
        limits: How much to keep, how long to wait.
        workers: Processes to start for the bundle's worker probes.
        pool: Probe workers that run already, for the bundle's worker probes; closed with the monitor. ``None``: they
            are started, if the bundle has any.
        clock: Seconds of the host's monotonic clock, the one that engines stamp frames with.
    """

    def __init__(
        self,
        bundle: Bundle,
        policy: Policy,
        source: Source,
        *,
        sinks: Sequence[Sink] = (),
        slow_sinks: Sequence[Sink] = (),
        durable: Sequence[DurableSink] = (),
        audit: AuditLog | None = None,
        store: Store | None = None,
        limits: Limits | None = None,
        workers: int = 1,
        pool: "WorkerPool | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bundle = bundle
        self.policy = policy
        self.stats = Stats(
            [probe.name for probe in bundle.all_probes], [probe.name for probe in bundle.manifest.worker_probes]
        )
        self.events = EventLog(on_drop=self._count_dropped_event)
        self._source = source
        self._limits = limits or Limits()
        self._worker_processes = workers
        self._clock = clock
        self._started = datetime.now(UTC)
        self._links: dict[str, Link] = {}
        self._verdicts = VerdictTable(bundle, self._limits.max_requests)
        self.store: Store = MemoryStore() if store is None else store
        self._audit: AuditSink | None = None
        settled = settled_positions(durable, self.stats)
        if audit is not None:
            # Before anything is written: what is in the file now, an earlier monitor wrote.
            settled[audit.name] = audit.settled
        self.store.note(Resumed(settled))
        earlier, state_sink = self.store.state.policy, StateSink(self.store)
        state_sink.decide_by(policy.name, policy.digest)
        if audit is not None:
            before = None if earlier is None else earlier.digest
            self._audit = AuditSink(audit, bundle, policy, self.stats, self._verdicts.steered, before)
            durable = [self._audit, *durable]
        self._confirmations = Confirmations(
            self.store, durable, self.stats, patience_seconds=self._limits.settle_seconds, clock=clock
        )
        self._other_versions: set[bytes] = set()
        """Senders whose messages are of another version, told once each."""
        self._marks: dict[str, Mark] = {}
        """Engines of which something is to be settled before they are confirmed."""
        self.traces = Traces(
            self.events, self._verdicts.averages, tuple(probe.name for probe in bundle.manifest.probes)
        )
        self._background = [BackgroundSink(sink, self.stats) for sink in slow_sinks]
        own = [state_sink, self.traces]
        self._recorder = Recorder(self.events, [*own, *sinks, *self._background], self.stats, self.store, durable)
        self.interventions = Interventions(
            bundle,
            policy,
            self._verdicts,
            self._links,
            self._recorder,
            self.stats,
            self._send_order,
            store=self.store,
            max_requests=self._limits.max_requests,
            max_engines=self._limits.max_engines,
            clock=clock,
        )
        self._workers = self._open_workers(pool)

    async def run(self) -> None:
        """Read until cancelled, or until the source ends."""
        async with asyncio.TaskGroup() as group:
            ticking = group.create_task(self._keep_ticking())
            with self._listening_to_workers():
                async for arrival in self._source:
                    self.receive(arrival)
                    # What has arrived already is read without a pause; servers on this loop have their turn here.
                    await asyncio.sleep(0)
            ticking.cancel()

    def close(self) -> None:
        """Let go of the source, end all subscriptions, and write the audit log and the store to their ends."""
        self._source.close()
        if self._workers is not None:
            for finished in self._workers.finish_all():
                self._finish(finished)
            self._workers.close()
        self.events.close()
        if self._audit is not None:
            self._audit.close()
        for sink in self._background:
            sink.close()
        self.store.close()
        self._count_faults()

    def change_policy(self, policy: Policy) -> None:
        """Decide by another policy from here on, on requests in flight as well; gates of engines follow."""
        before, self.policy = self.policy, policy
        if self._audit is not None:
            self._audit.change_policy(policy)
        self.stats.policy_reloads["in_force",] += 1
        said = (
            f"{len(policy.rules)} rules and {len(policy.gates)} gates decide from here on, digest {policy.digest[:12]}"
        )
        self._recorder.record(PolicyChanged(policy.name, policy.digest, True, before.digest, said))
        self.interventions.change_policy(policy)

    def refuse_policy(self, name: str, why: str) -> None:
        """Tell that a policy cannot be used; the one before it still decides."""
        self.stats.policy_reloads["refused",] += 1
        self._recorder.record(PolicyChanged(name, "", False, self.policy.digest, why))

    def status(self) -> Status:
        """A snapshot; may be taken from another thread."""
        now = self._clock()
        return Status(
            started=self._started,
            bundle_path=str(self.bundle.path),
            bundle_digest=self.bundle.digest,
            policy_name=self.policy.name,
            policy_digest=self.policy.digest,
            engines=tuple(link.status(now, self._verdicts.active(link.engine)) for link in list(self._links.values())),
            workers=0 if self._workers is None else len(self._workers.pool),
            workers_running=0 if self._workers is None else self._workers.pool.running,
        )

    def receive(self, arrival: Arrival) -> None:
        """Take one message."""
        for reason, count in arrival.cut.items():
            self.stats.texts_cut[reason,] += count
        match arrival.message:
            case Hello() as hello:
                self._hello(hello)
            case Frame() as frame:
                self._frame(frame, arrival.identity)
            case Malformed(reason, detail):
                self.stats.frames_malformed[reason,] += 1
                logger.debug("Skipped a message of %r: %s", arrival.identity, detail)
                if reason == "version" and arrival.identity not in self._other_versions:
                    # Such an engine serves unread, and is none that this monitor knows.
                    if len(self._other_versions) >= self._limits.max_engines:
                        self._other_versions.clear()
                    self._other_versions.add(arrival.identity)
                    logger.error(
                        "%r is of another release and is not read: %s",
                        arrival.identity.decode(errors="replace"),
                        detail,
                    )

    def tick(self) -> None:
        """Do what is due: confirmations, requests to resync, engines that fell silent, workers to start again."""
        if self._audit is not None:
            self._audit.count()
            self._tell_of_audit(self._audit)
        self._count_faults()
        self._confirmations.tick()
        if self._workers is not None:
            self._collect(self._workers)
            self._workers.tick()
            self._collect(self._workers)
        self.interventions.tick()
        now = self._clock()
        for link in list(self._links.values()):
            self._tell_invalid(link, now)
            silent = now - link.last_seen
            if not link.lost and silent > self._limits.silence_seconds:
                link.lose()
                self.interventions.lost(link.engine)
                dropped = self._drop_requests(link)
                self._changed(link, "lost", f"silent for {silent:.1f} s; {dropped} requests end without a verdict")
            elif link.lost and silent > self._limits.forget_seconds:
                self._forget(link)
            else:
                self._watch(link, now)
                self._answer(link, now)

    def look_at_audit(self) -> None:
        """Look at once whether the audit log's file is still there: it may have been moved on purpose."""
        if self._audit is not None:
            self._audit.look()

    def _tell_of_audit(self, audit: AuditSink) -> None:
        for begins in audit.begun():
            self._recorder.record(AuditChanged(audit.file, begins.reason, begins.before, begins.detail))

    def _watch(self, link: Link, now: float) -> None:
        """Tell where an engine serves and nobody reads it, and where that is over."""
        if link.lost or not link.fits:
            return
        before, link.silent = link.silent, link.why_silent(now, self._limits.silence_seconds)
        if link.silent and not before:
            self._changed(link, "silent", f"it serves unread: {link.silent}")
        elif before and not link.silent:
            self._changed(link, "shadow" if link.shadow else "connected", "it is read again")

    def _open_workers(self, pool: "WorkerPool | None") -> "ProbeWorkers | None":
        """Open the reader of the bundle's worker probes; ``None`` where it has none."""
        if not (probes := self.bundle.manifest.worker_probes):
            return None
        from monitor.workers import ProbeWorkers, WorkerPool

        return ProbeWorkers(
            probes,
            pool or WorkerPool(self.bundle, workers=self._worker_processes),
            self.stats,
            on_unscored=self._count_worker_unscored,
            on_invalid=self._count_invalid,
            clock=self._clock,
        )

    async def _keep_ticking(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self.tick()

    def _hello(self, hello: Hello) -> None:
        link = self._heard(hello.engine)
        if link is None:
            return
        before = link.fits, link.shadow, link.drift
        link.model, link.vllm, link.fits = hello.model, hello.vllm, hello.bundle == self.bundle.digest
        self.stats.note_model(hello.model)
        link.shadow, link.drift, link.gates = hello.shadow, hello.drift, hello.gates
        if (faults := link.hear_hello(hello, self._clock())) > 0:
            self.stats.engine_faults[link.model,] += faults
            logger.warning("engine %s: %d faults of its core's part, the last: %s", link.engine, faults, hello.fault)
        if link.fits and not link.streams and self._workers is not None:
            # Where one is not sent, all are with the next HELLO: an engine that streams already just goes on.
            link.streams = all(self._send_order(link.engine, Stream(layer, "all")) for layer in self._workers.layers)
        self._introduced(link, hello, before)
        self.interventions.hello(link, hello)

    def _introduced(self, link: Link, hello: Hello, before: tuple[bool | None, bool, float | None]) -> None:
        """Tell what an engine is, if that has changed."""
        if (link.fits, link.shadow, link.drift) == before:
            return
        if not link.fits:
            self._drop_requests(link)
            theirs, ours = hello.bundle[:12], self.bundle.digest[:12]
            self._changed(link, "refused", f"it scores with bundle {theirs}, this monitor reads bundle {ours}")
        elif link.shadow:
            self._changed(link, "shadow", f"every rule is held to shadow: {link.held}")
        else:
            tested = "not self-tested" if link.drift is None else f"self-test drift {link.drift:.3f}"
            self._changed(link, "connected", f"vLLM {hello.vllm}, {tested}")

    def _frame(self, frame: Frame, sender: bytes) -> None:
        header = frame.header
        link = self._heard(header.engine)
        if link is None:
            return self._skip("", "engines")
        if link.fits is False:
            return self._skip(link.model, "refused")
        link.unread = header.probes != len(self.bundle.probes)
        if link.unread:
            return self._skip(link.model, "probes")
        lost = link.sequence.arrive(header.sequence, header.acked)
        if lost is None:
            return self._skip(link.model, "duplicate")

        now = self._clock()
        if (faults := link.hear_frame(header, now)) > 0:
            self.stats.engine_faults[link.model,] += faults
            logger.warning("engine %s: %d faults of its taps, the last: %s", link.engine, faults, header.fault)
        first, link.frames, link.exporter = not link.frames, link.frames + 1, sender
        link.lag_seconds = max(0.0, now - header.monotonic_ns / 1e9)
        self._count_frame(link, frame, lost)
        tally = self._verdict(frame, link)
        if header.complete:
            link.resync_wanted = False
        elif lost or tally.unknown or (first and header.sequence > 0):
            link.resync_wanted = True
        self._answer(link, now)
        return None

    def _verdict(self, frame: Frame, link: Link) -> Tally:
        """Verdicts, decisions and actions of one frame."""
        # What gates decided of requests that end with this frame is part of their verdicts.
        decided = self.interventions.before_verdicts(link, frame.header)
        verdicts = self._verdicts.apply(frame, link.model)
        self.interventions.restore(link, frame.header)
        self.stats.count_rows(link.model, verdicts.tally)
        link.invalid.update(verdicts.tally.invalid)
        finished = verdicts.finished
        if self._workers is not None:
            finished = self._workers.finish(finished, verdicts.ended)
        for event in finished:
            self._finish(event)
        self.interventions.after_verdicts(link, frame.header, decided)
        if decided.fresh or frame.header.refused or frame.header.guarded:
            self._marks[link.engine] = self._confirmations.mark()
        for fired in verdicts.fired:
            self._fire(fired, link.held)
        self.traces.observe(link.engine)
        # Last, so that nothing of the above waits for it.
        if self._workers is not None:
            self._workers.read(frame, verdicts.entered, self._verdicts, link.model)
        return verdicts.tally

    def _collect(self, workers: "ProbeWorkers") -> None:
        """Verdicts, decisions and actions of what workers have answered."""
        news = workers.collect()
        for fired, ended in news.fired:
            link = self._links.get(fired.request.engine)
            self._fire(fired, link.held if link is not None else "its engine is not known any more", ended=ended)
        for finished in news.finished:
            self._finish(finished)

    def _fire(self, fired: ProbeFired, held: str, *, ended: bool = False) -> None:
        if not self.interventions.states.told(fired):
            self.stats.probe_fired[fired.request.model, fired.probe] += 1
            self._recorder.record(fired)
            if not ended:
                self.interventions.states.tell(fired)
        self.interventions.fire(fired, held=held, ended=ended)

    def _finish(self, finished: RequestFinished) -> None:
        model = finished.request.model
        self.stats.requests_finished[model,] += 1
        self.stats.observe_margins(model, finished.readings)
        self.interventions.finish(finished.request)
        self._recorder.record(finished)

    @contextmanager
    def _listening_to_workers(self) -> Generator[None]:
        """Collect what workers answer as soon as they do."""
        if (workers := self._workers) is None:
            yield
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(workers.fileno(), self._collect, workers)
        try:
            yield
        finally:
            loop.remove_reader(workers.fileno())

    def _heard(self, engine: str) -> Link | None:
        """The link of an engine from which something came; ``None`` where there is no room for another."""
        now, link = self._clock(), self._links.get(engine)
        if link is None:
            if len(self._links) >= self._limits.max_engines and not self._forget_one():
                return None
            link = self._links[engine] = Link(engine, last_seen=now)
        link.last_seen = now
        if link.lost:
            link.lost = False
            if link.state != "pending" and link.state != "lost":
                self._changed(link, link.state, "heard again")
        return link

    def _forget_one(self) -> bool:
        lost = [link for link in self._links.values() if link.lost]
        if lost:
            self._forget(min(lost, key=lambda link: link.last_seen))
        return bool(lost)

    def _forget(self, link: Link) -> None:
        del self._links[link.engine]
        self._marks.pop(link.engine, None)
        self.store.note(EngineForgotten(link.engine))
        self.interventions.forget(link.engine)

    def _answer(self, link: Link, now: float) -> None:
        if link.exporter is None or link.lost:
            return
        mark = self._marks.get(link.engine)
        settled = mark is None or self._confirmations.settled(mark)
        if settled and (sequence := link.take_ack(now, self._limits.ack_seconds)) is not None:
            self._source.send(link.exporter, encode_ack(sequence))
            if self._marks.pop(link.engine, None) is not None:
                self.store.note(Confirmed(link.engine))
        if link.take_resync(now, self._limits.resync_seconds):
            self._source.send(link.exporter, [RESYNC])
            self.stats.resyncs[link.model,] += 1

    def _send_order(self, engine: str, order: Order) -> bool:
        return self._source.send(core_identity(engine), encode_order(order))

    def _drop_requests(self, link: Link) -> int:
        dropped = self._verdicts.drop_engine(link.engine)
        if self._workers is not None:
            self._workers.drop_engine(link.engine)
        self.stats.requests_dropped[link.model, "engine_lost"] += dropped
        return dropped

    def _changed(
        self, link: Link, state: Literal["connected", "lost", "refused", "shadow", "silent"], detail: str
    ) -> None:
        self._recorder.record(EngineChanged(link.engine, link.model, state, detail))

    def _skip(self, model: str, reason: SkipReason) -> None:
        self.stats.frames_skipped[model, reason] += 1

    def _count_frame(self, link: Link, frame: Frame, lost: int) -> None:
        stats, model = self.stats, link.model
        stats.frames_received[model,] += 1
        dropped, unscored = link.count(frame.header)
        stats.engine_frames_dropped[model,] += dropped
        stats.engine_rows_unscored[model,] += unscored
        if lost:
            stats.frames_lost[model,] += lost
            self._recorder.record(FramesLost(link.engine, model, lost))

    def _count_worker_unscored(self, engine: str, tokens: int) -> None:
        if (link := self._links.get(engine)) is not None:
            link.worker_unscored += tokens

    def _count_invalid(self, engine: str, probe: str, scores: int) -> None:
        if (link := self._links.get(engine)) is not None:
            link.invalid[probe] += scores

    def _tell_invalid(self, link: Link, now: float) -> None:
        """Tell of scores that are no numbers, at once and then once in a while; never of an engine that is not read."""
        state = link.state
        if state != "pending" and (told := link.take_invalid(now, _INVALID_SECONDS)):
            self._changed(link, state, words.scores_invalid(told))

    def _count_faults(self) -> None:
        for fault, count in self.store.faults.items():
            self.stats.store_faults[fault,] = count

    def _count_dropped_event(self) -> None:
        self.stats.events_dropped += 1
