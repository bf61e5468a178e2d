r"""Training of :mod:`probes.scoring.multimax`, on the rows of many conversations at one layer. Needs torch.

1. Every fifth group is held out, of those with positives and of the others; no group is on both sides.
2. States are standardised, and what does that is folded into the first layer at the end.
3. The network is trained on whole conversations, labelled as for linear probes: of a benign request all rows are
   ordinary, of any other conversation the last message is labelled. Two losses are offered:

   * ``attention``: each head's softmax runs over all labelled rows, and the binary cross-entropy of the one sum is
     taken. Windows and the maximum come when it is run (Kramár et al., arXiv 2601.11516);
   * ``token``: the scores are those of windows, as they are when it is run, and a row's cross-entropy counts by
     the softmax of its score: what is highest in a conversation must be right (Constitutional Classifiers++,
     arXiv 2601.04603, with temperature 1).

4. AdamW stops when the loss on held-out groups has not fallen for some epochs, and the best epoch is kept. Both sides
   count equally, and inside a side conversations count by their weight in the training.

The same data and seed give the same probe on one machine.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from probes.errors import ConceptError
from probes.fit.linear import Spans, Training
from probes.fit.multimax_network import Conversation, Network, Parts, Recipe
from probes.scoring.multimax import MultiMax

__all__ = ["PLAIN", "Recipe", "fit_multimax"]

HELD_OUT: Final = 0.2
"""Share of the groups that say when to stop."""
EPOCHS: Final = 60
"""At most."""
PATIENCE: Final = 6
"""Epochs without a lower loss on held-out groups, after which training stops."""
LEARNING_RATE: Final = 3e-4
"""Tried on a model of 270M: at ten times as much the first epoch was the best one."""
WEIGHT_DECAY: Final = 1.0
"""Strong, since a probe must hold beyond the data it saw; biases have none."""
PLAIN: Final = Recipe()
"""The default hyperparameters."""


def fit_multimax(spans: Spans, training: Training, groups: NDArray[np.str_], recipe: Recipe = PLAIN) -> MultiMax:
    """Fit one probe.

    Args:
        spans: Rows of the conversations.
        training: Which of them, and what they are.
        groups: What must not be parted by the split that says when to stop, one a conversation of the training.
        recipe: Sizes, loss and seed.

    Raises:
        ConceptError: All positives, or all negatives, are too short for a verdict or of one group; or states are not
            finite.
    """
    conversations = _conversations(spans, training)
    kept, held = _split(conversations, training.labels, groups, recipe.seed)
    mean, scale = _standard(spans, conversations, _balanced(kept, training), kept)
    network = Network(spans.states.shape[1], recipe)
    parts = Parts(spans, training, conversations, mean, scale, recipe)
    _train(network, parts, kept, held, recipe.seed)
    return network.folded(mean, scale, recipe.window)


def _conversations(spans: Spans, training: Training) -> dict[int, Conversation]:
    """Those that have a verdict, by index into the training."""
    found: dict[int, Conversation] = {}
    for index, (at, benign) in enumerate(zip(training.chosen.tolist(), training.benign.tolist(), strict=True)):
        rows = slice(int(spans.offsets[at]), int(spans.offsets[at + 1]))
        labelled = np.ones(rows.stop - rows.start, bool) if benign else spans.last[rows]
        if len(labelled) < spans.aggregate.min_tokens or not labelled.any():
            continue
        if not np.isfinite(spans.states[rows]).all():
            raise ConceptError(f"Activations of conversation {at} are not finite.", "Check the model's weights.")
        found[index] = Conversation(rows, labelled)
    for label in (True, False):
        if not any(training.labels[index] == label for index in found):
            raise ConceptError(
                f"No example that {'shows' if label else 'does not show'} the concept has the "
                f"{spans.aggregate.min_tokens} tokens that a verdict takes.",
                "Write longer messages, or set a lower min_tokens.",
            )
    return found


def _split(
    conversations: Mapping[int, Conversation], labels: NDArray[np.bool_], groups: NDArray[np.str_], seed: int
) -> tuple[list[int], list[int]]:
    """Conversations to train on, and to stop by; either has both labels."""
    if len(groups) != len(labels):
        raise ValueError(f"{len(groups)} groups for {len(labels)} conversations")
    random = np.random.default_rng(seed)
    positive = {str(groups[index]) for index in conversations if labels[index]}
    others = {str(groups[index]) for index in conversations} - positive
    out: set[str] = set()
    for side in (sorted(positive), sorted(others)):
        out |= {side[at] for at in random.permutation(len(side))[: int(np.ceil(HELD_OUT * len(side)))]}
    held = [index for index in conversations if str(groups[index]) in out]
    kept = [index for index in conversations if str(groups[index]) not in out]
    for label in (True, False):
        if not all(any(labels[index] == label for index in part) for part in (kept, held)):
            raise ConceptError(
                f"Examples that {'show' if label else 'do not show'} the concept are of too few groups to hold some "
                "out, by which a network stops.",
                "Add examples of other groups, or fit a linear probe.",
            )
    return kept, held


def _balanced(indices: Sequence[int], training: Training) -> NDArray[np.float64]:
    """The weight of each of these conversations, one on average; both sides count the same, shape ``(indices,)``."""
    weights, labels = training.weights[indices].astype(np.float64), training.labels[indices]
    for side in (labels, ~labels):
        weights[side] *= len(indices) / 2 / weights[side].sum()
    return weights


def _standard(
    spans: Spans, conversations: Mapping[int, Conversation], weights: NDArray[np.float64], indices: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and scale of the labelled rows, ``(hidden,)`` each; a conversation counts as much however long it is."""
    first, second = np.zeros((2, spans.states.shape[1]))
    for index, weight in zip(indices, weights.tolist(), strict=True):
        part = conversations[index]
        states = spans.states[part.rows][part.labelled].astype(np.float64)
        first += weight * states.mean(axis=0)
        second += weight * np.square(states).mean(axis=0)
    mean = first / weights.sum()
    return mean, np.sqrt(np.maximum(second / weights.sum() - np.square(mean), 0.0)) + 1e-6


def _train(network: Network, parts: Parts, kept: Sequence[int], held: Sequence[int], seed: int) -> None:
    """Train until the loss on what is held out falls no more; the network is left as it was at its lowest."""
    training = parts.training
    matrices = [tensor for tensor in network.parameters() if tensor.ndim == 2]
    offsets = [tensor for tensor in network.parameters() if tensor.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": offsets, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
    )
    random, weights = np.random.default_rng(seed), _balanced(kept, training)
    judging = list(parts.batches(held, _balanced(held, training), None))
    lowest, best, since = np.inf, {name: tensor.clone() for name, tensor in network.state_dict().items()}, 0
    for _ in range(EPOCHS):
        for batch in parts.batches(kept, weights, random):
            optimiser.zero_grad()
            parts.loss(network, batch).backward()
            optimiser.step()
        with torch.no_grad():
            shown = sum(float(parts.loss(network, batch)) * len(batch.labels) for batch in judging) / len(held)
        since += 1
        if shown < lowest:
            lowest, since = shown, 0
            best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        elif since > PATIENCE:
            break
    network.load_state_dict(best)
