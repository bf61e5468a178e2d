r"""The fused op of a tapped layer: reads the residual stream once, scores every row, and steers some.

For a row with state :math:`x = h + r` (hidden plus residual), probe weights :math:`w_1 … w_K` with bias :math:`b`,
projection directions :math:`w_{K+1} … w_{K+V}` and steering vectors :math:`u_1 … u_V`:

.. math::

    s_k = w_k \cdot x + b_k, \qquad p_v = w_{K+v} \cdot x + b_{K+v}, \qquad
    h \leftarrow h + \sum_v \bigl( a_v + \operatorname{clip}(c_v\, p_v, l_v, m_v) - p_v \bigr)\, u_v

where ``table[entry, v] = (a, c, l, m)`` is what to add to the projection, what to scale it by, and the range to clip
it to before adding; ``entry`` is the row's own. :data:`NEUTRAL` changes nothing, exactly. Where gates steer the row as
well (:mod:`monitor.engine.ops.gate`), their entries are joined to it: what is added is added up, scales multiply, and
ranges intersect (an empty intersection is its upper bound). So the order of gates does not matter either, and two that
take the same direction away take it away once. All projections are of the
row before steering, so that the order of vectors does not matter. Scores are those of the row before steering too, and
so are the states that are streamed.

The op is defined once, here, for torch.compile and eager alike, and mutates its buffers as explicit arguments:
nothing is fetched from globals, so the compiler can neither drop nor reorder it. The reference in torch, which serves
the CPU, is in this module; :mod:`monitor.engine.ops.triton.tap_kernels` serves CUDA.
"""

from typing import Any, Final

import torch
from torch import Tensor

OP_VERSION: Final = 3
"""Part of the key of compiled artefacts: raise it when the op's meaning or signature changes."""

NEUTRAL: Final = (0.0, 1.0, -float("inf"), float("inf"))
"""The table's entry that leaves a row as it is."""

STEER: Final = 1
"""The bit of ``row_gates`` that says to steer."""

_library = torch.library.Library("plumbob", "DEF")
_library.define(
    "tap(Tensor(a!) hidden, Tensor? residual, Tensor weights, Tensor bias, Tensor row_entry, Tensor table, "
    "Tensor vectors, Tensor(b!) scores, int column, Tensor(c!) states, Tensor stream, Tensor? row_gates=None, "
    "Tensor? gate_table=None) -> ()"
)


def tap(
    hidden: Tensor,
    residual: Tensor | None,
    weights: Tensor,
    bias: Tensor,
    row_entry: Tensor,
    table: Tensor,
    vectors: Tensor,
    scores: Tensor,
    column: int,
    states: Tensor,
    stream: Tensor,
    row_gates: Tensor | None = None,
    gate_table: Tensor | None = None,
) -> None:
    """Score every row and steer the rows whose slot says so; the reference in torch.

    Args:
        hidden: The layer's output, ``(tokens, hidden)``; steered in place.
        residual: What the next norm adds to it, ``(tokens, hidden)``; ``None`` where the layer returns the sum.
        weights: Probes, then one projection direction a vector, ``(K + V, hidden)``, float32.
        bias: ``(K + V,)``, float32.
        row_entry: The table's entry for each row, ``(at least tokens,)``, int32; −1 leaves the row alone.
        table: What steering does, ``(entries, V, 4)``, float32; see the module's docstring.
        vectors: ``(V, hidden)``, float32.
        scores: All layers' scores, token-major ``(at least tokens, all probes)``, float32; this layer's are written.
        column: Where this layer's scores begin.
        states: Where rows are streamed from, ``(at least tokens, hidden)``; without rows where the layer never is.
        stream: ``(1,)``, int32: not zero while the layer is streamed. Read on the device, so that streaming is switched
            without recording a graph again.
        row_gates: Which gates steer each row, in bit :data:`STEER`, ``(at least tokens, gates)``, int8; ``None``: there
            are no gates.
        gate_table: What each gate does, ``(gates, V, 4)``, float32; given with ``row_gates``.
    """
    tokens, vector_count = hidden.shape[0], vectors.shape[0]
    probe_count = weights.shape[0] - vector_count
    state = hidden.float() if residual is None else hidden.float() + residual
    projected = torch.addmm(bias, state, weights.t())
    scores[:tokens, column : column + probe_count] = projected[:, :probe_count]
    if len(states) and stream.item():
        states[:tokens] = state
    if not vector_count:
        return
    ordered = row_entry[:tokens] >= 0
    gates = None
    if row_gates is not None and row_gates[:tokens].any():
        gates = (row_gates[:tokens] & STEER) != 0
    steered = torch.nonzero(ordered if gates is None else ordered | gates.any(dim=1)).flatten()
    if not len(steered):
        return
    entry = table[row_entry[steered].clamp(min=0).long()]
    if gates is not None and gate_table is not None:
        entry[~ordered[steered]] = torch.tensor(NEUTRAL, device=entry.device)
        for mine, theirs in zip(gates[steered].unbind(dim=1), gate_table, strict=True):
            entry = torch.where(mine[:, None, None], _joined(entry, theirs), entry)
    add, scale, low, high = entry.unbind(-1)
    projection = projected[steered, probe_count:]
    # The difference first: where nothing is scaled or clipped it is exactly zero, and the amount exactly ``add``.
    amount = add + (torch.clamp(scale * projection, low, high) - projection)
    # Products before the sum, not a matrix product: opposite amounts of opposite vectors then cancel exactly.
    change = (amount.unsqueeze(-1) * vectors).sum(dim=1)
    before = hidden[steered]
    # Where nothing is added, not even the sign of a zero changes.
    hidden[steered] = torch.where(change == 0, before, (before.float() + change).to(hidden.dtype))


def _joined(entry: Tensor, other: Tensor) -> Tensor:
    """Two entries as one, see the module's docstring; shapes ``(…, V, 4)``."""
    (add, scale, low, high), (more, times, above, below) = entry.unbind(-1), other.unbind(-1)
    return torch.stack([add + more, scale * times, low.maximum(above), high.minimum(below)], dim=-1)


def _tap_on_cuda(*arguments: Any) -> None:
    # Imported at the first call: Triton is not there on every machine, and asking for CUDA here would break forks.
    from monitor.engine.ops.triton import tap_kernels

    tap_kernels.tap(*arguments)


def _fake(
    hidden: Tensor,
    residual: Tensor | None,
    weights: Tensor,
    bias: Tensor,
    row_entry: Tensor,
    table: Tensor,
    vectors: Tensor,
    scores: Tensor,
    column: int,
    states: Tensor,
    stream: Tensor,
    row_gates: Tensor | None = None,
    gate_table: Tensor | None = None,
) -> None:
    """Tell the compiler that nothing is returned."""


torch.library.register_fake("plumbob::tap", _fake, lib=_library)
_library.impl("tap", tap, "CPU")
_library.impl("tap", _tap_on_cuda, "CUDA")
