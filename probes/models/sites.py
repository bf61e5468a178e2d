"""Addresses of what can be read and written inside a decoder, in the field's notation: ``resid_post.12``, ``z.3.1``.

==============  =========================================================  =================================
site            value                                                      shape
==============  =========================================================  =================================
``resid_pre``   residual stream before a block                             ``(texts, tokens, hidden)``
``attn_out``    output of the block's first writer: its attention, or      ``(texts, tokens, hidden)``
                what it has instead
``mlp_out``     output of the block's second writer                        ``(texts, tokens, hidden)``
``resid_post``  residual stream after a block, before any further norm     ``(texts, tokens, hidden)``
``q``           queries, rotated, as attention uses them                   ``(texts, tokens, heads, head)``
``k``, ``v``    keys and values, those of cached tokens first              ``(texts, keys, kv_heads, head)``
``attn_probs``  attention probabilities                                    ``(texts, heads, tokens, keys)``
``z``           values weighted by them, before the output projection      ``(texts, tokens, heads, head)``
==============  =========================================================  =================================

``KIND.LAYER`` is the whole; of the last five, ``KIND.LAYER.HEAD`` is one head, without the axis of heads. Of ``k`` and
``v`` a head is one that several query heads may share.
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from probes.errors import ModelError

Kind = Literal["resid_pre", "attn_out", "mlp_out", "resid_post", "q", "k", "v", "attn_probs", "z"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
WRITERS: Final[tuple[Kind, ...]] = ("attn_out", "mlp_out")
"""Sites at what adds to the residual stream."""
HEADS: Final[tuple[Kind, ...]] = ("q", "k", "v", "attn_probs", "z")
"""Sites that have heads."""


@dataclass(frozen=True, slots=True)
class Site:
    """Address of one value inside a decoder.

    Raises:
        ModelError: A part is out of range whatever the model, or a head is named where there are none.
    """

    kind: Kind
    layer: int
    """The block, counted from 0."""
    head: int | None = None
    """``None`` for all heads, or where there are none."""

    def __post_init__(self) -> None:
        if (
            self.kind not in KINDS
            or self.layer < 0
            or (self.head is not None and (self.head < 0 or self.kind not in HEADS))
        ):
            raise ModelError(f"There is no site '{self}'.", "Write such as: resid_post.12, or: z.3.1")

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.kind, self.layer, self.head) if part is not None)

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read an address such as ``resid_post.12`` or ``z.3.1``.

        Raises:
            ModelError: It is none.
        """
        kind, *numbers = text.split(".")
        if not 1 <= len(numbers) <= 2 or not all(number.isascii() and number.isdigit() for number in numbers):
            raise ModelError(f"There is no site '{text}'.", "Write such as: resid_post.12, or: z.3.1")
        return cls(kind, *map(int, numbers))  # type: ignore[arg-type]

    @property
    def head_axis(self) -> int:
        """The axis of heads in the value of the whole site."""
        return 1 if self.kind == "attn_probs" else 2
