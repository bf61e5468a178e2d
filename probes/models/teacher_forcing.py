"""How likely a model finds given texts, with one of its blocks steered.

1. A prompt's tokens are read once, and their keys and values kept; each of its texts goes on from a copy of them.
2. A hook on one block rewrites the states that leave it, as the engine does when it steers: after the block, before any
   further norm. Without an edit there is no hook.
3. An edit that leaves a prompt's own rows alone goes on from the clean keys and values, which is the same and costs
   less.
4. Logits are computed where a scored token is to come, and nowhere else: in a small model, the head is the largest
   matrix.
"""

import copy
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from probes.errors import ModelError
from probes.models import Progress, no_progress
from probes.models.activations import TransformersSource
from probes.steering.edit import Edit, rewriting

LOGITS: Final = 1 << 26
"""Of one forward pass at most: 256 MiB in float32, beside as much for their logarithm."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Texts that the model is made to say after the same tokens."""

    ids: Sequence[int]
    """What they have in common; may be empty."""
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
    source: TransformersSource,
    prompts: Sequence[Prompt],
    edits: Sequence[Edit | None],
    progress: Progress = no_progress,
) -> NDArray[np.float64]:
    """The mean log-probability of the scored tokens of each text, in nats a token, by teacher forcing.

    Args:
        source: The model.
        prompts: With as many texts each.
        edits: One at a time; ``None`` leaves the model as it is.
        progress: Told how many prompts are done.

    Returns:
        Shape ``(edits, prompts, texts)``.

    Raises:
        ModelError: A probability is not finite, or the model has no head.
    """
    scored = np.empty((len(edits), len(prompts), len(prompts[0].texts)))
    # What a prompt costs, as a sequence of so many tokens, since these are what is batched.
    costs = [range(len(prompt.ids) + sum(map(len, prompt.texts))) for prompt in prompts]
    vocabulary = int(source.model.config.get_text_config().vocab_size)
    done = 0
    for batch in source._batches(costs, min(source._batch_tokens, LOGITS // vocabulary)):
        for row, values in enumerate(_batch(source, [prompts[index] for index in batch], edits)):
            scored[row, batch] = values
        done += len(batch)
        progress("steering", done, len(prompts))
    if not np.isfinite(scored).all():
        raise ModelError(
            f"Log-probabilities of {source.model.name_or_path} in {source.model.dtype} are not finite.",
            "Check its weights, and steer less.",
        )
    return scored


def _batch(
    source: TransformersSource, prompts: Sequence[Prompt], edits: Sequence[Edit | None]
) -> Iterator[NDArray[np.float64]]:
    """For each edit, shape ``(prompts, texts)``."""
    torch = source._torch
    before, before_mask = source._pad([prompt.ids for prompt in prompts], left=True)
    owners = [row for row, prompt in enumerate(prompts) for _ in prompt.texts]
    texts = [text for prompt in prompts for text in prompt.texts]
    # The last token of a text is not read: nothing that follows it is scored.
    inputs, mask = source._pad([text[:-1] for text in texts], left=False)
    targets, _ = source._pad([text[1:] for text in texts], left=False)
    skipped = torch.tensor([prompts[owner].skipped - 1 for owner in owners], device=mask.device)
    wanted = mask.bool() & (torch.arange(mask.shape[1], device=mask.device) >= skipped[:, None])
    positions = (before_mask.cumsum(1) - 1).clamp(min=0)
    later = before_mask.sum(1)[owners, None] + torch.arange(mask.shape[1], device=mask.device)

    def read(edit: Edit | None) -> Any:
        """Keys and values of the prompts, ``None`` where all are empty."""
        if not before.shape[1]:
            return None
        nowhere = torch.zeros_like(before_mask, dtype=torch.bool)
        with _edited(source, edit, _pushed(prompts, positions)), _head_at(source, nowhere), torch.inference_mode():
            return source.model(
                input_ids=before, attention_mask=before_mask, position_ids=positions, use_cache=True
            ).past_key_values

    clean: Any = None
    for edit in edits:
        if edit and (edit.everywhere or any(prompt.pushed.start < len(prompt.ids) for prompt in prompts)):
            cache = read(edit)
        else:
            clean = read(None) if clean is None else clean
            cache = copy.deepcopy(clean)
        if cache is not None:
            cache.batch_select_indices(torch.tensor(owners, device=mask.device))
        pushed = _pushed([prompts[owner] for owner in owners], later)
        with _edited(source, edit, pushed), _head_at(source, wanted), torch.inference_mode():
            logits = source.model(
                input_ids=inputs,
                attention_mask=torch.cat([before_mask[owners], mask], dim=1),
                position_ids=later,
                past_key_values=cache,
                use_cache=cache is not None,
            ).logits
            lost = torch.nn.functional.cross_entropy(logits.float(), targets[wanted], reduction="none")
        total = torch.zeros(wanted.shape, device=lost.device).masked_scatter(wanted, -lost).sum(1)
        yield (total / wanted.sum(1)).double().cpu().numpy().reshape(len(prompts), -1)


def _pushed(prompts: Sequence[Prompt], positions: Any) -> Any:
    """Which rows are pushed, by their positions, both of shape ``(rows, tokens)``; padding is nobody's matter."""
    start, stop = positions.new_tensor([[prompt.pushed.start, prompt.pushed.stop] for prompt in prompts]).T[..., None]
    return (positions >= start) & (positions < stop)


@contextmanager
def _edited(source: TransformersSource, edit: Edit | None, pushed: Any) -> Generator[None]:
    """Rewrite what leaves the edit's block."""
    if edit is None:
        yield
        return
    with rewriting(source.blocks[edit.layer], lambda states: edit(states, pushed)):
        yield


@contextmanager
def _head_at(source: TransformersSource, wanted: Any) -> Generator[None]:
    """Have logits computed of the wanted rows only, shape ``(wanted, vocabulary)``."""
    head = source.model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(source.model).__name__} has no head to read logits from.", "Fit a language model.")
    handle = head.register_forward_pre_hook(lambda _module, arguments: (arguments[0][wanted], *arguments[1:]))
    try:
        yield
    finally:
        handle.remove()
