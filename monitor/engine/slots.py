"""Requests to slots, and the row map of each step: which row belongs to whom, where, and whether to steer it.

A request keeps its slot from its first step to its end, through preemption and resumption: rows that come back are told
apart by their absolute position. The model runner's own slots are freed and moved under way, so they are not used.

Steering touches response rows only: those at position ``prompt_tokens − 1`` or later, whose logits make response
tokens. A replayed row is steered again if it was steered before, since orders remember where they began and ended.
Where several orders began at different rows, a replay applies their sum to all the rows that any of them touched.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from monitor.engine.taps import Taps
from monitor.frames import ROW, Release, Started, Steer
from probes.bundle import Bundle
from probes.roles import Role, RoleReader


@dataclass(slots=True)
class Push:
    """One order to steer, as positions of its request."""

    vector: int
    """Row of the bundle's vectors."""
    coefficient: float
    """Of the unit vector."""
    order: str
    """Id of the order; may be empty."""
    start: int
    """First position steered."""
    end: int | None
    """First position no longer steered."""


@dataclass(slots=True)
class Tracked:
    """A request in flight."""

    slot: int
    """−1: not scored (served with a LoRA adapter, or no slot was free)."""
    key: str
    request_id: str
    prompt_roles: NDArray[np.uint8]
    next_position: int = 0
    """One past the last position computed."""
    pushes: list[Push] = field(default_factory=list[Push])
    applied: tuple[tuple[int, float], ...] = ()
    """What the table holds for the slot now: ``(vector, coefficient)``, without zeros."""
    tainted_from: int | None = None
    """From this position on, states depend on steering (the KV cache carries it)."""

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_roles)


class Slots:
    """All requests in flight of one engine process.

    Args:
        taps: Their buffers are written.
        bundle: Vectors and role markers.
        slots: How many requests can be scored at once, preempted ones included.
    """

    def __init__(self, taps: Taps, bundle: Bundle, slots: int) -> None:
        self._taps = taps
        self._bundle = bundle
        self._roles = RoleReader(bundle.manifest.markers)
        self._free = list(range(slots - 1, -1, -1))
        self._requests: dict[str, Tracked] = {}
        # Where each vector lives: its layer's table, and its column there.
        self._table_of = {
            row: (taps.layers[layer].table, index)
            for layer in bundle.layers
            for index, row in enumerate(bundle.vector_rows(layer))
        }
        self._row_of = {vector.name: row for row, vector in enumerate(bundle.manifest.vectors)}
        self.unscored = 0
        """Rows computed but not scored, since the start."""

    def start(self, key: str, request_id: str, prompt: Sequence[int], *, scored: bool) -> Started | None:
        """Take in a request; ``None`` where it is not scored."""
        if (known := self._requests.get(key)) is not None:
            # A streaming session that goes on: what it has generated has become part of its prompt.
            known.prompt_roles = self._roles.prompt(prompt)
            return None
        slot = self._free.pop() if scored and self._free else -1
        self._requests[key] = Tracked(slot, key, request_id, self._roles.prompt(prompt))
        return Started(slot, key, request_id, len(prompt)) if slot >= 0 else None

    def finish(self, key: str) -> int | None:
        """Let a request go; its slot, or ``None`` where it had none."""
        request = self._requests.pop(key, None)
        if request is None or request.slot < 0:
            return None
        self._write(request, ())
        self._free.append(request.slot)
        return request.slot

    def in_flight(self) -> list[Started]:
        """All scored requests, for a monitor that knows none of them."""
        return [
            Started(request.slot, request.key, request.request_id, request.prompt_tokens)
            for request in self._requests.values()
            if request.slot >= 0
        ]

    def order(self, order: Steer | Release) -> None:
        """Steer a request from its next row on, or stop steering it. Unknown requests have ended: nothing to do."""
        request = self._requests.get(order.key)
        if request is None or request.slot < 0:
            return
        if isinstance(order, Release):
            for push in request.pushes:
                push.end = request.next_position if push.end is None else min(push.end, request.next_position)
            return
        if order.id and any(push.order == order.id for push in request.pushes):
            return
        vector = self._bundle.vector(order.vector)
        start = max(request.next_position, request.prompt_tokens - 1)
        request.pushes.append(
            Push(
                vector=self._row_of[order.vector],
                coefficient=vector.coefficient(order.dose),
                order=order.id,
                start=start,
                end=None if order.tokens is None else start + order.tokens,
            )
        )

    def map_rows(
        self, keys: Iterable[str], scheduled: NDArray[np.integer], computed: NDArray[np.integer]
    ) -> NDArray[np.void]:
        """Describe the rows of a step, and set the taps' buffers for it.

        Args:
            keys: Requests in the order of the batch.
            scheduled: Rows of each, shape ``(requests,)``.
            computed: Position of the first row of each, shape ``(requests,)``.

        Returns:
            Rows of dtype :data:`monitor.frames.ROW`; slot −1 where a row is not scored.
        """
        rows = np.empty(int(scheduled.sum()), ROW)
        steer = np.full(len(rows), -1, np.int32)
        begin = 0
        for key, count, first in zip(keys, scheduled.tolist(), computed.tolist(), strict=True):
            span = slice(begin, begin + count)
            begin += count
            request = self._requests.get(key)
            positions = np.arange(first, first + count, dtype=np.int32)
            rows["position"][span] = positions
            if request is None or request.slot < 0:
                rows["slot"][span], rows["role"][span], rows["steered"][span] = -1, Role.TEMPLATE, 0
                self.unscored += count
                continue
            prompt = request.prompt_roles[first : first + count]
            rows["slot"][span] = request.slot
            rows["role"][span] = Role.ASSISTANT
            rows["role"][begin - count : begin - count + len(prompt)] = prompt
            request.next_position = max(request.next_position, first + count)
            if request.pushes:
                steer[span] = self._steer_rows(request, positions)
            tainted = request.tainted_from
            rows["steered"][span] = 0 if tainted is None else positions >= tainted
        self._taps.row_slot[: len(rows)].copy_(torch.from_numpy(steer))
        return rows

    def _steer_rows(self, request: Tracked, positions: NDArray[np.int32]) -> NDArray[np.int32]:
        """The steering slot of each row of one request, with the table set for them."""
        total: dict[int, float] = {}
        touched = np.zeros(len(positions), bool)
        for push in request.pushes:
            active = (positions >= push.start) & (True if push.end is None else positions < push.end)
            if active.any():
                touched |= active
                total[push.vector] = total.get(push.vector, 0.0) + push.coefficient
        amounts = tuple((vector, amount) for vector, amount in sorted(total.items()) if amount)
        self._write(request, amounts)
        if not amounts:
            return np.full(len(positions), -1, np.int32)
        first = int(positions[touched][0])
        request.tainted_from = first if request.tainted_from is None else min(first, request.tainted_from)
        return np.where(touched, np.int32(request.slot), np.int32(-1))

    def _write(self, request: Tracked, amounts: tuple[tuple[int, float], ...]) -> None:
        if amounts == request.applied:
            return
        for vector, _ in request.applied:
            table, index = self._table_of[vector]
            table[request.slot, index, 0] = 0.0
        for vector, amount in amounts:
            table, index = self._table_of[vector]
            table[request.slot, index, 0] = amount
        request.applied = amounts
