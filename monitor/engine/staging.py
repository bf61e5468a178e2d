"""The way off the device: buffers that take a step's scores while the next step overwrites where they were written.

The engine's thread fills a stage and goes on; the exporter's thread waits for it and gives it back. On a GPU the copy
to pinned memory runs on a stream of its own, beside the next step. Nobody waits for a stage that is free: where there
is none, the step's frame is dropped and counted.
"""

import queue
import time
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DEPTH: Final = 16
"""Steps that may be on their way out: at 10 ms a step, a pause of the exporter's thread of 160 ms loses nothing."""


class Stage:
    """The buffers of one step, on the device and on the host; on a CPU they are the same.

    Args:
        rows: The most rows of a step.
        probes: Columns of scores.
        device: Where steps are computed.
        gates: Gates of the engine.
    """

    def __init__(self, rows: int, probes: int, device: torch.device, gates: int = 0) -> None:
        self.scores = torch.empty(rows, probes, device=device)
        """``(rows, probes)``, float32."""
        self.slots = torch.full((rows,), -1, dtype=torch.int32, device=device)
        """``(rows,)``, int32; −1: not scored."""
        self.positions = torch.zeros(rows, dtype=torch.int32, device=device)
        """``(rows,)``, int32."""
        self.gates = torch.zeros(rows, gates, dtype=torch.int8, device=device)
        """``(rows, gates)``, of :class:`monitor.engine.ops.gate_layout.Flag`; stale where no gate is active."""
        buffers = (self.slots, self.positions, self.scores, *((self.gates,) if gates else ()))
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._copied: torch.cuda.Event | None = None
        if device.type != "cpu":
            self._copies = [(buffer, torch.empty_like(buffer, device="cpu", pin_memory=True)) for buffer in buffers]
            self._copied = torch.cuda.Event()
            buffers = tuple(host for _, host in self._copies)
        self._host = tuple(buffer.numpy() for buffer in buffers)
        self._computed_ns = 0

    def copy(self, rows: int, side: torch.cuda.Stream | None) -> None:
        """Begin to copy to the host what the device has been ordered to compute so far."""
        self._computed_ns = time.monotonic_ns()
        if side is None or self._copied is None:
            return
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for device, host in self._copies:
                host[:rows].copy_(device[:rows], non_blocking=True)
            self._copied.record()

    def wait(self) -> int:
        """Wait for the copy.

        Returns:
            When the step had been computed, in nanoseconds of the monotonic clock.
        """
        if self._copied is None:
            return self._computed_ns
        self._copied.synchronize()
        return time.monotonic_ns()

    def read(self, rows: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        """Slots, positions and scores of the first ``rows`` rows, as views of the host's buffers."""
        slots, positions, scores, *_ = self._host
        return slots[:rows], positions[:rows], scores[:rows]

    def read_gates(self, rows: int) -> NDArray[np.int8]:
        """Flags of gates on the first ``rows`` rows, as a view of the host's buffer."""
        return self._host[3][:rows]


class Staging:
    """A rotation of stages.

    Args:
        rows: The most rows of a step.
        probes: Columns of scores.
        device: Where steps are computed.
        gates: Gates of the engine.
    """

    def __init__(self, rows: int, probes: int, device: torch.device, gates: int = 0) -> None:
        self.side = torch.cuda.Stream(device) if device.type != "cpu" else None
        """The stream that copies run on."""
        self.spare = Stage(rows, probes, device, gates)
        """For steps that are not exported: never on its way out."""
        self._free: queue.SimpleQueue[Stage] = queue.SimpleQueue()
        for _ in range(DEPTH):
            self._free.put(Stage(rows, probes, device, gates))

    @property
    def free(self) -> int:
        """Stages that are free now."""
        return self._free.qsize()

    def take(self) -> Stage | None:
        """A free stage, or ``None``."""
        try:
            return self._free.get_nowait()
        except queue.Empty:
            return None

    def give(self, stage: Stage) -> None:
        """Return a stage. A copy that is still under way may be forgotten: the next one of the stage comes after it."""
        self._free.put(stage)
