"""A decoder's blocks, found by structure, and which part of what they return is the state.

Layer ``i`` of a bundle is the output of block ``i``: the residual stream after it, before any further norm. The engine
and the transformers reader find blocks with the functions here, so that an index means the same block to both,
whatever its class is called.
"""

import dis
import inspect
import re
from itertools import takewhile
from typing import Any

from probes.errors import ModelError


def find_blocks(model: Any, layers: int) -> list[Any]:
    """The blocks of the language decoder.

    A decoder keeps its blocks in a ``ModuleList`` near its token embedding, and the token embedding is the largest one
    of the model. So of all lists that are long enough, the one with the shortest way to that embedding through the
    tree of modules is taken: vision and audio towers, experts inside a block, and heads lie further away, however many
    entries they have. Blocks may be of several classes, and some may lack attention, as those of hybrids do. Entries
    behind the announced ones, which predict tokens further ahead, are left out.

    Args:
        model: A decoder-only ``nn.Module`` of transformers or vLLM, alone or inside a multimodal wrapper.
        layers: How many blocks its configuration announces.

    Returns:
        The blocks in order, ``layers`` of them.

    Raises:
        ModelError: There is no such list, several are equally near, or its entries are not blocks of their own.
    """
    from torch import nn

    kind = type(model).__name__
    modules: dict[str, Any] = dict(model.named_modules())
    rows = {name: module.num_embeddings for name, module in modules.items() if hasattr(module, "num_embeddings")}
    # A head that is tied to the embedding, or a further embedding of the same tokens, is as large; it may be nearer.
    tokens = [name for name, count in rows.items() if count == max(rows.values())]
    ways = {
        name: min((_way(name, embedding) for embedding in tokens), default=0)
        for name, module in modules.items()
        if isinstance(module, nn.ModuleList) and len(module) >= layers
    }
    nearest = [name for name, way in ways.items() if way == min(ways.values())]
    if len(nearest) != 1:
        raise ModelError(
            f"{kind} has {len(nearest)} lists of {layers} decoder blocks near its token embedding; one is needed.",
            "This model family is not supported.",
        )
    blocks = list(modules[nearest[0]])[:layers]
    if any(isinstance(block, nn.Identity) for block in blocks):
        raise ModelError(f"{kind} has only some of its {layers} decoder blocks here.", "Do not split it by layers.")
    if len({id(block) for block in blocks}) < layers:
        raise ModelError(
            f"{kind} runs some of its {layers} decoder blocks more than once, so that a layer is not one place.",
            "This model family is not supported.",
        )
    return blocks


def adds_residual(block: Any) -> bool:
    """True where the state is the sum of what a block returns as ``(hidden, residual)``, rather than ``hidden`` alone.

    Blocks of vLLM leave their last addition to the next norm, which adds the residual in passing. Some families have
    the same signature, but do all additions themselves and overwrite the residual that they are given: what they
    return second is left over from their inside. So a block leaves an addition to the next one only if it does the
    addition that was left to it, which takes a ``forward`` that reads ``residual`` before writing it.

    Args:
        block: A decoder block of vLLM, an ``nn.Module``.
    """
    for instruction in dis.get_instructions(inspect.unwrap(type(block).forward)):
        # One instruction may access two variables, from Python 3.13 on.
        names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        for access, name in zip(re.findall("LOAD|STORE", instruction.opname), names, strict=False):
            if name == "residual":
                return access == "LOAD"
    return False


def _way(one: str, other: str) -> int:
    """Steps from one module to another through their nearest common ancestor, by their names."""
    first, second = one.split("."), other.split(".")
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    return len(first) + len(second) - 2 * common
