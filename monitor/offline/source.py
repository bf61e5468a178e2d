"""Activations read through the engine that serves: a :class:`probes.models.activations.Reader` over a tapped vLLM.

What a probe is fitted on is then what it will read: the same kernels, the same precision, the same rows. And it is
faster than transformers: tokens are packed without padding, and answers are batched continuously.

1. A bundle without probes and vectors is written to a temporary directory: the engine taps nothing for it but the
   layers that it is told to stream.
2. The engine runs in a process of its own, without prefix cache: a token that is found there is not computed, and has
   no state. Every conversation is a request for one token, which is thrown away.
3. Nothing in an engine waits for a reader. So conversations are handed over in batches of no more rows than the rings
   hold, each when the one before it has been read: no reader is overtaken. What is lost in spite of that, since a
   machine is short of cores and frames are dropped, is read again, and is an error when it is lost again and again.

Hooks that change what a model computes are not to be had of an engine: the causal check stays with transformers.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import numpy as np

from monitor import __version__
from monitor.engine.vllm.versions import require_version
from monitor.errors import EngineError
from monitor.offline.engine_process import Arm
from monitor.offline.inbox import Expected, StateInbox
from probes.bundle import save_bundle
from probes.errors import ModelError, reason
from probes.models import Progress, identify, no_progress
from probes.models.activations import Reading
from probes.models.chat import Conversation, encode
from probes.models.markers import find_markers
from probes.scoring.roles import RoleReader

CONTEXT: Final = 4096
"""Tokens of a conversation and its answer at most: several times what is fitted on, and a cache that fits anywhere."""
STEP_TOKENS: Final = 2048
"""Rows of a step at most: enough to keep a processor's caches, or a GPU, busy."""
SEQUENCES: Final = 128
"""Requests of a step at most; short conversations fill a step nevertheless."""
ATTEMPTS: Final = 3
"""Times that a conversation is read at most, if rows of it are lost."""
_STEPS: Final = 2
"""Of the largest steps, what the rings hold, and what is handed over at once."""
_POLL_SECONDS: Final = 0.05
_SETTLE_SECONDS: Final = 5.0
"""Seconds that frames may still take once the engine has answered."""
_WAKE_SECONDS: Final = 0.2
_START_SECONDS: Final = 30.0
"""Seconds until an engine that is ready streams, at most: it says HELLO every second."""


