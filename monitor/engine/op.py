r"""The fused op of a tapped layer: reads the residual stream once, scores every row, and steers some.

For a row with state :math:`x = h + r` (hidden plus residual), probe weights :math:`w_1 … w_K` with bias :math:`b`,
projection directions :math:`w_{K+1} … w_{K+V}` and steering vectors :math:`u_1 … u_V`:

.. math::

    s_k = w_k \cdot x + b_k, \qquad p_v = w_{K+v} \cdot x + b_{K+v}, \qquad
    h \leftarrow h + \sum_v \bigl( a_v + \operatorname{clip}(c_v\, p_v, l_v, m_v) - p_v \bigr)\, u_v

where ``table[entry, v] = (a, c, l, m)`` is what to add to the projection, what to scale it by, and the range to clip
it to before adding; ``entry`` is the row's own. :data:`NEUTRAL` changes nothing, exactly. All projections are of the
row before steering, so that the order of vectors does not matter. Scores are those of the row before steering too, and
so are the states that are streamed.

The op is defined once, here, for torch.compile and eager alike, and mutates its buffers as explicit arguments:
nothing is fetched from globals, so the compiler can neither drop nor reorder it. The reference in torch, which serves
the CPU, is in this module; :mod:`monitor.engine.kernels` serves CUDA.
"""

from typing import Any, Final

import torch
from torch import Tensor

OP_VERSION: Final = 2
"""Part of the key of compiled artefacts: raise it when the op's meaning or signature changes."""

NEUTRAL: Final = (0.0, 1.0, -float("inf"), float("inf"))
"""The table's entry that leaves a row as it is."""

_library = torch.library.Library("plumbob", "DEF")
_library.define(
    "tap(Tensor(a!) hidden, Tensor? residual, Tensor weights, Tensor bias, Tensor row_entry, Tensor table, "
    "Tensor vectors, Tensor(b!) scores, int column, Tensor(c!) states, Tensor stream) -> ()"
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
    steered = torch.nonzero(row_entry[:tokens] >= 0).flatten()
    if not len(steered):
        return
    add, scale, low, high = table[row_entry[steered].long()].unbind(-1)
    projection = projected[steered, probe_count:]
    # The difference first: where nothing is scaled or clipped it is exactly zero, and the amount exactly ``add``.
    amount = add + (torch.clamp(scale * projection, low, high) - projection)
    # Products before the sum, not a matrix product: opposite amounts of opposite vectors then cancel exactly.
    change = (amount.unsqueeze(-1) * vectors).sum(dim=1)
    before = hidden[steered]
    # Where nothing is added, not even the sign of a zero changes.
    hidden[steered] = torch.where(change == 0, before, (before.float() + change).to(hidden.dtype))


def _tap_on_cuda(*arguments: Any) -> None:
    # Imported at the first call: Triton is not there on every machine, and asking for CUDA here would break forks.
    from monitor.engine import kernels

    kernels.tap(*arguments)


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
) -> None:
    """Tell the compiler that nothing is returned."""


torch.library.register_fake("plumbob::tap", _fake, lib=_library)
_library.impl("tap", tap, "CPU")
_library.impl("tap", _tap_on_cuda, "CUDA")
