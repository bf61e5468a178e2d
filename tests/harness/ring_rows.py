"""Rows for a ring that tell where they belong."""

import numpy as np


def patterns(start, rows, hidden):
    """What row ``n`` holds in these tests: bit patterns that say which row and which element they are of."""
    number = np.arange(start, start + rows, dtype=np.uint64)[:, None]
    return (number * 40_503 + np.arange(hidden, dtype=np.uint64)).astype(np.uint16)


def fill(writer, view, values):
    """Reserve and write rows, as an engine does; returns their description."""
    start, done = writer.reserved, 0
    for position, count in writer.reserve(len(values)):
        view[position : position + count] = values[done : done + count]
        done += count
    return start, len(values)


def write(writer, rows):
    """Rows of patterns; returns their description."""
    return fill(writer, writer.view, patterns(writer.reserved, rows, writer.view.shape[1]))
