"""The network of :mod:`probes.scoring.multimax` in torch: batches of whole conversations, and their loss.

What the two losses are is said where they are used, in :mod:`probes.fit.multimax_training`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from probes.fit.linear import Spans, Training
from probes.scoring.multimax import MAX_HEADS, MAX_WINDOW, MultiMax

Loss = Literal["attention", "token"]

BATCH: Final = 64
"""Conversations of one step."""
_NOWHERE: Final = -1e9
"""The logit of a place that is not there; finite, so that a window of such places has no NaN in its gradient."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters of a network.

    Raises:
        ValueError: A size is out of its range.
    """

    width: int = 64
    """Units of each of the two layers."""
    heads: int = 4
    window: int = 10
    """Tokens that a score averages over, when it is run."""
    loss: Loss = "attention"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width < 1 or not 1 <= self.heads <= MAX_HEADS or not 1 <= self.window <= MAX_WINDOW:
            raise ValueError(
                f"a network of width {self.width} with {self.heads} heads and a window of {self.window} tokens: "
                f"it takes a width of 1 or more, 1 to {MAX_HEADS} heads and 1 to {MAX_WINDOW} tokens"
            )


@dataclass(frozen=True, slots=True)
class Conversation:
    """One that has a verdict: its rows, and which of them are labelled, shape ``(rows,)``."""

    rows: slice
    labelled: NDArray[np.bool_]


class Network(nn.Module):
    """The network on standardised states."""

    def __init__(self, hidden: int, recipe: Recipe) -> None:
        super().__init__()
        # Of its own, so that neither the caller's random numbers change nor what was drawn before matters.
        generator = torch.Generator().manual_seed(recipe.seed)

        def drawn(rows: int, columns: int, gain: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=generator) * gain * (2.0 / columns) ** 0.5)

        width, heads = recipe.width, recipe.heads
        self.w1, self.b1 = drawn(width, hidden, 1.0), nn.Parameter(torch.zeros(width))
        self.w2, self.b2 = drawn(width, width, 1.0), nn.Parameter(torch.zeros(width))
        # Small, so that heads begin by looking everywhere, and scores near what the bias says.
        self.value, self.attention = drawn(heads, width, 0.3), drawn(heads, width, 0.1)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Values and attention logits, ``(rows, heads)`` each, of states ``(rows, hidden)``."""
        inner = torch.relu(states @ self.w1.T + self.b1)
        outer = torch.relu(inner @ self.w2.T + self.b2)
        return outer @ self.value.T, outer @ self.attention.T

    def folded(self, mean: NDArray[np.float64], scale: NDArray[np.float64], window: int) -> MultiMax:
        """The same on states as they are read."""
        arrays = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in self.named_parameters()}
        arrays["w1"] = arrays["w1"] / scale
        arrays["b1"] = arrays["b1"] - arrays["w1"] @ mean
        return MultiMax(**{name: array.astype(np.float32) for name, array in arrays.items()}, window=window)


@dataclass(frozen=True, slots=True)
class Batch:
    """Conversations in rows, their tokens in columns."""

    states: Tensor
    """Standardised, of all rows of the conversations, one after the other, ``(rows, hidden)``."""
    places: Tensor
    """Index of each in the padded, flattened batch, ``(rows,)``."""
    labelled: Tensor
    """The mask of places that count, ``(conversations, tokens)``."""
    labels: Tensor
    """``(conversations,)``, 0 or 1."""
    weights: Tensor
    """``(conversations,)``."""


class Parts:
    """Makes batches of conversations, and knows their loss."""

    def __init__(
        self,
        spans: Spans,
        training: Training,
        conversations: Mapping[int, Conversation],
        mean: NDArray[np.float64],
        scale: NDArray[np.float64],
        recipe: Recipe,
    ) -> None:
        self.training = training
        self._spans, self._conversations, self._recipe = spans, conversations, recipe
        self._mean, self._scale = mean.astype(np.float32), scale.astype(np.float32)

    def batches(
        self, indices: Sequence[int], weights: NDArray[np.float64], random: np.random.Generator | None
    ) -> Iterator[Batch]:
        """All of these conversations, shuffled if there is something to shuffle by, in batches of like lengths."""
        order = np.arange(len(indices)) if random is None else random.permutation(len(indices))
        lengths = np.array([len(self._conversations[index].labelled) for index in indices])
        # Sorted inside of stretches only: batches of the very same conversations every time would be learnt as such.
        stretches = [order[at : at + 8 * BATCH] for at in range(0, len(order), 8 * BATCH)]
        by_length = [stretch[np.argsort(lengths[stretch], kind="stable")] for stretch in stretches]
        parts = [part[at : at + BATCH] for part in by_length for at in range(0, len(part), BATCH)]
        for at in range(len(parts)) if random is None else random.permutation(len(parts)):
            yield self._batch([indices[place] for place in parts[at]], weights[parts[at]])

    def _batch(self, indices: Sequence[int], weights: NDArray[np.float64]) -> Batch:
        mine = [self._conversations[index] for index in indices]
        width = max(len(part.labelled) for part in mine)
        labelled = np.zeros((len(mine), width), bool)
        for row, part in enumerate(mine):
            labelled[row, : len(part.labelled)] = part.labelled
        places = np.concatenate([np.arange(len(part.labelled)) + row * width for row, part in enumerate(mine)])
        if self._recipe.loss == "token":
            # There is no verdict before.
            labelled[:, : self._spans.aggregate.min_tokens - 1] = False
        states = np.concatenate([self._spans.states[part.rows] for part in mine])
        return Batch(
            torch.from_numpy((states - self._mean) / self._scale),
            torch.from_numpy(places),
            torch.from_numpy(labelled),
            torch.from_numpy(self.training.labels[indices].astype(np.float32)),
            torch.from_numpy(weights.astype(np.float32)),
        )

    def loss(self, network: Network, batch: Batch) -> Tensor:
        """The weighted mean of the conversations' losses."""
        values, logits = network(batch.states)
        heads, size = values.shape[1], batch.labelled.numel()
        shape = (*batch.labelled.shape, heads)
        values = torch.zeros(size, heads).index_copy(0, batch.places, values).view(shape)
        logits = torch.full((size, heads), _NOWHERE).index_copy(0, batch.places, logits).view(shape)
        each = self._of_tokens if self._recipe.loss == "token" else self._of_attention
        return (each(values, logits, network.bias, batch) * batch.weights).mean()

    def _of_attention(self, values: Tensor, logits: Tensor, bias: Tensor, batch: Batch) -> Tensor:
        """Shape ``(conversations,)``."""
        weights = torch.softmax(logits.masked_fill(~batch.labelled[..., None], _NOWHERE), dim=1)
        scores = (weights * values).sum(dim=(1, 2)) + bias
        return functional.binary_cross_entropy_with_logits(scores, batch.labels, reduction="none")

    def _of_tokens(self, values: Tensor, logits: Tensor, bias: Tensor, batch: Batch) -> Tensor:
        """Shape ``(conversations,)``."""
        before = (0, 0, self._recipe.window - 1, 0)
        values = functional.pad(values, before).unfold(1, self._recipe.window, 1)
        logits = functional.pad(logits, before, value=_NOWHERE).unfold(1, self._recipe.window, 1)
        scores = (torch.softmax(logits, dim=-1) * values).sum(dim=(-2, -1)) + bias
        labels = batch.labels[:, None].expand_as(scores)
        losses = functional.binary_cross_entropy_with_logits(scores, labels, reduction="none")
        return (torch.softmax(scores.masked_fill(~batch.labelled, _NOWHERE), dim=1) * losses).sum(dim=1)
