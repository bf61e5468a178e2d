"""Activations on disk: the residual stream of many conversations at several layers, in shards, resumable.

A shard holds the rows of some consecutive conversations, and is named by the hash of what was asked for (their tokens,
the layers, the model). A reading that was interrupted finds the shards that are whole and goes on after them. States
are kept in bfloat16, the precision in which models are read and served, as 16-bit words, since numpy has no such type.
Rows of roles that no probe reads are not kept: a template around a short message is most of its tokens.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from probes.models import Progress
from probes.models.activations import ActivationSource, Reading
from probes.scoring.roles import KEPT, Role

SHARD_TOKENS: Final = 16_384
"""Tokens of a shard: some 20 seconds of reading are lost at most when it is interrupted."""

ANSWERED_AT_ONCE: Final = 64
"""Prompts answered before the answers are written: a decode step costs little more for many than for one."""


@dataclass(frozen=True)
class Rows:
    """The rows of many conversations at one layer, one conversation after the other."""

    states: NDArray[np.float32]
    """Shape ``(rows, hidden)``."""
    roles: NDArray[np.uint8]
    """Shape ``(rows,)``."""
    last: NDArray[np.bool_]
    """True where a row belongs to the last message of its conversation, shape ``(rows,)``."""
    offsets: NDArray[np.int64]
    """Conversation ``i`` has the rows ``offsets[i]`` to ``offsets[i + 1]``, shape ``(conversations + 1,)``."""

    def of(self, chosen: NDArray[np.bool_]) -> "Rows":
        """Those of the chosen conversations, shape ``(conversations,)``."""
        counts = np.diff(self.offsets)
        kept = np.repeat(chosen, counts)
        return Rows(
            self.states[kept], self.roles[kept], self.last[kept], np.concatenate([[0], np.cumsum(counts[chosen])])
        )

    def join(self, other: "Rows") -> "Rows":
        """These conversations, then those."""
        return Rows(
            np.concatenate([self.states, other.states]),
            np.concatenate([self.roles, other.roles]),
            np.concatenate([self.last, other.last]),
            np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]]),
        )


class Answerer(Protocol):
    """Whatever lets the model answer."""

    def respond(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Each prompt followed by its answer, without the token that ends it."""
        ...


class Store:
    """Conversations that were read once.

    Args:
        directory: Of the shards; made with the first of them.
        source: Reads what is not there yet.
        model: What identifies the model.
        layers: Which layers are kept, ascending.
    """

    def __init__(self, directory: Path, source: ActivationSource, model: str, layers: Sequence[int]) -> None:
        self._directory, self._source = directory, source
        self.layers = list(layers)
        self._model = model

    def read(self, conversations: Sequence[Sequence[int]], what: str, progress: Progress) -> "Stored":
        """Read conversations, those excepted that were read before.

        Args:
            conversations: Token ids.
            what: Named in the progress.
            progress: Told how many tokens are done.

        Raises:
            ModelError: The model overflows, or its weights are not finite.
            OSError: The disk is full, or refuses.
        """
        total, done = sum(map(len, conversations)), 0
        shards: list[Path] = []
        for chunk in _chunks(conversations):
            path = self._directory / f"{self._key(chunk)}.safetensors"
            if not _is_whole(path):
                _save(path, self._source.read(chunk, self.layers))
            shards.append(path)
            done += sum(map(len, chunk))
            progress(what, done, total)
        return Stored(shards, self.layers)

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        answerer: Answerer,
        progress: Progress,
    ) -> list[list[int]]:
        """Prompts with the model's own greedy answers, those excepted that were answered before.

        Args:
            prompts: Token ids, up to where the answer begins.
            max_tokens: Of each answer.
            answerer: Writes them.
            progress: Told how many are done.
        """
        answered: list[list[int]] = [[] for _ in prompts]
        # Of like length together: a batch is as slow as its longest.
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        for start in range(0, len(order), ANSWERED_AT_ONCE):
            part = order[start : start + ANSWERED_AT_ONCE]
            asked = [prompts[index] for index in part]
            path = self._directory / f"{self._key(asked)}-{max_tokens}.json"
            try:
                found = msgspec.json.decode(path.read_bytes(), type=list[list[int]])
            except (OSError, msgspec.MsgspecError):
                found = answerer.respond(asked, max_tokens)
                _replace(path, msgspec.json.encode(found))
            for index, ids in zip(part, found, strict=True):
                answered[index] = ids
            progress("answering benign requests", start + len(part), len(prompts))
        return answered

    def _key(self, chunk: Sequence[Sequence[int]]) -> str:
        digest = hashlib.sha256(f"{self._model} {self.layers} {[int(role) for role in KEPT]}".encode())
        for ids in chunk:
            digest.update(np.asarray([len(ids), *ids], np.int64).tobytes())
        return digest.hexdigest()[:32]


class Stored:
    """Stored rows, by layer.

    Args:
        shards: In the order of the conversations.
        layers: Of the shards' states.
    """

    def __init__(self, shards: Sequence[Path], layers: Sequence[int]) -> None:
        self._shards, self._layers = list(shards), list(layers)

    def rows(self, layer: int) -> Rows:
        """The rows of all conversations at one of the layers."""
        at = self._layers.index(layer)
        states: list[NDArray[np.float32]] = []
        parts: dict[str, list[NDArray[np.integer]]] = {"roles": [], "last": [], "counts": []}
        for shard in self._shards:
            with safe_open(shard, framework="numpy") as tensors:
                states.append(_from_bfloat16(tensors.get_slice("states")[at]))
                for name, arrays in parts.items():
                    arrays.append(tensors.get_tensor(name))
        return Rows(
            np.concatenate(states),
            np.concatenate(parts["roles"]).astype(np.uint8),
            np.concatenate(parts["last"]).astype(bool),
            np.concatenate([[0], np.cumsum(np.concatenate(parts["counts"]))]),
        )


def last_message(roles: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The mask of tokens of the last message, shape ``(tokens,)``."""
    content = np.flatnonzero(roles != Role.TEMPLATE)
    mask = np.zeros(len(roles), bool)
    if len(content):
        end = content[-1]
        other = np.flatnonzero(roles[:end] != roles[end])
        mask[(other[-1] + 1 if len(other) else 0) : end + 1] = True
    return mask


def _chunks(conversations: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    chunk: list[Sequence[int]] = []
    tokens = 0
    for ids in conversations:
        chunk.append(ids)
        tokens += len(ids)
        if tokens >= SHARD_TOKENS:
            yield chunk
            chunk, tokens = [], 0
    if chunk:
        yield chunk


def _save(path: Path, readings: Sequence[Reading]) -> None:
    kept = [np.isin(reading.roles, KEPT) for reading in readings]
    tensors = {
        "states": np.concatenate(
            [_to_bfloat16(reading.states[:, mask]) for reading, mask in zip(readings, kept, strict=True)], axis=1
        ),
        "roles": np.concatenate([reading.roles[mask] for reading, mask in zip(readings, kept, strict=True)]),
        "last": np.concatenate(
            [last_message(reading.roles)[mask] for reading, mask in zip(readings, kept, strict=True)]
        ).astype(np.uint8),
        "counts": np.array([int(mask.sum()) for mask in kept], np.int64),
    }
    _replace(path, save(tensors))


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        temporary = Path(file.name)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        # That of a full disk does not name the file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy"):
            return True
    except (OSError, SafetensorError):
        return False


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of float32, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _from_bfloat16(words: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (words.astype(np.uint32) << 16).view(np.float32)