class VllmSource:
    """Reads a model with a vLLM of its own; a context manager, which starts it.

    Args:
        path: The model's directory.
        layers: That can be read, and no others.
        dtype: ``bfloat16``, as it will be served, or ``float32``, the reference.
        step_tokens: Rows of a step at most.
        context: Tokens of a conversation and its answer at most, if the model can read as many.
        allow_untested: Take a vLLM that the tap was not tested on.
        engine: Further arguments of ``vllm.LLM``.

    Raises:
        PrerequisiteError: vLLM is missing, or was not tested.
        ModelError: The tokenizer cannot be loaded, or the model has no such layer.
    """

    def __init__(
        self,
        path: Path,
        layers: Sequence[int],
        dtype: str = "bfloat16",
        *,
        step_tokens: int = STEP_TOKENS,
        context: int = CONTEXT,
        allow_untested: bool = False,
        engine: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        require_version(allow_untested=allow_untested)
        try:
            import transformers

            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
            config: Any = transformers.AutoConfig.from_pretrained(path)
            self._stops = _stops(transformers, path, config)
        except ImportError as error:
            raise ModelError(f"Reading a model needs {error.name}.", "Run: pip install 'plumbob[fit]'") from error
        except Exception as error:
            # Configurations, tokenizers and remote code raise whatever they like.
            raise ModelError(
                f"transformers cannot load {path}: {reason(error)}.", "Name a directory saved by transformers."
            ) from error
        self._identity = identify(path, path.name)
        self.layers, self.hidden = self._identity.layers, self._identity.hidden
        self._streamed = sorted(set(layers))
        if not self._streamed or not 0 <= self._streamed[0] <= self._streamed[-1] < self.layers:
            raise ModelError(
                f"Model {path} has layers 0 to {self.layers - 1}; asked for: "
                f"{', '.join(map(str, self._streamed)) or 'none'}.",
                "Name some of them.",
            )
        self.markers = find_markers(self.tokenizer)
        self._roles = RoleReader(self.markers)
        self._path = path
        self._context = min(context, getattr(config.get_text_config(), "max_position_embeddings", context))
        self._rows = max(_STEPS * step_tokens, self._context)
        self._settings: dict[str, Any] = {
            "model": str(path),
            "dtype": dtype,
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "max_model_len": self._context,
            "max_num_batched_tokens": step_tokens,
            "max_num_seqs": min(SEQUENCES, step_tokens),
            **engine,
        }
        self._tap = {"allow_untested": allow_untested, "stream": self._streamed, "stream_rows": self._rows}
        self._asked = 0
        self._running = ExitStack()

    def __enter__(self) -> Self:
        """Start the engine, and wait until it streams.

        Raises:
            EngineError: It does not start, or does not stream.
        """
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plumbob-reader-")))
            bundle = save_bundle(
                folder / "bundle",
                version=__version__,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                model=self._identity,
                markers=self.markers,
                probes=[],
                vectors=[],
            )
            self._inbox = stack.enter_context(StateInbox(f"ipc://{folder}/engine.sock", self._streamed, self.hidden))
            tap = {"plumbob": {**self._tap, "bundle": str(bundle.path), "endpoint": self._inbox.endpoint}}
            arm = Arm("reading", folder / "engine.log", {**self._settings, "additional_config": tap})
            self._arm = stack.enter_context(arm)
            self._begin()
            self._running = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def encode(self, conversation: Conversation, *, respond: bool = False) -> list[int]:
        """A conversation's tokens; with ``respond``, up to where the answer begins."""
        return encode(self.tokenizer, conversation, respond=respond)

    def read(
        self, conversations: Sequence[Sequence[int]], layers: Sequence[int], progress: Progress = no_progress
    ) -> list[Reading]:
        """See :class:`probes.models.activations.ActivationSource`.

        Raises:
            ModelError: A layer that is not streamed, a conversation that is empty or too long for the engine, or states
                that are not finite.
            EngineError: The engine ended, or rows of a conversation were lost each time that it was read.
        """
        if missing := sorted(set(layers) - set(self._streamed)):
            raise ModelError(
                f"Layer {missing[0]} is not streamed; these are: {', '.join(map(str, self._streamed))}.",
                "Name it when the reader is opened.",
            )
        self._require_room(conversations, 1)
        at = [self._streamed.index(layer) for layer in layers]
        readings: dict[int, Reading] = {}
        total, done = sum(map(len, conversations)), 0
        for _ in range(ATTEMPTS):
            left = [index for index in range(len(conversations)) if index not in readings]
            for batch in self._batches(left, conversations):
                read = self._read([conversations[index] for index in batch], _SETTLE_SECONDS)
                for index, expected in zip(batch, read, strict=True):
                    if not expected.complete:
                        continue
                    token_ids = np.asarray(conversations[index], np.int64)
                    if not np.isfinite(expected.states).all():
                        raise ModelError(
                            f"Activations of {self._path} in {self._settings['dtype']} are not finite.",
                            "Check its weights.",
                        )
                    readings[index] = Reading(token_ids, self._roles.prompt(token_ids), expected.states[at])
                    done += len(token_ids)
                progress("reading activations", done, total)
        if len(readings) < len(conversations):
            raise EngineError(
                f"Of {len(conversations) - len(readings)} conversations, rows were lost each of {ATTEMPTS} times that "
                "they were read.",
                "Leave the engine a core more, or read with transformers.",
            )
        return [readings[index] for index in range(len(conversations))]

    def respond(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, progress: Progress = no_progress
    ) -> list[list[int]]:
        """The engine's own greedy answers.

        Args:
            prompts: Tokens, up to where the answer begins.
            max_tokens: Of each answer.
            progress: Told how many prompts are done.

        Returns:
            Each prompt followed by its answer, without the token that ends it.

        Raises:
            ModelError: A prompt that is empty, or too long for the engine to answer.
            EngineError: The engine ended.
        """
        self._require_room(prompts, max_tokens)
        answered: list[list[int]] = []
        for begin in range(0, len(prompts), SEQUENCES):
            batch = prompts[begin : begin + SEQUENCES]
            self._inbox.expect([], [])
            for prompt, answer in zip(batch, self._ask(batch, max_tokens, self._stops), strict=True):
                end = next((at for at, token in enumerate(answer) if token in self._stops), len(answer))
                answered.append([*prompt, *answer[:end]])
            progress("answering benign prompts", len(answered), len(prompts))
        return answered

    def _begin(self) -> None:
        """Have the engine stream. An order rides with a step, so that it takes requests until one is applied."""
        wake = self.tokenizer("Good morning.")["input_ids"]
        deadline = time.monotonic() + _START_SECONDS
        while not self._read([wake], _WAKE_SECONDS)[0].complete:
            if time.monotonic() > deadline:
                silent = f"streams nothing of layers {self._streamed}" if self._inbox.engine else "is not tapped"
                raise EngineError(
                    f"The engine that was to read {self._path} {silent}.",
                    "Install plumbob where vLLM is installed, so that vLLM finds its plugin.",
                )
            self._inbox.order_streams()

    def _read(self, batch: Sequence[Sequence[int]], settle_seconds: float) -> list[Expected]:
        """Have conversations computed, and collect their rows."""
        # The engine numbers its requests, and has no other client.
        names = [str(self._asked + at) for at in range(len(batch))]
        expected = self._inbox.expect(names, [len(ids) for ids in batch])
        self._ask(batch, 1)
        deadline = time.monotonic() + settle_seconds
        while not all(one.complete for one in expected) and (left := deadline - time.monotonic()) > 0:
            self._inbox.take(min(left, _POLL_SECONDS))
        return expected

    def _ask(self, prompts: Sequence[Sequence[int]], tokens: int, stops: Sequence[int] = ()) -> list[list[int]]:
        """Have the engine answer, and read its frames meanwhile."""
        self._asked += len(prompts)
        self._arm.ask(prompts, tokens, stops=stops)
        while not self._arm.answered():
            self._inbox.take(_POLL_SECONDS)
        return self._arm.answer().tokens

    def _batches(self, indices: Sequence[int], conversations: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """As many at once as the rings have room for."""
        batch, rows = list[int](), 0
        for index in indices:
            if batch and rows + len(conversations[index]) > self._rows:
                yield batch
                batch, rows = [], 0
            batch.append(index)
            rows += len(conversations[index])
        if batch:
            yield batch

    def _require_room(self, conversations: Sequence[Sequence[int]], more: int) -> None:
        """Refuse what the engine would refuse, with an error that ends it."""
        for index, ids in enumerate(conversations):
            if not ids:
                raise ModelError(f"Conversation {index + 1} of {len(conversations)} has no tokens.", "Leave it out.")
            if len(ids) + more > self._context:
                raise ModelError(
                    f"Conversation {index + 1} of {len(conversations)} has {len(ids)} tokens; the engine reads "
                    f"{self._context - more} at most.",
                    "Cut it, or read with transformers.",
                )


def _stops(transformers: Any, path: Path, config: Any) -> list[int]:
    """The tokens that end an answer, as transformers has them."""
    try:
        generation: Any = transformers.GenerationConfig.from_pretrained(path)
    except OSError:
        generation = transformers.GenerationConfig.from_model_config(config)
    stops = generation.eos_token_id
    return [] if stops is None else list(stops) if isinstance(stops, list) else [stops]
