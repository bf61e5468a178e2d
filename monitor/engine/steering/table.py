"""The steering tables of the taps: for each slot, which of its positions are steered, and by how much.

A request's orders make a timeline: stretches of positions, each with what is done along every vector. A stretch has an
entry of the tables, and the device looks up the entry of each row by its position
(:func:`monitor.engine.rows.map_rows`). So a row that is computed again, after preemption, is steered exactly as it was:
positions decide, not the step.

The host keeps the timelines and sends what has changed, at most once a step.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monitor.engine.rows import SEGMENTS
from monitor.engine.steering.acts import NOTHING, compose
from monitor.engine.taps import Taps
from monitor.errors import OrderError
from probes.bundle import Bundle
from probes.steering import Entry

ENTRIES_PER_SLOT: Final = 2
"""Entries of the tables for each slot. They are shared: one request may have more while others have fewer."""
FOREVER: Final = 2**31 - 1
"""End of a stretch that has none."""

Amounts = tuple[tuple[int, Entry], ...]
"""Steering of one position, as ``(row of the bundle's vectors, entry)``, without those that do nothing, sorted."""


@dataclass(slots=True)
class Push:
    """One act of an order to steer, as positions of its request."""

    vector: int
    """Row of the bundle's vectors."""
    entry: Entry
    """Its entry of the table."""
    order: str
    """Id of the order; may be empty."""
    start: int
    """First position steered."""
    end: int = FOREVER
    """First position no longer steered."""
    max_dose: float | None = None
    """A cap of the order's own on all that may be done at once."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Positions that are steered alike."""

    start: int
    end: int
    """One past the last."""
    amounts: Amounts


def timeline(pushes: Iterable[Push]) -> list[Segment]:
    """Compose orders position by position; stretches in which nothing is done are left out."""
    live = [push for push in pushes if push.start < push.end]
    edges = sorted({edge for push in live for edge in (push.start, push.end)})
    segments: list[Segment] = []
    for start, end in pairwise(edges):
        here: dict[int, list[Entry]] = {}
        for push in live:
            if push.start <= start < push.end:
                here.setdefault(push.vector, []).append(push.entry)
        composed = ((vector, compose(entries)) for vector, entries in sorted(here.items()))
        amounts = tuple((vector, entry) for vector, entry in composed if entry != NOTHING)
        if segments and segments[-1].end == start and segments[-1].amounts == amounts:
            segments[-1] = Segment(segments[-1].start, end, amounts)
        elif amounts:
            segments.append(Segment(start, end, amounts))
    return segments


class Steering:
    """The steering tables of all tapped layers, and the stretches that refer to them.

    Args:
        taps: Their tables are written.
        bundle: Whose vectors they hold.
        slots: How many requests can be steered at once.
    """

    def __init__(self, taps: Taps, bundle: Bundle, slots: int) -> None:
        self._device = taps.row_entry.device
        self.segments = torch.zeros(slots, SEGMENTS, 3, dtype=torch.int32, device=self._device)
        """``(slots, SEGMENTS, 3)``, int32: first position, one past the last, entry; unused ones are empty."""
        self._tables = {layer: tap.table for layer, tap in taps.layers.items() if tap.table.shape[1]}
        # Where each vector lives: its layer's table, and its column there.
        self._home = {
            row: (layer, index) for layer in bundle.layers for index, row in enumerate(bundle.vector_rows(layer))
        }
        self._free = list(range(ENTRIES_PER_SLOT * slots - 1, -1, -1))
        self._held: dict[int, dict[Amounts, int]] = {}
        self._changed_slots: dict[int, NDArray[np.int32]] = {}
        self._changed_entries: dict[int, Amounts] = {}

    @property
    def active(self) -> bool:
        """True while any slot is steered anywhere."""
        return bool(self._held)

    def set(self, slot: int, segments: Sequence[Segment]) -> None:
        """Replace a slot's timeline. The last ``SEGMENTS`` stretches count; earlier ones matter to replays only.

        Raises:
            OrderError: The tables are full; the slot's timeline is what it was.
        """
        kept = segments[-SEGMENTS:]
        before = self._held.get(slot, {})
        wanted = {segment.amounts for segment in kept}
        missing = wanted - before.keys()
        unused = [entry for amounts, entry in before.items() if amounts not in wanted]
        if len(missing) > len(self._free) + len(unused):
            raise OrderError(
                "slots", "The steering table is full.", "Steer fewer requests at once, or with fewer different doses."
            )
        self._free += unused
        held = {amounts: entry for amounts, entry in before.items() if amounts in wanted}
        for amounts in sorted(missing):
            held[amounts] = self._free.pop()
            self._changed_entries[held[amounts]] = amounts
        row = np.zeros((SEGMENTS, 3), np.int32)
        for index, segment in enumerate(kept):
            row[index] = segment.start, segment.end, held[segment.amounts]
        self._changed_slots[slot] = row
        if held:
            self._held[slot] = held
        else:
            self._held.pop(slot, None)

    def clear(self, slot: int) -> None:
        """Steer a slot no longer."""
        if slot in self._held:
            self.set(slot, [])

    def flush(self) -> None:
        """Send what has changed to the device, before the step that it is meant for."""
        if self._changed_slots:
            self._write(self.segments, self._changed_slots)
            self._changed_slots = {}
        if self._changed_entries:
            for layer, table in self._tables.items():
                self._write(table, {entry: self._entry(layer, a) for entry, a in self._changed_entries.items()})
            self._changed_entries = {}

    def _entry(self, layer: int, amounts: Amounts) -> NDArray[np.float32]:
        rows = np.tile(np.asarray(NOTHING, np.float32), (self._tables[layer].shape[1], 1))
        for vector, entry in amounts:
            home, index = self._home[vector]
            if home == layer:
                rows[index] = entry
        return rows

    def _write(self, target: Tensor, rows: dict[int, NDArray[Any]]) -> None:
        index = to_device(np.fromiter(rows, np.int64, len(rows)), self._device)
        target.index_copy_(0, index, to_device(np.stack(list(rows.values())), self._device))


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy without waiting: on a GPU through pinned memory, which the allocator keeps until the copy is done."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
