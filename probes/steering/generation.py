"""Steered generation: always, or from the token on at which a probe fires.

Greedy, and with the semantics of the engine:

1. Row p is the state after reading token p, and yields the logits of token p + 1. The rows that may be steered are
   those from the prompt's last on; a prompt's other rows are never touched, and so are read once for all arms.
2. A trigger reads a probe's score of every row, prompt and answer, before that row is steered, and keeps its running
   verdict by :class:`probes.scoring.aggregate.Aggregates`. Once it fires, at row p, everything from p on is steered at
   layers behind the probe's, and from p + 1 on at the probe's own layer and before, whose row p has passed. It never
   lets go.
3. The last token of an answer is never read, so that it cannot fire.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from probes.bundle import Bundle, Probe
from probes.errors import BundleError, SteeringError
from probes.models import Progress, no_progress
from probes.models.activations import TransformersSource
from probes.models.batches import Batch
from probes.models.hooked import Pass
from probes.models.hooks import Rewrite
from probes.models.sites import Site
from probes.scoring.aggregate import Aggregates
from probes.scoring.roles import Role, RoleReader
from probes.steering.edit import Edit

NEVER: Final = 1 << 30
"""A position that no text has."""
TOKENS: Final = 8192
"""Of a batch's prompts, padded. A decode step costs little more for many rows than for one."""
PADDED: Final = 2.0
"""The longest prompt of a batch has at most so many times the tokens of its shortest."""


@dataclass(frozen=True, slots=True, eq=False)
class Trigger:
    """A probe whose firing sets steering off."""

    probe: Probe
    weight: NDArray[np.floating]
    """Shape ``(hidden,)``."""
    bias: float

    @classmethod
    def of(cls, bundle: Bundle, name: str) -> "Trigger":
        """A linear probe of a bundle.

        Raises:
            BundleError: It has none of that name.
        """
        for column, probe in enumerate(bundle.probes):
            if probe.name == name:
                return cls(probe, bundle.weight[column], float(bundle.bias[column]))
        known = ", ".join(probe.name for probe in bundle.probes) or "none"
        raise BundleError(f"Bundle {bundle.path} has no linear probe '{name}'.", f"It has: {known}.")

    def scores(self, states: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logits of states, shape ``(…, hidden)`` to ``(…)``."""
        return np.asarray(states, np.float64) @ np.asarray(self.weight, np.float64) + self.bias

    def aggregates(self, rows: int) -> Aggregates:
        """Running verdicts of so many requests."""
        made = Aggregates([self.probe.aggregate], np.array([self.probe.threshold]), max(rows, 1))
        for row in range(rows):
            made.reset(row)
        return made

    def reads(self, roles: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The mask of tokens that it reads, by role, the same shape."""
        return np.isin(roles, [role for role in Role if self.probe.reads(role)])


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One way to answer."""

    edits: Sequence[Edit] = ()
    """The edits; none if empty."""
    trigger: Trigger | None = None
    """The trigger that must fire first; ``None`` to steer every row that may be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer."""

    token_ids: list[int]
    """Without the token that ends it; may be empty."""
    steered: int
    """Rows that were steered before a token was chosen from them, the one that ended it included."""
    fired_at: int | None
    """Position of the token at which the trigger fired, ``None`` where it did not, or there is none."""


def generate(
    source: TransformersSource,
    prompts: Sequence[Sequence[int]],
    arms: Sequence[Arm],
    max_tokens: int,
    progress: Progress = no_progress,
) -> list[list[Answer]]:
    """Greedy answers to the same prompts, arm by arm.

    Args:
        source: The model.
        prompts: Tokens, up to where the answer begins; one at least each.
        arms: Ways to answer. Batches are the same for all of them, so that they differ by steering alone.
        max_tokens: Of each answer.
        progress: Told how many answers are done.

    Returns:
        For each arm, answers in the order of the prompts.

    Raises:
        SteeringError: A prompt is empty, or the steered model's logits are not finite.
    """
    if not all(prompts):
        raise SteeringError("A prompt has no tokens.", "Leave it out.")
    answers: list[list[Answer | None]] = [[None] * len(prompts) for _ in arms]
    done, total = 0, len(prompts) * len(arms)
    for batch in _batches(prompts):
        reading = _Batch(source, [prompts[index] for index in batch], arms)
        for number, run in enumerate(reading.runs):
            for index, answer in zip(batch, reading.answers(run, max_tokens), strict=True):
                answers[number][index] = answer
            done += len(batch)
            progress("generating answers", done, total)
    return [[answer for answer in said if answer is not None] for said in answers]


def _batches(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices, the longest first, of prompts that are about as long."""
    batch: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda index: -len(prompts[index])):
        if batch:
            longest = len(prompts[batch[0]])
            if longest * (len(batch) + 1) > TOKENS or longest > PADDED * len(prompts[index]):
                yield batch
                batch = []
        batch.append(index)
    if batch:
        yield batch


