"""The modules that add to the residual stream, found by number: no list of families, and no names.

1. One pass over random tokens records what enters and leaves each block, and what its submodules up to three names deep
   return.
2. The writers of a block are the one or two of them whose outputs, summed and multiplied by one number, are what the
   block adds. Of several answers (a module and the projection that it ends with) the outermost is taken, and a module
   rather than the dropout behind it.
3. The first that ran is its attention (or the convolution or recurrence that it has instead), the second its MLP. One
   alone is attention if it mixes tokens: if the last token's state depends on the first one's.

That finds attention and MLP of Llama; the norms behind them of Gemma 2 and OLMo 2; parallel blocks of Phi, Cohere and
GPT-NeoX; Granite's multiplier; and the last projection of Bloom, whose MLP adds the residual itself. A block that
normalises what it returns is refused, as one that adds from a third place.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

TOLERANCE: Final = 1e-4
"""Relative error of a sum, in float32."""
ROUNDINGS: Final = 8
"""Roundings of the residual stream that a sum may be off by, where its numbers are coarser."""


@dataclass(frozen=True, slots=True)
class Writer:
    """A module whose output is added to the residual stream."""

    name: str
    """In the block."""
    module: Any
    flat: bool
    """True where it returns ``(texts * tokens, hidden)``."""


@dataclass(frozen=True, slots=True)
class Writers:
    """The writers of a block, which adds ``scale`` times the sum of their outputs to the residual stream."""

    attention: Writer | None
    mlp: Writer | None
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class BlockTrace:
    """One block as it was seen in the recorded pass."""

    before: Any
    """The residual stream that entered, shape ``(texts, tokens, hidden)``."""
    after: Any
    outputs: Mapping[str, tuple[Any, Any]]
    """By name in the block, in the order in which they ran: module and output, of those that ran once."""
    replay: Callable[[Any], Any]
    """The block once more, from another state that enters to the state that leaves."""


def find_writers(trace: BlockTrace) -> Writers | None:
    """The writers of one block, ``None`` if no one or two of its modules are.

    Args:
        trace: In evaluation mode, so that dropout does nothing.
    """
    import torch
    from torch import nn

    added = (trace.after.double() - trace.before.double()).flatten()
    if not (norm := added.norm()).item():
        return None
    exact = {
        name: output.double().flatten()
        for name, (_, output) in trace.outputs.items()
        if isinstance(output, torch.Tensor) and output.numel() == added.numel()
    }
    coarse = ROUNDINGS * torch.finfo(trace.after.dtype).eps * (trace.after.double().norm() / norm).item()
    order = list(trace.outputs)
    found: list[tuple[tuple[int, int, int], Sequence[str], float]] = []
    for names in _disjoint(list(exact)):
        total = torch.stack([exact[name] for name in names]).sum(0)
        if not (square := (total @ total).item()):
            continue
        scale = (total @ added).item() / square
        if ((scale * total - added).norm() / norm).item() <= max(TOLERANCE, coarse):
            passes = sum(isinstance(trace.outputs[name][0], (nn.Dropout, nn.Identity)) for name in names)
            found.append(((len(names), passes, sum(name.count(".") for name in names)), names, scale))
    if not found:
        return None
    _, names, scale = min(found, key=lambda one: one[0])
    # Exactly 1 in nearly all families, and then nothing is multiplied.
    scale = 1.0 if abs(scale - 1) <= max(TOLERANCE, coarse) else scale
    writers = [
        Writer(name, module, flat=output.ndim < trace.after.ndim)
        for name in sorted(names, key=order.index)
        for module, output in [trace.outputs[name]]
    ]
    if len(writers) == 1:
        (only,) = writers
        return Writers(only, None, scale) if _mixes(trace) else Writers(None, only, scale)
    return Writers(writers[0], writers[1], scale)


def _mixes(trace: BlockTrace) -> bool:
    """True where what a block adds to the last token depends on the first."""
    other = trace.before.clone()
    other[:, 0] = other[:, 1]
    return not trace.replay(other)[:, -1].equal(trace.replay(trace.before)[:, -1])


def _disjoint(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """One name or two, neither inside the other."""
    for name in names:
        yield [name]
    for one, other in combinations(names, 2):
        if not one.startswith(f"{other}.") and not other.startswith(f"{one}."):
            yield [one, other]
