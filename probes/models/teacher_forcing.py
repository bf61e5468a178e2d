"""Teacher forcing: the log-likelihood of given texts, with one of the model's blocks steered.

1. A prompt's tokens are read once, and their keys and values kept; each of its texts goes on from a copy of them.
2. The states that leave one block are edited, as the engine does when it steers: after the block, before any further
   norm. Without an edit there is no hook.
3. An edit that leaves a prompt's own rows alone goes on from the clean keys and values, which is the same and costs
   less.
4. Logits are computed where a scored token is to come, and nowhere else: in a small model, the head is the largest
   matrix.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from probes.errors import ModelError
from probes.models import Progress, no_progress
from probes.models.batches import batches
from probes.models.hooked import HookedModel
from probes.models.hooks import Rewrite
from probes.models.sites import Site

LOGITS: Final = 1 << 26
"""Of one forward pass at most: 256 MiB in float32, beside as much for their logarithm."""


class Edit(Protocol):
    """A change of the states that leave one block."""

    @property
    def layer(self) -> int:
        """The block, counted from 0."""
        ...

    @property
    def everywhere(self) -> bool:
        """True where every row is changed, whichever are chosen."""
        ...

    def __call__(self, states: Any, chosen: Any, /) -> Any:
        """States ``(texts, tokens, hidden)`` after the change of the chosen rows ``(texts, tokens)``."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """Texts that the model is made to say after the same tokens."""

    ids: Sequence[int]
    """Their common prefix; may be empty."""
    texts: Sequence[Sequence[int]]
    """Each follows ``ids``; as many for every prompt of a run."""
    skipped: int
    """Tokens at the beginning of each text that are given, not scored: 1 at least."""
    pushed: range
    """Positions, in prompt and text together, of the rows to which an edit adds."""

    def __post_init__(self) -> None:
        if not self.texts or self.skipped < 1 or min(map(len, self.texts)) <= self.skipped:
            raise ValueError("A prompt has texts with a token that is given and one that is scored.")


def log_likelihoods(
    model: HookedModel,
    prompts: Sequence[Prompt],
    edits: Sequence[Edit | None],
    progress: Progress = no_progress,
) -> NDArray[np.float64]:
    """The mean log-probability of the scored tokens of each text, in nats a token, by teacher forcing.

    Args:
        model: Its ``batch_tokens`` say how much is read at once.
        prompts: With as many texts each.
        edits: One at a time; ``None`` leaves the model as it is.
        progress: Told how many prompts are done.

    Returns:
        Shape ``(edits, prompts, texts)``.

    Raises:
        ModelError: A probability is not finite, or the model has no head.
    """
    scored = np.empty((len(edits), len(prompts), len(prompts[0].texts)))
    costs = [len(prompt.ids) + sum(map(len, prompt.texts)) for prompt in prompts]
    done = 0
    for batch in batches(costs, min(model.batch_tokens, LOGITS // model.vocabulary)):
        for row, values in enumerate(_batch(model, [prompts[index] for index in batch], edits)):
            scored[row, batch] = values
        done += len(batch)
        progress("steering", done, len(prompts))
    if not np.isfinite(scored).all():
        raise ModelError(
            f"Log-probabilities of {model.name} in {model.model.dtype} are not finite.",
            "Check its weights, and steer less.",
        )
    return scored


def _batch(
    model: HookedModel, prompts: Sequence[Prompt], edits: Sequence[Edit | None]
) -> Iterator[NDArray[np.float64]]:
    """For each edit, shape ``(prompts, texts)``."""
    import torch

    before = model.pad([prompt.ids for prompt in prompts], left=True)
    owners = [row for row, prompt in enumerate(prompts) for _ in prompt.texts]
    texts = [text for prompt in prompts for text in prompt.texts]
    # The last token of a text is not read: nothing that follows it is scored.
    inputs = model.pad([text[:-1] for text in texts])
    targets = model.pad([text[1:] for text in texts]).token_ids
    columns = torch.arange(inputs.mask.shape[1], device=inputs.mask.device)
    skipped = torch.tensor([prompts[owner].skipped - 1 for owner in owners], device=columns.device)
    wanted = inputs.mask.bool() & (columns >= skipped[:, None])
    later = before.mask.sum(1)[owners, None] + columns
    inputs = inputs.following(before.mask[owners], later)
    pushed_before = _pushed(prompts, before.positions)
    pushed_later = _pushed([prompts[owner] for owner in owners], later)

    def read(edit: Edit | None) -> Any:
        """Keys and values of the prompts, ``None`` where all are empty."""
        if not before.mask.shape[1]:
            return None
        return model.run(before, rewrites=_rewrites(edit, pushed_before), logits=False, use_cache=True).cache

    clean: Any = None
    for edit in edits:
        if edit and (edit.everywhere or any(prompt.pushed.start < len(prompt.ids) for prompt in prompts)):
            cache = read(edit)
        else:
            clean = read(None) if clean is None else clean
            cache = copy.deepcopy(clean)
        if cache is not None:
            cache.batch_select_indices(torch.tensor(owners, device=columns.device))
        logits = model.run(inputs, rewrites=_rewrites(edit, pushed_later), logits=wanted, cache=cache).logits
        lost = torch.nn.functional.cross_entropy(logits.float(), targets[wanted], reduction="none")
        total = torch.zeros(wanted.shape, device=lost.device).masked_scatter(wanted, -lost).sum(1)
        yield (total / wanted.sum(1)).double().cpu().numpy().reshape(len(prompts), -1)


def _pushed(prompts: Sequence[Prompt], positions: Any) -> Any:
    """The mask of rows that are pushed, by their positions, both of shape ``(rows, tokens)``; any for padding."""
    start, stop = positions.new_tensor([[prompt.pushed.start, prompt.pushed.stop] for prompt in prompts]).T[..., None]
    return (positions >= start) & (positions < stop)


def _rewrites(edit: Edit | None, pushed: Any) -> list[tuple[Site, Rewrite]]:
    return [] if edit is None else [(Site("resid_post", edit.layer), lambda states: edit(states, pushed))]
