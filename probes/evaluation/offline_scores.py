"""Offline scoring: what the monitor would have said of requests that are in a file.

1. A conversation is encoded by the chat template as vLLM's server does it (:mod:`probes.models.rendering`), up to where
   the answer begins unless its last message is the assistant's; a prompt is tokenised as it is.
2. Of a text longer than the model's context, the first tokens that fit are read. The model is causal, so their scores
   are exactly those of the whole text, and a position means the same. Keeping the last ones instead would cut off the
   headers that tell whose words they are. Truncated requests are marked: the rest of them was not looked at.
3. A token's score is weight · state + bias in float32, or what the reader of a worker probe gives it; its role comes
   from the bundle's markers, and the verdict from :class:`probes.scoring.aggregate.Aggregates`: what the engine and the
   monitor do, with the same code where it is the same.

Requests are read in chunks, so that states of only so many are held at once.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from probes.bundle import Bundle, Probe
from probes.data.requests import Request, RequestError, Skipped, encode_request, rendered_with
from probes.errors import BundleError
from probes.models import Progress, identify, no_progress, resolve_model
from probes.models.activations import ActivationSource, TransformersSource
from probes.models.typed_markers import TypedMarkers
from probes.scoring.aggregate import Aggregates
from probes.scoring.roles import CONTENT, Markers, Role, RoleReader

BATCH_TOKENS: Final = 2048
"""Padded tokens of one forward pass, unless told otherwise."""
_CHUNK_REQUESTS: Final = 64
"""Requests read at once; enough to batch those of like length."""
_CHUNK_BYTES: Final = 256 << 20
"""States held at once; a single request may have more."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A request as the model reads it."""

    token_ids: NDArray[np.int32]
    """Shape ``(tokens,)``."""
    truncated: bool
    """True where it was longer than the model's context."""
    typed: bool = False
    """True where markers of the chat template were typed into its messages."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Verdicts of requests, in their order; arrays are ``(requests, all probes)``, linear ones first."""

    peak: NDArray[np.float64]
    """The largest aggregate, in logits; −inf where fewer tokens were read than the probe needs for a verdict."""
    tokens: NDArray[np.int64]
    """Tokens that the probe read; 0 where the request has none of its roles."""
    fired_at: NDArray[np.int64]
    """Position of the token at which it fired, −1 where it did not."""
    unscored: NDArray[np.int64]
    """Tokens of the probe's roles whose score is no finite number, and that it did not read."""

    def __len__(self) -> int:
        return len(self.peak)


@dataclass(frozen=True, slots=True)
class TokenScores:
    """One request, token by token."""

    roles: NDArray[np.uint8]
    """Shape ``(tokens,)``."""
    scores: NDArray[np.float32]
    """In logits, shape ``(tokens, all probes)``."""
    read: NDArray[np.bool_]
    """The mask of tokens whose score counts for each probe's verdict, shape ``(tokens, all probes)``."""
    unscored: NDArray[np.bool_]
    """The mask of those that would count if their score were a finite number, the same shape."""


class Verdict(msgspec.Struct, frozen=True):
    """One probe's verdict on one request."""

    score: float | None
    """Its largest aggregate, in logits; ``None`` where it has no verdict."""
    threshold: float
    """The aggregate at which it fires."""
    fired: bool
    token: int | None
    """Position, from 0, of the token at which it fired."""
    tokens: int
    """Tokens that it read."""
    scored: bool
    """True where it has a verdict: false without tokens of its roles, and with fewer than it needs. The two are
    told apart by ``tokens``; neither means that the request is harmless."""
    unscored: int | msgspec.UnsetType = msgspec.UNSET
    """Tokens of its roles whose score is no finite number, and that it did not read; left out where there are none."""
    probability: float | msgspec.UnsetType | None = msgspec.UNSET
    """That the request shows the concept, for the mixture that the bundle names; ``None`` without a verdict, or where
    none was fitted. Left out unless asked for."""


class ScoredRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of output."""

    id: str | int
    """As in the input."""
    verdicts: dict[str, Verdict]
    """By name of the probe."""
    truncated: bool = False
    """True where the request was longer than the model's context; only its beginning was read."""
    unread: dict[str, int] = {}
    """Tokens of content that no probe of the bundle reads, by role; left out where there are none."""


