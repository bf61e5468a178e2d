"""What ``plumbob score`` says of a conversation is what the monitor said of it while it was served.

A conversation of three turns through a real server, with its earlier turns in the prefix cache, against
:class:`probes.evaluation.offline_scores.Scorer` on the same messages with the answer behind them.

The last token that was sampled is never read by an engine: no token follows it for which it would have to be. Where it
ended the answer by itself, it is the end of the message, which no probe reads, and the two say the same of the whole
conversation. Where the limit of tokens ended the answer, it is a word of the answer: offline reads one token more, and
is compared after the tokens before that one.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from monitor.cli.listener import Listener
from probes.data.requests import Request
from probes.evaluation.offline_scores import Encoded, Scorer, Scores
from probes.models.chat import Message
from probes.scoring.aggregate import Aggregate
from probes.scoring.roles import Role, RoleReader
from tests.harness.engines import TYPICAL, random_bundle
from tests.harness.server import running_server

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

TURNS = (
    ("What is the capital of France? Answer with one word.", 64),
    ("Tell me a long story about it, with a dog and a river.", 40),
    ("Now thank me in one short sentence.", 64),
)
"""What the user says, and how many tokens the answer may have: the first ends by itself, the second does not."""

# The server computes in bfloat16, Scorer here in float32. A token's score differs by TYPICAL times the norm of its
# state, as a root mean square (tests/engine/conftest.py). An aggregate is a weighted mean of scores: where they err
# independently, it errs by the root of the sum of the squares of what each contributes, its standard error. A peak is
# the largest of some hundred aggregates, of which the worst is within five standard errors.
ERRORS = 5
"""Standard errors by which a peak may differ."""


@dataclass(frozen=True)
class Turn:
    """One request: what was said, what the monitor said of it, and what offline scoring says."""

    tokens: list[int]
    """Prompt and answer, as the engine had them."""
    ended: bool
    """By itself, not by the limit of tokens."""
    live: object
    """The monitor's ``RequestFinished``."""
    encoded: Encoded
    """The messages and the answer, as ``plumbob score`` reads them."""


@pytest.fixture(scope="module")
def bundle(model_path, source, tmp_path_factory):
    return random_bundle(tmp_path_factory.mktemp("bundle") / "random", model_path, source.markers, threshold=2.0)


@pytest.fixture(scope="module")
def scorer(bundle, source):
    return Scorer(bundle, source, source.tokenizer)


@pytest.fixture(scope="module")
def turns(bundle, scorer, tmp_path_factory):
    """A served conversation."""
    folder = tmp_path_factory.mktemp("offline")
    messages: list[Message] = []
    held: list[Turn] = []
    with running_server(folder, bundle.path) as server, Listener(server.grpc_address) as listener:
        for text, limit in TURNS:
            messages.append(Message("user", text))
            answer = server.client.chat.completions.create(
                model="demo",
                messages=[{"role": message.role, "content": message.content} for message in messages],
                max_tokens=limit,
                temperature=0.0,
                extra_body={"return_token_ids": True},
            )
            (choice,) = answer.choices
            messages.append(Message("assistant", choice.message.content))
            live = listener.finished(answer.id, 20)
            assert live is not None
            tokens = [*answer.model_extra["prompt_token_ids"], *choice.model_extra["token_ids"]]
            (encoded,) = scorer.encode([Request("turn", tuple(messages))])
            held.append(Turn(tokens, choice.finish_reason == "stop", live, encoded))
    return held


def score(scorer, encoded) -> Scores:
    (scores,) = scorer.score([encoded])
    return scores


def before_the_last(turn: Turn) -> Encoded:
    """What of the conversation the engine read."""
    return replace(turn.encoded, token_ids=turn.encoded.token_ids[: len(turn.tokens) - 1])


def asked(turn: Turn) -> Encoded:
    """The conversation without the answer."""
    return replace(turn.encoded, token_ids=turn.encoded.token_ids[: turn.live.request.prompt_tokens])