class _Run:
    """A batch under way in one arm. Arrays are ``(rows,)``.

    Args:
        arm: How it is answered.
        first: Position of the prompt's last token, the first row that may be steered.
    """

    def __init__(self, arm: Arm, first: NDArray[np.int64]) -> None:
        self.arm, self._first = arm, first
        self._start = first.copy() if arm.trigger is None else np.full(len(first), NEVER)
        self._aggregates = arm.trigger.aggregates(len(first)) if arm.trigger else None
        self.fired = np.full(len(first), -1)
        self.steered = np.zeros(len(first), bool)
        """True where the last row of the forward pass under way is."""

    @property
    def layers(self) -> set[int]:
        """Those that it needs a hook on."""
        return {edit.layer for edit in self.arm.edits} | ({self.arm.trigger.probe.layer} if self.arm.trigger else set())

    def rewrite(self, layer: int, states: Any, positions: NDArray[np.int64], reads: NDArray[np.bool_]) -> Any:
        """Rewrite a layer's states.

        Args:
            layer: Whose they are.
            states: A tensor of shape ``(rows, tokens, hidden)``.
            positions: Below 0 of padding, shape ``(rows, tokens)``.
            reads: Which tokens the trigger reads, the same shape.
        """
        # Before this layer's probe is heard: what it decides holds behind it, and from the next row on.
        chosen = positions >= self._start[:, None]
        if self.arm.trigger is not None and self.arm.trigger.probe.layer == layer:
            self._read(states, positions, reads)
        edits = [edit for edit in self.arm.edits if edit.layer == layer]
        if edits and chosen.any():
            rows = states.new_tensor(chosen, dtype=bool)
            for edit in edits:
                states = edit(states, rows)
            self.steered |= chosen[:, -1]
        return states

    def _read(self, states: Any, positions: NDArray[np.int64], reads: NDArray[np.bool_]) -> None:
        """Fold the probe's scores into the running verdicts."""
        assert self.arm.trigger is not None and self._aggregates is not None
        scores = self.arm.trigger.scores(states.float().cpu().numpy())
        reads = reads & np.isfinite(scores)
        for row in np.flatnonzero(reads.any(axis=1) & (self.fired < 0)).tolist():
            of = reads[row]
            every = np.ones((int(of.sum()), 1), bool)
            self._aggregates.update(row, scores[row, of][:, None], positions[row, of], every)
            if (fired := int(self._aggregates.fired_at[row, 0])) >= 0:
                self.fired[row] = fired
                self._start[row] = max(fired, int(self._first[row]))


class _Batch:
    """Prompts that are answered together; all but their last tokens are read here, once for all arms."""

    def __init__(self, source: TransformersSource, prompts: Sequence[Sequence[int]], arms: Sequence[Arm]) -> None:
        self._model = source.hooked
        self._first = np.array([len(prompt) - 1 for prompt in prompts])
        self.runs = [_Run(arm, self._first) for arm in arms]
        self._last = self._model.pad([prompt[-1:] for prompt in prompts])
        read = self._model.pad([prompt[:-1] for prompt in prompts], left=True)
        self._read_mask = read.mask
        reader = RoleReader(source.markers)
        roles = [reader.prompt(prompt) for prompt in prompts]
        self._last_roles = np.array([of[-1] for of in roles])[:, None]
        self._cache: Any = None
        if width := read.token_ids.shape[1]:
            before = np.full((len(prompts), width), Role.TEMPLATE, np.uint8)
            for row, of in enumerate(roles):
                before[row, width - len(of) + 1 :] = of[:-1]
            self._cache = self._forward(self.runs, read, before, None, logits=False).cache

    def answers(self, run: _Run, max_tokens: int) -> list[Answer]:
        """Generate until all have ended, or have as many tokens."""
        import torch

        rows = len(self._first)
        ends = self._model.model.generation_config.eos_token_id
        ends = {int(token) for token in (ends if isinstance(ends, list) else [ends]) if token is not None}
        said: list[list[int]] = [[] for _ in range(rows)]
        steered, alive = np.zeros(rows, np.int64), np.ones(rows, bool)
        cache, before, ids, roles = copy.deepcopy(self._cache), self._read_mask, self._last.token_ids, self._last_roles
        with self._model.plain_attention():
            for _ in range(max_tokens):
                batch = Batch(ids, torch.ones_like(ids)).following(before, before.sum(1, keepdim=True))
                # What comes after an answer's end is nobody's: it is neither read nor counted.
                passed = self._forward([run], batch, np.where(alive[:, None], roles, Role.TEMPLATE), cache)
                cache, before, logits = passed.cache, batch.mask, passed.logits[:, -1]
                if not torch.isfinite(logits).all():
                    raise SteeringError("The steered model's logits are not finite.", "Steer less.")
                steered += run.steered & alive
                ids = logits.argmax(-1, keepdim=True)
                for row in np.flatnonzero(alive).tolist():
                    if (token := int(ids[row, 0])) in ends:
                        alive[row] = False
                    else:
                        said[row].append(token)
                if not alive.any():
                    break
                roles = np.full((rows, 1), Role.ASSISTANT, np.uint8)
        fired = [position if position >= 0 else None for position in run.fired.tolist()]
        return [Answer(said[row], int(steered[row]), fired[row]) for row in range(rows)]

    def _forward(
        self, runs: Sequence[_Run], batch: Batch, roles: NDArray[np.uint8], cache: Any, *, logits: bool = True
    ) -> Pass:
        """One forward pass, in which each of the runs reads and steers."""
        present = batch.mask[:, -batch.token_ids.shape[1] :].cpu().numpy().astype(bool)
        positions = np.where(present, batch.positions.cpu().numpy(), -1)
        rewrites: list[tuple[Site, Rewrite]] = []
        for run in runs:
            run.steered[:] = False
            reads = present & run.arm.trigger.reads(roles) if run.arm.trigger else present
            rewrites += [
                (Site("resid_post", layer), partial(run.rewrite, layer, positions=positions, reads=reads))
                for layer in run.layers
            ]
        return self._model.run(batch, rewrites=rewrites, logits=logits, cache=cache, use_cache=True)