class Scorer:
    """Scores requests by a bundle.

    Args:
        bundle: Its probes, thresholds, roles and markers.
        source: Reads the model that the bundle was fitted to.
        tokenizer: Of that model, as transformers loads it.
        context: Tokens that the model can read at once; ``None`` for any number.
        markers: Of the model's chat template; ``None``: the bundle's, which engines read by.

    Raises:
        BundleError: The bundle has no probes.
    """

    def __init__(
        self,
        bundle: Bundle,
        source: ActivationSource,
        tokenizer: Any,
        context: int | None = None,
        markers: Markers | None = None,
    ) -> None:
        if not bundle.all_probes:
            raise BundleError(f"Bundle {bundle.path} has no probes.", "Name one that was fitted.")
        self.bundle = bundle
        self._source, self._tokenizer, self._context = source, tokenizer, context
        self._layers = sorted({probe.layer for probe in bundle.all_probes})
        self._columns = [bundle.probe_columns(layer) for layer in self._layers]
        self.markers = bundle.manifest.markers if markers is None else markers
        """Tell roles."""
        self._roles = RoleReader(self.markers)
        self._aggregates = Aggregates(
            [probe.aggregate for probe in bundle.all_probes],
            np.array([probe.threshold for probe in bundle.all_probes]),
            _CHUNK_REQUESTS,
        )

    def encode(self, requests: Sequence[Request]) -> list[Encoded]:
        """Tokens of requests, so that a request which cannot be encoded is found before any is read.

        Raises:
            RequestError: The chat template refuses one; the message names its id.
        """
        return [self._encode(request) for request in requests]

    def readable(self, requests: Sequence[Request], skipped: Skipped) -> list[Request]:
        """Those of some requests that can be encoded.

        Args:
            requests: From a file.
            skipped: Told of the others.

        Raises:
            RequestError: There are none.
        """
        kept: list[Request] = []
        for request in requests:
            try:
                self._encode(request)
            except RequestError as error:
                skipped.add(error)
            else:
                kept.append(request)
        if not kept:
            raise RequestError(f"No request can be read. The first: {skipped.reasons[0]}", "Correct the file.")
        return kept

    def score(self, encoded: Sequence[Encoded], progress: Progress = no_progress) -> Iterator[Scores]:
        """Verdicts, chunk by chunk, in the order of the requests.

        Args:
            encoded: From :meth:`encode`.
            progress: Told how many tokens are read.

        Raises:
            ModelError: The model cannot be read.
        """
        done, total = 0, sum(len(request.token_ids) for request in encoded)

        def report(what: str, read: int, tokens: int) -> None:
            progress("scoring requests (tokens)", done + read, total)

        for chunk in self._chunks(encoded):
            yield self._score(chunk, report)
            done += sum(len(request.token_ids) for request in chunk)

    def token_scores(self, states: NDArray[np.floating], reads: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The score of every token of a request by every probe.

        Args:
            states: Of the probes' layers, ascending, shape ``(layers, tokens, hidden)``.
            reads: Which of :attr:`Bundle.all_probes` reads which token, shape ``(tokens, all probes)``.

        Returns:
            Logits, shape ``(tokens, all probes)``. A linear probe scores all tokens. What a worker probe makes of one
            hangs on those that it read before; where it does not read, its score is NaN.
        """
        linear = len(self.bundle.probes)
        scores = np.full(reads.shape, np.nan, np.float32)
        for state, columns in zip(states, self._columns, strict=True):
            scores[:, columns] = np.asarray(state, np.float32) @ self.bundle.weight[columns].T
        scores[:, :linear] += self.bundle.bias
        for column, worker in enumerate(self.bundle.worker_probes, linear):
            read = np.flatnonzero(reads[:, column])
            state = np.asarray(states[self._layers.index(worker.probe.layer), read], np.float32)
            scores[read, column] = worker.reader.scores(state, worker.reader.begin())
        return scores

    def read(self, chunk: Sequence[Encoded], progress: Progress = no_progress) -> Iterator[TokenScores]:
        """Every token of requests, one request after the other.

        Args:
            chunk: Of at least one token each; their states are held together.
            progress: Told how many tokens are read.

        Raises:
            ModelError: The model cannot be read.
        """
        readings = self._source.read([request.token_ids.tolist() for request in chunk], self._layers, progress)
        for request, reading in zip(chunk, readings, strict=True):
            roles = self._roles.prompt(reading.token_ids, typed=request.typed)
            reads = self.bundle.all_read_mask[roles]
            scores = self.token_scores(reading.states, reads)
            finite = np.isfinite(scores)
            yield TokenScores(roles, scores, reads & finite, reads & ~finite)

    def decode(self, token: int) -> str:
        """A token's text."""
        return self._tokenizer.decode([token])

    def describe(
        self, request: Request, encoded: Encoded, scores: Scores, row: int, *, probability: bool = False
    ) -> ScoredRequest:
        """The line of output of one request.

        Args:
            request: What was asked.
            encoded: What was read of it.
            scores: The chunk that it is in.
            row: Its row there.
            probability: Whether to give probabilities, too.
        """
        verdicts: dict[str, Verdict] = {}
        for column, probe in enumerate(self.bundle.all_probes):
            peak, fired_at = float(scores.peak[row, column]), int(scores.fired_at[row, column])
            score = peak if peak > -np.inf else None
            verdicts[probe.name] = Verdict(
                score=score,
                threshold=probe.threshold,
                fired=fired_at >= 0,
                token=fired_at if fired_at >= 0 else None,
                tokens=int(scores.tokens[row, column]),
                scored=score is not None,
                unscored=int(scores.unscored[row, column]) or msgspec.UNSET,
                probability=_probability(probe, score) if probability else msgspec.UNSET,
            )
        return ScoredRequest(request.id, verdicts, encoded.truncated, self.unread(encoded))

    def unread(self, encoded: Encoded) -> dict[str, int]:
        """Tokens of a request's content that no probe of the bundle reads, by role."""
        roles = self._roles.prompt(encoded.token_ids, typed=encoded.typed)
        counts = np.bincount(roles, minlength=len(Role))
        return {
            role.name.lower(): int(counts[role])
            for role in CONTENT
            if counts[role] and not self.bundle.all_read_mask[role].any()
        }

    @cached_property
    def _typed(self) -> TypedMarkers:
        return TypedMarkers(self.markers, self._tokenizer)

    def _encode(self, request: Request) -> Encoded:
        ids = encode_request(self._tokenizer, request)
        kept = np.asarray(ids[: self._context], np.int32)
        # The markers of a prompt are those of whoever wrote it, as they are in a server.
        typed = bool(request.messages) and self._typed.found(rendered_with(self._tokenizer, request))
        return Encoded(kept, truncated=len(kept) < len(ids), typed=typed)

    def _chunks(self, encoded: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
        token_bytes = 4 * len(self._layers) * self.bundle.manifest.model.hidden
        begin, held = 0, 0
        for at, request in enumerate(encoded):
            held += len(request.token_ids) * token_bytes
            if at > begin and (at - begin == _CHUNK_REQUESTS or held > _CHUNK_BYTES):
                yield encoded[begin:at]
                begin, held = at, len(request.token_ids) * token_bytes
        if begin < len(encoded):
            yield encoded[begin:]

    def _score(self, chunk: Sequence[Encoded], progress: Progress) -> Scores:
        aggregates, rows = self._aggregates, slice(0, len(chunk))
        for row in range(len(chunk)):
            aggregates.reset(row)
        # A tokenizer may leave nothing of a text of white space.
        read = [row for row, request in enumerate(chunk) if len(request.token_ids)]
        unscored = np.zeros((len(chunk), len(self.bundle.all_probes)), np.int64)
        for row, found in zip(read, self.read([chunk[row] for row in read], progress), strict=True):
            aggregates.update(row, found.scores, np.arange(len(found.scores)), found.read)
            unscored[row] = found.unscored.sum(axis=0)
        return Scores(
            peak=aggregates.peak[rows].copy(),
            tokens=aggregates.count[rows].copy(),
            fired_at=aggregates.fired_at[rows].copy(),
            unscored=unscored,
        )


def _probability(probe: Probe, score: float | None) -> float | None:
    if probe.probability is None or score is None:
        return None
    # By way of tanh, which does not overflow.
    return 0.5 * (1.0 + math.tanh(0.5 * (probe.probability.scale * score + probe.probability.offset)))


def open_scorer(
    bundle: Bundle,
    model: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = no_progress,
    *,
    find_markers: bool = False,
) -> Scorer:
    """A scorer that reads the bundle's model with transformers.

    Args:
        bundle: Of the model.
        model: A Hugging Face id, a local directory, or ``demo``; ``None`` for the name it was fitted under.
        batch_tokens: Padded tokens of one forward pass.
        progress: Told about slow work.
        find_markers: Tell roles by the markers that are found in the chat template now, not by the bundle's.

    Raises:
        ModelError: The model cannot be found or read.
        BundleError: The bundle was fitted to another model.
    """
    name = model or bundle.manifest.model.name
    path: Path = resolve_model(name, progress)
    bundle.require_model(identify(path, name))
    source = TransformersSource(path, batch_tokens=batch_tokens)
    text = source.model.config.get_text_config()
    context: int | None = getattr(text, "max_position_embeddings", None)
    return Scorer(bundle, source, source.tokenizer, context, source.markers if find_markers else None)


def score_requests(scorer: Scorer, requests: Sequence[Request], progress: Progress = no_progress) -> Scores:
    """Verdicts of all requests at once, in their order.

    Args:
        scorer: By what, and with which model.
        requests: One at least.
        progress: Told how many tokens are read.

    Raises:
        RequestError: The chat template refuses a conversation.
        ModelError: The model cannot be read.
    """
    chunks = list(scorer.score(scorer.encode(requests), progress))
    return Scores(*(np.concatenate([getattr(chunk, field.name) for chunk in chunks]) for field in fields(Scores)))
