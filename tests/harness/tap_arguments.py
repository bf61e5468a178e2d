"""Arguments of the tap's op."""

import numpy as np
import pytest

from monitor.engine.ops import tap as op

torch = pytest.importorskip("torch")


def make(seed: int, tokens: int, hidden: int, probes: int, vectors: int, slots: int, dtype, *, split: bool):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    table = torch.tensor(op.NEUTRAL).repeat(slots, vectors, 1)
    return {
        "hidden": random(tokens, hidden).to(dtype),
        "residual": random(tokens, hidden).to(dtype) if split else None,
        "weights": random(probes + vectors, hidden),
        "bias": random(probes + vectors),
        "row_entry": torch.full((tokens + 3,), -1, dtype=torch.int32),
        "table": table,
        "vectors": random(vectors, hidden),
        "scores": torch.full((tokens + 3, probes + 2), np.nan),
        "column": 1,
        "states": torch.full((tokens + 3, hidden), np.nan),
        "stream": torch.zeros(1, dtype=torch.int32),
    }
