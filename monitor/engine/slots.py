"""Requests to slots: whose row is whose, who has been read how far, and who is to be steered where.

A request keeps its slot from its first step to its end, through preemption and resumption: rows that come back are
known by their absolute position. The model runner's own slots are freed and moved under way, so they are not used.

Steering touches response rows only: those at position ``prompt_tokens − 1`` or later, whose logits make response
tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from monitor.engine.batch import NEVER, Batch, Begins, Gap, Tracked
from monitor.engine.steering.acts import entry_of, require_composed
from monitor.engine.steering.caps import require_together
from monitor.engine.steering.table import FOREVER, Push, Segment, Steering, timeline
from monitor.errors import OrderError
from monitor.wire.frames import Started
from monitor.wire.orders import Act, Admission, Arm, Release, Steer
from probes.bundle import Bundle
from probes.scoring.roles import Role, RoleReader

ACTS: Final = 256
"""Acts that may be ordered for one request in its life: all are kept, for rows that are computed again."""


class Slots:
    """All requests in flight of one engine process.

    Args:
        steering: The steered positions of each slot.
        bundle: Vectors and role markers.
        slots: How many requests can be scored at once, preempted ones included.
        gates: Tells the gates that may steer the request of an id of the engine, which count against the caps as well.
        drafts: The most rows of a step whose tokens may turn out to be nobody's, a request: of speculative decoding.

    Attributes:
        unsent: By slot, the first position that the monitor was not sent; :data:`monitor.engine.batch.NEVER`: it was
            sent all.
        kept: By slot, positions of the request whose keys and values are in the KV cache, and with them their scores.
    """

    def __init__(
        self,
        steering: Steering,
        bundle: Bundle,
        slots: int,
        gates: Callable[[str], Sequence[Arm]] = lambda engine_request_id: (),
        drafts: int = 0,
    ) -> None:
        self._steering = steering
        self._bundle = bundle
        self._gates = gates
        self._roles = RoleReader(bundle.manifest.markers)
        self._free = list(range(slots - 1, -1, -1))
        self._requests: dict[str, Tracked] = {}
        self._by_slot: dict[int, Tracked] = {}
        # By slot; the one behind the last stands for −1, whose rows are of no interest.
        self._next_position = np.full(slots + 1, NEVER, np.int64)
        self._prompt_tokens = np.zeros(slots + 1, np.int64)
        self._tainted_from = np.full(slots + 1, NEVER, np.int64)
        self._answer_role = np.full(slots + 1, Role.ASSISTANT, np.uint8)
        self._terms = np.zeros(slots + 1, np.int64)
        self.unsent = np.full(slots + 1, NEVER, np.int64)
        self.kept = np.zeros(slots + 1, np.int64)
        self._drafts = drafts
        self._batch_keys: list[str] = []
        self._batch_slots = np.empty(0, np.int32)
        self.unscored = 0
        """Rows computed but not scored, since the start."""

    def __contains__(self, engine_request_id: str) -> bool:
        """Return True from a request's first step to its end."""
        return engine_request_id in self._requests

    def start(
        self,
        engine_request_id: str,
        request_id: str,
        prompt: Sequence[int],
        *,
        scored: bool,
        part: str = "",
        typed: bool = False,
    ) -> Started | None:
        """Take in a request; ``None`` where it is not scored.

        Args:
            engine_request_id: The engine's own id.
            request_id: The user's.
            prompt: Its tokens.
            scored: It is to have a slot.
            part: Which part of the user's request it is; empty: all of it.
            typed: Markers of the chat template were typed into its messages.
        """
        self._batch_keys = []
        roles = self._roles.prompt(prompt, typed=typed)
        answer_role = Role.TEXT if len(roles) and roles[-1] == Role.TEXT else Role.ASSISTANT
        if (known := self._requests.get(engine_request_id)) is not None:
            # A streaming session that goes on: what it has generated has become part of its prompt.
            known.prompt_roles, known.answer_role = roles, answer_role
            if known.slot >= 0:
                self._prompt_tokens[known.slot], self._answer_role[known.slot] = len(roles), answer_role
            return None
        slot = self._free.pop() if scored and self._free else -1
        request = self._requests[engine_request_id] = Tracked(
            slot, engine_request_id, request_id, roles, answer_role, part
        )
        if slot < 0:
            return None
        self._by_slot[slot] = request
        self._next_position[slot], self._prompt_tokens[slot] = 0, len(roles)
        self._tainted_from[slot], self._answer_role[slot] = NEVER, answer_role
        self.unsent[slot] = NEVER
        self._terms[slot] += 1
        self.kept[slot] = 0
        return _started(request)

    def finish(self, engine_request_id: str) -> int | None:
        """Let a request go; its slot, or ``None`` where it had none."""
        self._batch_keys = []
        request = self._requests.pop(engine_request_id, None)
        if request is None or request.slot < 0:
            return None
        del self._by_slot[request.slot]
        self._steering.clear(request.slot)
        self._free.append(request.slot)
        return request.slot

    def let_go(self, engine_request_id: str) -> None:
        """A request was preempted: its keys and values are gone."""
        if (request := self.tracked(engine_request_id)) is not None:
            self.kept[request.slot] = 0

    def leave_out(self, engine_request_id: str) -> None:
        """Follow a request without reading it: taking it in failed."""
        self.finish(engine_request_id)
        self._requests[engine_request_id] = Tracked(-1, engine_request_id, engine_request_id, np.empty(0, np.uint8))

    def owe(self, begins: Begins) -> None:
        """The monitor was not sent rows of requests, as far as these are still in flight."""
        slots, positions = begins.slots, begins.positions
        valid = (slots >= 0) & (self._terms[slots] == begins.terms)
        np.minimum.at(self.unsent, slots[valid], positions[valid])

    def owe_all(self) -> None:
        """The monitor was sent nothing of any request in flight."""
        self.unsent[list(self._by_slot)] = 0

    def owed(self, batch: Batch) -> list[Gap]:
        """Positions of a step's requests that come before its rows, and that the monitor was not sent."""
        due = np.flatnonzero((self.unsent[batch.slots] < batch.first) & (batch.slots >= 0))
        return [
            Gap(self._by_slot[slot], int(self.unsent[slot]), int(batch.first[i]))
            for i, slot in zip(due.tolist(), batch.slots[due].tolist(), strict=True)
        ]

    def owed_to(self, engine_request_id: str) -> Gap | None:
        """The same of one request, as far as it was computed: it ends, or its keys and values are let go of."""
        request = self.tracked(engine_request_id)
        if request is None or self.unsent[request.slot] >= self.kept[request.slot]:
            return None
        return Gap(request, int(self.unsent[request.slot]), int(self.kept[request.slot]))

    def begins(self, batch: Batch, sent: NDArray[np.bool_]) -> Begins:
        """First positions of a step's requests whose rows are sent; no higher than on the device."""
        first = np.maximum(batch.first[sent] - self._drafts, 0)
        return Begins(batch.slots[sent], batch.terms[sent], first)

    def begins_of(self, gaps: Sequence[Gap]) -> Begins:
        """First positions of gaps, to be owed again should they not arrive."""
        slots = np.array([gap.request.slot for gap in gaps], np.int64)
        return Begins(slots, self._terms[slots], np.array([gap.start for gap in gaps], np.int64))

    def rows(self, gap: Gap) -> NDArray[np.void]:
        """Positions as rows of a frame, those downstream of steering marked."""
        rows = gap.rows()
        rows["steered"] = rows["position"] >= self._tainted_from[gap.request.slot]
        return rows

    def recover(self) -> None:
        """A step failed under way: keep nothing of its batch."""
        self._batch_keys = []

    def in_flight(self) -> list[Started]:
        """All scored requests, for a monitor that knows none of them."""
        return [_started(request) for request in self._by_slot.values()]

    def order(self, order: Steer | Release) -> None:
        """Steer a request from its next row on, or stop steering it. A refused order to steer leaves all as it was.

        Raises:
            OrderError: The request has ended or has no slot, the bundle has no such vector, the dose is over its cap,
                alone or with what was ordered before, orders conflict, or more is steered than the tables hold. Where
                what a release leaves cannot hold alone, all is released.
        """
        request = self._steerable(order.engine_request_id)
        upcoming = self.upcoming(request.slot)
        if isinstance(order, Release):
            return self._release(request, order.id, upcoming)
        if order.id and any(push.order == order.id for push in request.pushes):
            return None
        if request.released:
            raise OrderError(
                "guard",
                f"Request '{request.request_id}' repeated itself while it was steered, and is steered no more.",
                "Steer less, or end the request.",
            )
        start = max(upcoming, len(request.prompt_roles) - 1)
        pushes = self._pushes(order.acts, order.id, start, start, order.tokens, order.max_dose)
        return self._steer(request, [*request.pushes, *pushes])

    def _release(self, request: Tracked, id: str, upcoming: int) -> None:
        ended = [replace(push, end=min(push.end, upcoming)) for push in request.pushes]
        try:
            kept = zip(request.pushes, ended, strict=True)
            self._steer(request, [end if id in ("", push.order) else push for push, end in kept])
        except OrderError as error:
            # It held another back, or the tables have no room for what is left. That a lease ends is not to be refused.
            self._steer(request, ended)
            raise OrderError(
                error.cause,
                f"All that was ordered for request '{request.request_id}' is released, since what would be left cannot "
                f"hold alone: {error.message}",
                error.fix,
            ) from error

    def admit(self, engine_request_id: str, admission: Admission) -> Started:
        """Steer a request that has just started as it asked for.

        Raises:
            OrderError: It cannot be, and is served unsteered.
        """
        request = self._steerable(engine_request_id)
        respond = max(len(request.prompt_roles) - 1, 0)
        start = 0 if admission.prompt else respond
        self._steer(request, self._pushes(admission.acts, "", start, respond, admission.tokens))
        request.admitted = admission
        return _started(request)

    def tracked(self, engine_request_id: str) -> Tracked | None:
        """A request that can be steered; ``None`` where it has ended or has no slot."""
        request = self._requests.get(engine_request_id)
        return request if request is not None and request.slot >= 0 else None

    def steers(self, request: Tracked) -> bool:
        """Return True where orders steer the request's next row."""
        upcoming = self.upcoming(request.slot)
        return any(segment.start <= upcoming < segment.end for segment in timeline(request.pushes))

    def release(self, request: Tracked) -> None:
        """Steer a request by no order any more, from its next row on."""
        self.order(Release(request.engine_request_id))
        request.released = True

    def _steerable(self, engine_request_id: str) -> Tracked:
        request = self._requests.get(engine_request_id)
        if request is None:
            raise OrderError("request", f"Request '{engine_request_id}' has ended.")
        if request.slot < 0:
            raise OrderError("request", f"Request '{request.request_id}' has no slot: it is neither read nor steered.")
        return request

    def _pushes(
        self,
        acts: Sequence[Act],
        order: str,
        start: int,
        respond: int,
        tokens: int | None,
        max_dose: float | None = None,
    ) -> list[Push]:
        """Acts on positions from ``start`` to the last of so many tokens, of which ``respond`` yields the first."""
        # The device's positions are int32.
        end = FOREVER if tokens is None else min(respond + tokens, FOREVER)
        return [Push(*entry_of(self._bundle, act), order, start, end, max_dose) for act in acts]

    def _steer(self, request: Tracked, pushes: list[Push]) -> None:
        if len(pushes) > ACTS:
            raise OrderError("slots", f"Request '{request.request_id}' was ordered more than {ACTS} acts.")
        segments = timeline(pushes)
        for segment in segments:
            for vector, entry in segment.amounts:
                require_composed(self._bundle.manifest.vectors[vector], entry)
        self._require_together(request, pushes, segments, self._gates(request.engine_request_id))
        self._steering.set(request.slot, segments)
        request.pushes = pushes
        self._tainted_from[request.slot] = min(segments[0].start if segments else NEVER, request.gated_from)

    def require_beside(self, engine_request_id: str, gates: Sequence[Arm]) -> None:
        """Check that a request's orders leave room for gates.

        Raises:
            OrderError: Together they are over a cap, or conflict.
        """
        if (request := self.tracked(engine_request_id)) is not None:
            self._require_together(request, request.pushes, timeline(request.pushes), gates)

    def _require_together(
        self, request: Tracked, pushes: Sequence[Push], segments: Sequence[Segment], gates: Sequence[Arm]
    ) -> None:
        upcoming = self.upcoming(request.slot)
        limits = [push.max_dose for push in pushes if push.end > upcoming and push.max_dose is not None]
        for segment in segments:
            if segment.end > upcoming:
                require_together(self._bundle, dict(segment.amounts), gates, min(limits, default=None))

    def upcoming(self, slot: int) -> int:
        """The position that the slot's request has not reached yet."""
        return int(self._next_position[slot])

    def gated(self, engine_request_id: str, position: int) -> None:
        """Mark what lies downstream of a gate's steering, which began at a position of a request in flight."""
        request = self._requests.get(engine_request_id)
        if request is not None and request.slot >= 0:
            request.gated_from = min(request.gated_from, position)
            self._tainted_from[request.slot] = min(self._tainted_from[request.slot], position)

    def batch(
        self, keys: Sequence[str], scheduled: NDArray[np.integer], first: NDArray[np.integer], *, suspended: bool
    ) -> Batch:
        """Take in a step that is about to be computed.

        Args:
            keys: Requests in the order of the batch.
            scheduled: Rows of each, shape ``(requests,)``.
            first: Position of the first row of each, shape ``(requests,)``.
            suspended: Nothing is to be scored in this step.
        """
        if keys != self._batch_keys:
            self._batch_keys = list(keys)
            missing = Tracked(-1, "", "", np.empty(0, np.uint8))
            self._batch_slots = np.array([self._requests.get(known, missing).slot for known in keys], np.int32)
        slots = self._batch_slots
        upcoming = self._next_position[slots]
        gaps = [
            Gap(self._by_slot[int(slots[i])], int(upcoming[i]), int(first[i]))
            for i in np.flatnonzero((first > upcoming) & (slots >= 0)).tolist()
        ]
        again = np.where(slots >= 0, np.clip(upcoming - first, 0, scheduled), 0)
        reached = np.maximum(upcoming, first + scheduled)
        self._next_position[slots] = reached
        self._next_position[-1] = NEVER
        for gap in gaps:
            self.unsent[gap.request.slot] = min(self.unsent[gap.request.slot], gap.start)
        self.kept[slots] = first + scheduled
        if suspended:
            slots = np.full_like(slots, -1)
        unscored = int(scheduled[slots < 0].sum())
        self.unscored += unscored
        prompts = {
            slot: self._by_slot[slot].prompt_roles
            for slot in slots[first < self._prompt_tokens[slots]].tolist()
            if slot >= 0
        }
        return Batch(
            slots,
            self._tainted_from[slots],
            self._answer_role[slots],
            prompts,
            [] if suspended else gaps,
            unscored,
            again,
            self._terms[slots],
            np.asarray(first, np.int64).copy(),
        )


def _started(request: Tracked) -> Started:
    return Started(
        request.slot,
        request.engine_request_id,
        request.request_id,
        len(request.prompt_roles),
        request.admitted,
        request.part,
    )
