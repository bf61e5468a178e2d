"""The rings of activations that a worker has open."""

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from monitor.errors import FrameError
from monitor.wire.frames import StateBlock
from monitor.wire.ring import RingError, StateReader
from monitor.workers.messages import Outcome

MAX_RINGS: Final = 256
"""Rings open at once, one an engine and layer; beyond it the one read longest ago is closed."""

logger = logging.getLogger(__name__)


class Rings:
    """Opens rings as jobs name them, and lets go of those whose engine is gone: until then they take up memory."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, StateReader] = OrderedDict()
        self._complained: set[str] = set()

    def read(self, block: StateBlock) -> NDArray[np.float32] | Outcome:
        """The states of a block, shape ``(rows, hidden)``, or why there are none."""
        try:
            try:
                states = self._reader(block).read(block.start, block.rows)
            except RingError:
                # The engine may have begun another ring of this name.
                self._open.pop(block.path, None)
                states = self._reader(block).read(block.start, block.rows)
        except FrameError as error:
            if block.path not in self._complained and len(self._complained) < MAX_RINGS:
                self._complained.add(block.path)
                logger.warning("Activations cannot be read: %s", error)
            return Outcome.UNREADABLE
        return Outcome.OVERTAKEN if states is None else states

    def sweep(self) -> None:
        """Close the rings that no engine writes any more."""
        for path in [path for path, reader in self._open.items() if not reader.alive()]:
            del self._open[path]

    def _reader(self, block: StateBlock) -> StateReader:
        reader = self._open.get(block.path)
        if reader is None:
            reader = StateReader(Path(block.path))
            if reader.layer != block.layer:
                raise RingError(f"{block.path} holds layer {reader.layer}, not layer {block.layer}.")
            self._open[block.path] = reader
            if len(self._open) > MAX_RINGS:
                self._open.popitem(last=False)
        self._open.move_to_end(block.path)
        return reader
