"""Activations of chosen layers, to readers in other processes, through shared memory.

The op copies a layer's states into a buffer of the device while the layer is streamed, which a flag on the device says:
it is switched between two steps, and no graph is recorded again. Behind the step, the selected rows go to the layer's
ring (:mod:`monitor.wire.ring`); on a GPU by a stream of its own, out of a copy that the next step does not overwrite.
"""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monitor.addresses import group_name
from monitor.engine.reachability import readers_group
from monitor.engine.steering.table import to_device
from monitor.engine.taps import LayerTap, Taps
from monitor.errors import EngineError, OrderError
from monitor.wire.frames import StateBlock
from monitor.wire.orders import Selection
from monitor.wire.ring import Dtype, StateReader, StateWriter, sweep

RING_STEPS: Final = 2
"""The largest steps that a ring holds at least; of decode steps it holds a hundred or more."""

logger = logging.getLogger(__name__)


class Streams:
    """The rings of the layers that can be streamed.

    Args:
        taps: Their states are read.
        engine: The engine's id.
        side: The stream that copies run on; ``None`` on a CPU.
        rows: How many rows a ring holds, if more than those of two of the largest steps.
        exports: Whether this process tells the monitor; the others stream nothing.
        endpoint: Of the monitor, whose user may read the rings.

    Raises:
        StreamError: There is no place, or no room, for a ring.
    """

    def __init__(
        self,
        taps: Taps,
        engine: str,
        side: torch.cuda.Stream | None,
        *,
        rows: int,
        exports: bool,
        endpoint: str | None = None,
    ) -> None:
        self._side = side
        self._rings: dict[int, _Ring] = {}
        self._selected: dict[int, Selection] = {}
        self._exports, self._endpoint = exports, endpoint
        layers = {layer: tap for layer, tap in taps.layers.items() if len(tap.states)}
        if layers and exports:
            sweep()
            self._rings = {layer: _Ring(engine, layer, tap, rows) for layer, tap in layers.items()}

    def select(self, layer: int, rows: Selection) -> None:
        """Choose which rows of a layer are streamed from the next step on.

        Raises:
            EngineError: The engine was not started to stream this layer.
        """
        if not self._exports:
            return
        ring = self._rings.get(layer)
        if ring is None:
            raise OrderError(
                "layer",
                f"Layer {layer} cannot be streamed.",
                'Start the engine with "stream": [LAYER, …] in its configuration.',
            )
        if rows != "none" and self._endpoint is not None and (group := readers_group(self._endpoint)) is not None:
            ring.share(group)
        ring.tap.stream.fill_(rows != "none")
        if rows == "none":
            self._selected.pop(layer, None)
        else:
            self._selected[layer] = rows

    def copy(
        self, rows: int, last_rows: NDArray[np.int64]
    ) -> tuple[list[StateBlock], NDArray[np.int32], Callable[[], None] | None]:
        """Begin to copy what is selected of the step that the device has been ordered to compute.

        Args:
            rows: Rows of the step.
            last_rows: The last row of each request.

        Returns:
            Where it goes; the step's row of each state, all blocks one after the other; and what waits until it is
            there.
        """
        if not self._selected:
            return [], np.empty(0, np.int32), None
        blocks, indices = list[StateBlock](), list[NDArray[np.int32]]()
        for layer, selection in self._selected.items():
            ring = self._rings[layer]
            if selection == "all":
                index, states = np.arange(rows, dtype=np.int32), ring.tap.states[:rows]
            else:
                index = last_rows.astype(np.int32)
                states = ring.tap.states[to_device(last_rows, ring.tap.states.device)]
            if (block := ring.write(states, self._side)) is not None:
                blocks.append(block)
                indices.append(index)
        wait = None
        if self._side is not None:
            copied = torch.cuda.Event()
            copied.record(self._side)
            wait = copied.synchronize
        return blocks, np.concatenate(indices) if indices else np.empty(0, np.int32), wait

    @contextmanager
    def sampled(self) -> Generator[Callable[[int], dict[int, NDArray[np.float32]]]]:
        """Stream all rows of all layers meanwhile, whatever was selected before and is again afterwards.

        Yields:
            What takes the number of rows of a step, and reads its states out of the rings as another process would:
            shape ``(rows, hidden)`` by layer. Nothing in a process that does not export.
        """
        selected = dict(self._selected)
        readers = {layer: StateReader(ring.writer.path) for layer, ring in self._rings.items()}

        def read(rows: int) -> dict[int, NDArray[np.float32]]:
            blocks, _, wait = self.copy(rows, np.empty(0, np.int64))
            if wait is not None:
                wait()
            found: dict[int, NDArray[np.float32]] = {}
            for block in blocks:
                if (states := readers[block.layer].read(block.start, block.rows)) is not None:
                    found[block.layer] = states
            return found

        try:
            for layer in self._rings:
                self.select(layer, "all")
            yield read
        finally:
            for layer in self._rings:
                self.select(layer, selected.get(layer, "none"))

    def close(self) -> None:
        """Stop streaming, and remove the rings."""
        if self._side is not None:
            # The memory may go as soon as nobody copies to it.
            self._side.synchronize()
        for ring in self._rings.values():
            ring.tap.stream.fill_(0)
            ring.close()
        self._selected, self._rings = {}, {}


class _Ring:
    """One layer's ring, as tensors."""

    def __init__(self, engine: str, layer: int, tap: LayerTap, at_least: int) -> None:
        rows, hidden = tap.states.shape
        self.tap = tap
        self.layer = layer
        self.writer = StateWriter(engine, layer, hidden, _dtype(tap.states.dtype), max(at_least, RING_STEPS * rows))
        view: NDArray[Any] = self.writer.view
        self.memory: Tensor = torch.from_numpy(view).view(tap.states.dtype)
        if tap.states.is_cuda:
            # So that copies from the device neither wait nor pass through a buffer of the driver's.
            runtime: Any = torch.cuda.cudart()
            torch.cuda.check_error(int(runtime.cudaHostRegister(self.memory.data_ptr(), view.nbytes, 0)))

    def share(self, group: int) -> None:
        """Let the monitor's workers read it, whose user may be another; they say where they cannot."""
        try:
            self.writer.share(group)
        except OSError as error:
            logger.warning(
                "plumbob: %s cannot be shared with group %s: %s. Only this engine's user may read it.",
                self.writer.path,
                group_name(group),
                error.strerror,
            )

    def close(self) -> None:
        if self.tap.states.is_cuda:
            runtime: Any = torch.cuda.cudart()
            torch.cuda.check_error(int(runtime.cudaHostUnregister(self.memory.data_ptr())))
        self.writer.close()

    def write(self, states: Tensor, side: torch.cuda.Stream | None) -> StateBlock | None:
        start = self.writer.reserved
        pieces = self.writer.reserve(len(states))
        if not pieces:
            return None
        if side is not None:
            # The buffer is the next step's: what the side stream reads is a copy, which the allocator keeps for it.
            states = states.clone()
            side.wait_stream(torch.cuda.current_stream())
            states.record_stream(side)
        done = 0
        with torch.cuda.stream(side):
            for position, count in pieces:
                self.memory[position : position + count].copy_(states[done : done + count], non_blocking=True)
                done += count
        return StateBlock(self.layer, str(self.writer.path), start, len(states))


def _dtype(dtype: torch.dtype) -> Dtype:
    match dtype:
        case torch.bfloat16:
            return "bfloat16"
        case torch.float16:
            return "float16"
        case torch.float32:
            return "float32"
        case _:
            raise EngineError(f"Activations of type {dtype} cannot be streamed.", "Start the engine without streaming.")