def standard_errors(source, bundle, encoded) -> np.ndarray:
    """For each probe, that of the aggregate which errs most."""
    (reading,) = source.read([encoded.token_ids.tolist()], bundle.layers)
    read = np.isin(reading.roles, [Role.USER, Role.ASSISTANT])
    typical = dict(zip(bundle.layers, TYPICAL * np.linalg.norm(reading.states[:, read], axis=-1), strict=True))
    return np.array([_standard_error(typical[probe.layer], probe.aggregate) for probe in bundle.probes])


def _standard_error(typical: np.ndarray, aggregate: Aggregate) -> float:
    """The largest of a moving average, of errors of its values as large as given, shape ``(tokens,)``."""
    squares = weight = largest = 0.0
    for count, error in enumerate(typical.tolist(), start=1):
        squares, weight = aggregate.decay**2 * squares + error**2, aggregate.decay * weight + 1.0
        if count >= aggregate.min_tokens:
            largest = max(largest, squares**0.5 / weight)
    return largest


def test_one_answer_ended_by_itself_and_one_did_not(turns):
    """Otherwise the tests below would show less than they say."""
    assert [turn.ended for turn in turns[:2]] == [True, False]


def test_offline_reads_the_tokens_that_were_served(turns):
    """Written out and encoded again, an answer is the tokens that it was sampled as."""
    for turn in turns:
        assert turn.encoded.token_ids[: len(turn.tokens)].tolist() == turn.tokens


def test_every_token_but_the_last_was_read_once(turns, scorer, bundle):
    for turn in turns:
        assert (turn.live.tokens, turn.live.unscored, turn.live.steered) == (len(turn.tokens) - 1, 0, 0)
        live = [reading.tokens for reading in turn.live.readings]
        assert live == score(scorer, before_the_last(turn)).tokens[0].tolist()
        # The whole conversation has one token more of the assistant, where the limit ended the answer.
        whole = score(scorer, turn.encoded).tokens[0]
        assert (whole - live).tolist() == [0 if turn.ended else 1] * len(bundle.probes)
        roles = RoleReader(bundle.manifest.markers).prompt(turn.encoded.token_ids)
        last = Role.TEMPLATE if turn.ended else Role.ASSISTANT
        assert roles[len(turn.tokens) - 1] == last


def test_peaks_are_those_of_offline_scoring(turns, scorer, bundle, source):
    differences, without, swapped = [], [], []
    wanted = [score(scorer, turn.encoded if turn.ended else before_the_last(turn)) for turn in turns]
    for number, turn in enumerate(turns):
        assert [reading.probe for reading in turn.live.readings] == [probe.name for probe in bundle.probes]
        live = np.array([reading.peak for reading in turn.live.readings])
        error = standard_errors(source, bundle, turn.encoded)
        differences.append(np.abs(live - wanted[number].peak[0]) / error)
        without.append(np.max(np.abs(live - score(scorer, asked(turn)).peak[0]) / error))
        swapped.append(np.max(np.abs(live - np.roll(wanted[number].peak[0], 1)) / error))
    print(f"peaks differ by {np.max(differences):.2f} standard errors at most; {ERRORS} are allowed")
    assert np.max(differences) <= ERRORS
    # The same bound is far from met by the peaks of the probe before, nor by those of the first questions alone; the
    # last answer raises none.
    assert min(swapped) > 3 * ERRORS
    assert min(without[:2]) > ERRORS


def test_a_probe_fires_live_where_it_fires_offline(turns, scorer, bundle, source):
    fired = []
    for turn in turns:
        scores = score(scorer, turn.encoded if turn.ended else before_the_last(turn))
        allowed = ERRORS * standard_errors(source, bundle, turn.encoded)
        for column, (reading, probe) in enumerate(zip(turn.live.readings, bundle.probes, strict=True)):
            peak = scores.peak[0, column]
            if abs(peak - probe.threshold) > allowed[column]:
                assert reading.fired == (scores.fired_at[0, column] >= 0) == (peak >= probe.threshold)
                fired.append(reading.fired)
    assert {*fired} == {True, False}
