import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.events import Request
from monitor.verdicts import VerdictTable
from monitor.wire.frames import Started
from probes.scoring.aggregate import running_mean
from probes.scoring.roles import Role

HARMFUL, TOXICITY, SYCOPHANCY = range(3)


def started(slot: int, key: str = "a", prompt_tokens: int = 1) -> Started:
    return Started(slot, key, f"user-{key}", prompt_tokens)


def rows_of(slot, positions, role=Role.USER, steered=0):
    return [(slot, position, role, steered) for position in positions]


@pytest.fixture
def table(tiny_bundle):
    return VerdictTable(tiny_bundle())


@pytest.fixture
def apply(table, frame):
    return lambda *args, **options: table.apply(frame(*args, **options), "tiny")


def finish(apply, slot=0):
    (finished,) = apply(9, finished=[slot]).finished
    return finished


def test_a_request_from_start_to_finish(apply):
    first = apply(0, rows_of(0, range(3)), 1.5, started=[started(0, prompt_tokens=3)])
    assert [(fired.probe, fired.position) for fired in first.fired] == [("toxicity", 0)]
    second = apply(1, [(0, 3, Role.ASSISTANT, 0)], 0.25)
    assert not second.fired, "a probe fires once, and sycophancy's threshold was not reached"
    finished = finish(apply)
    assert (finished.tokens, finished.unscored, finished.steered) == (4, 0, 0)
    assert finished.request.request_id == "user-a" and finished.request.model == "tiny"
    by_probe = {reading.probe: reading for reading in finished.readings}
    assert by_probe["harmful_intent"].tokens == 3 and not by_probe["harmful_intent"].fired
    assert by_probe["harmful_intent"].peak == pytest.approx(1.5)
    assert by_probe["toxicity"].tokens == 4 and by_probe["toxicity"].fired_at == 0
    assert by_probe["sycophancy"].tokens == 1 and by_probe["sycophancy"].peak == pytest.approx(0.25)


def test_a_firing_carries_the_aggregate_of_its_own_token(apply):
    scores = np.zeros((4, 3))
    scores[:, HARMFUL] = [0.0, 0.0, 5.0, 9.0]
    (fired,) = apply(0, rows_of(0, range(4)), scores, started=[started(0)]).fired
    means = running_mean(scores[:, HARMFUL], 4.0)
    at = int(np.argmax(means >= 2.0))
    assert at == 3, "the peak of the frame and the firing are told apart below"
    assert (fired.position, fired.aggregate, fired.threshold) == (3, pytest.approx(means[3]), 2.0)
    scores[:, HARMFUL] = [0.0, 0.0, 20.0, 30.0]
    (fired,) = apply(1, rows_of(1, range(4)), scores, started=[started(1, "b")]).fired
    assert (fired.position, fired.aggregate) == (2, pytest.approx(running_mean(scores[:3, HARMFUL], 4.0)[2]))
    assert fired.role == "user"


def test_firings_come_in_the_order_of_rows(apply):
    slots = [4, 1, 1, 3]
    rows = [(slot, position, Role.ASSISTANT, 0) for slot, position in zip(slots, (0, 0, 1, 0), strict=True)]
    fired = apply(0, rows, 10.0, started=[started(slot, f"key-{slot}") for slot in (1, 3, 4)]).fired
    assert [item.request.engine_request_id for item in fired] == ["key-4"] * 2 + ["key-1"] * 2 + ["key-3"] * 2


def test_too_few_tokens_are_no_peak(tiny_bundle, frame):
    table = VerdictTable(tiny_bundle(min_tokens=4))
    table.apply(frame(0, rows_of(0, range(3)), 9.0, started=[started(0)]), "tiny")
    (finished,) = table.apply(frame(1, finished=[0]), "tiny").finished
    assert [(reading.tokens, reading.peak) for reading in finished.readings] == [
        (3, None),
        (3, None),
        (0, None),
    ]


def test_replays_are_read_once(apply):
    apply(0, rows_of(0, range(5)), 0.5, started=[started(0)])
    again = apply(1, rows_of(0, range(3)), 100.0)
    assert again.tally.replayed == 3 and not again.fired
    onwards = apply(2, rows_of(0, [3, 4, 5]), 0.5)
    assert (onwards.tally.replayed, onwards.tally.scored) == (2, 1)
    assert finish(apply).tokens == 6


def test_a_cached_prefix_and_a_lost_frame_are_unscored(apply):
    apply(0, rows_of(0, [16, 17]), 0.0, started=[started(0, prompt_tokens=18)])
    assert apply(2, rows_of(0, [20]), 0.0).tally.unscored == 2
    finished = finish(apply)
    assert (finished.tokens, finished.unscored) == (3, 18)


def test_a_prompt_that_was_never_seen_is_unscored(apply):
    apply(0, started=[started(0, prompt_tokens=100)])
    finished = finish(apply)
    assert (finished.tokens, finished.unscored) == (0, 100 - 0), "not passed off as clean"


def test_steered_rows_are_counted_and_not_read(apply):
    apply(0, rows_of(0, range(2)), 0.0, started=[started(0)])
    steered = apply(1, rows_of(0, [2, 3], steered=1), 100.0)
    assert steered.tally.steered == 2 and not steered.fired
    assert apply(2, rows_of(0, [3]), 100.0).tally.replayed == 1, "steered rows move the high-water mark"
    finished = finish(apply)
    assert (finished.tokens, finished.steered, finished.unscored) == (2, 2, 0)


def test_how_many_tokens_of_a_request_in_flight_were_steered(apply, table):
    first, second = (Request("engine", "tiny", f"user-{key}", key, 1) for key in "ab")
    apply(0, [*rows_of(0, [0]), *rows_of(1, [0])], started=[started(0), started(1, "b")])
    apply(1, [*rows_of(0, [1, 2], steered=1), *rows_of(1, [1])])
    apply(2, rows_of(0, [2, 3], steered=1))
    assert (table.steered(first), table.steered(second)) == (3, 0), "what is computed again counts once"
    assert table.steered(Request("another", "tiny", "user-a", "a", 1)) == 0
    apply(3, rows_of(0, [0], steered=1), finished=[0], started=[started(0, "c")])
    assert table.steered(first) == 0
    assert table.steered(Request("engine", "tiny", "user-c", "c", 1)) == 1


def test_a_request_announced_in_two_slots_is_found_while_one_is_left(apply, table):
    request = Request("engine", "tiny", "user-a", "a", 1)
    apply(0, rows_of(1, [0], steered=1), started=[started(0), started(1)])
    apply(1, finished=[0])
    assert table.steered(request) == 1
    apply(2, finished=[1])
    apply(3, started=[started(0), started(1)])
    apply(4, finished=[1, 0])
    assert table.steered(request) == 0


def test_content_of_a_role_that_no_probe_reads_is_unread_and_not_clean(apply):
    roles = [Role.TEMPLATE, Role.SYSTEM, Role.USER, Role.TOOL, Role.TEXT, Role.TEXT, Role.REASONING, 200]
    rows = [(0, position, role, 0) for position, role in enumerate(roles)]
    seen = apply(0, rows, 0.25, started=[started(0, prompt_tokens=8)])
    counted = {"text": 2, "reasoning": 1, "unknown": 1}
    assert seen.tally.unread == counted and seen.tally.scored == 4
    assert apply(1, rows[2:], 9.0).tally.unread == {}, "what is computed again counts once"
    steered = apply(2, [(0, 8, Role.TEXT, 1)], 9.0)
    assert (steered.tally.unread, steered.tally.steered) == ({}, 1)
    finished = finish(apply)
    assert {unread.role: unread.tokens for unread in finished.unread} == counted
    assert finished.tokens + sum(counted.values()) + finished.steered == len(roles) + 1
    assert [reading.tokens for reading in finished.readings] == [2, 2, 0], "of the user and of the tool"


def test_what_is_unread_is_told_by_request(apply):
    apply(0, rows_of(0, range(3), Role.TEXT), started=[started(0), started(1, "b")])
    apply(1, [*rows_of(0, [3], Role.TEXT), *rows_of(1, range(2), Role.REASONING)])
    many = [started(slot, f"key-{slot}") for slot in range(2, 100)]
    assert not apply(2, [(slot, 0, Role.USER, 0) for slot in range(2, 100)], started=many).tally.unread
    assert [(unread.role, unread.tokens) for unread in finish(apply, 1).unread] == [("reasoning", 2)]
    assert [(unread.role, unread.tokens) for unread in finish(apply, 0).unread] == [("text", 4)]
    apply(3, rows_of(0, [0]), started=[started(0, "c")])
    assert not finish(apply).unread, "the row's next request begins anew"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("positions", [[0], [0, 1]], ids=["decode", "prefill"])
def test_scores_that_are_not_finite_are_not_read(apply, bad, positions):
    scores = np.zeros((len(positions), 3))
    scores[:, TOXICITY] = bad
    scores[:, SYCOPHANCY] = bad  # does not read the user's tokens: not counted
    verdicts = apply(0, rows_of(0, positions), scores, started=[started(0)])
    assert verdicts.tally.invalid == {"toxicity": len(positions)} and not verdicts.fired
    assert (verdicts.tally.scored, verdicts.tally.unscored) == (0, len(positions))
    apply(1, rows_of(0, [len(positions)]), 0.75)
    finished = finish(apply)
    assert (finished.tokens, finished.unscored) == (1, len(positions)), "not passed off as read"
    readings = finished.readings
    assert [reading.unscored for reading in readings] == [len(positions) if at == TOXICITY else 0 for at in range(3)]
    assert readings[TOXICITY].tokens == 1 and readings[TOXICITY].peak == pytest.approx(0.75)
    assert readings[HARMFUL].tokens == len(positions) + 1


def test_one_score_that_is_none_leaves_the_rest_of_its_request_as_it_was(apply):
    """Of two requests in one frame, between tokens that are read, and of a row that another request had before."""
    scores = np.full((6, 3), 0.5)
    scores[1, HARMFUL] = np.nan
    apply(0, [*rows_of(0, range(3)), *rows_of(1, range(3))], scores, started=[started(0), started(1)])
    verdicts = apply(1, finished=[0, 1])
    assert [(one.tokens, one.unscored) for one in verdicts.finished] == [(2, 1), (3, 0)]
    assert [one.readings[HARMFUL].unscored for one in verdicts.finished] == [1, 0]
    assert [one.readings[HARMFUL].tokens for one in verdicts.finished] == [2, 3]
    assert [one.readings[TOXICITY].tokens for one in verdicts.finished] == [3, 3]
    apply(2, rows_of(0, [0]), 0.5, started=[started(0, "again")])
    (again,) = apply(3, finished=[0]).finished
    assert (again.tokens, again.unscored, again.readings[HARMFUL].unscored) == (1, 0, 0)


def test_an_average_goes_on_behind_a_score_that_is_none(apply):
    apply(0, rows_of(0, [0, 1]), [[0.25] * 3, [np.inf] * 3], started=[started(0)])
    fired = apply(1, rows_of(0, [2, 3]), 40.0).fired
    assert {event.probe for event in fired} == {"harmful_intent", "toxicity"}


def test_roles_decide_which_probe_reads(apply):
    apply(0, [(0, 0, Role.SYSTEM, 0), (0, 1, Role.TEMPLATE, 0), (0, 2, 200, 0)], 100.0, started=[started(0)])
    finished = finish(apply)
    assert finished.tokens == 2 and [reading.tokens for reading in finished.readings] == [0, 0, 0]
    assert [(unread.role, unread.tokens) for unread in finished.unread] == [("unknown", 1)]


@pytest.mark.parametrize("slot", [1, 7, 100, 101, -1, -3, -4, 2**31 - 1, -(2**31)])
def test_rows_of_unknown_slots_are_counted(apply, slot):
    verdicts = apply(0, rows_of(0, [0]) + rows_of(slot, [0]), 100.0, started=[started(0)])
    assert verdicts.tally.unknown == 1 and verdicts.tally.scored == 1
    assert {fired.request.engine_request_id for fired in verdicts.fired} == {"a"}


def test_a_request_announced_again_goes_on(apply):
    apply(0, rows_of(0, range(3)), 0.5, started=[started(0)])
    again = apply(1, rows_of(0, [3]), 0.5, started=[started(0)])
    assert not again.finished
    assert finish(apply).tokens == 4


def test_a_slot_is_reused_within_one_frame(apply):
    apply(0, rows_of(0, [0]), 10.0, started=[started(0, "a")])
    verdicts = apply(1, rows_of(0, [0]), 0.0, started=[started(0, "b")], finished=[0])
    assert [finished.request.engine_request_id for finished in verdicts.finished] == ["a"]
    finished = finish(apply)
    assert finished.request.engine_request_id == "b" and not any(reading.fired for reading in finished.readings)
    assert finished.readings[HARMFUL].peak == pytest.approx(0.0), "nothing is left of the request before"


def test_a_slot_taken_over_ends_the_request_before(apply, table):
    apply(0, rows_of(0, [0]), 0.0, started=[started(0, "a")])
    verdicts = apply(1, started=[started(0, "b")])
    assert [finished.request.engine_request_id for finished in verdicts.finished] == ["a"]
    assert table.active("engine") == 1


def test_a_complete_frame_ends_what_it_leaves_out(apply, table):
    apply(0, started=[started(0, "a"), started(1, "b"), started(2, "c")])
    verdicts = apply(1, started=[started(1, "b"), started(2, "d")], complete=True)
    assert sorted(finished.request.engine_request_id for finished in verdicts.finished) == ["a", "c"]
    assert table.active("engine") == 2


def test_finishing_what_is_not_known_is_nothing(apply):
    assert not apply(0, finished=[0, -1, 10**12]).finished


def test_engines_have_slots_of_their_own(apply, table):
    for engine in ("one", "two"):
        apply(0, rows_of(0, [0]), 0.0, engine=engine, started=[started(0)])
    assert table.drop_engine("one") == 1
    assert (table.active("one"), table.active("two"), len(table)) == (0, 1, 1)
    assert table.drop_engine("one") == 0
    assert apply(1, rows_of(0, [1]), 0.0, engine="one").tally.unknown == 1
    assert apply(1, rows_of(0, [1]), 0.0, engine="two").tally.scored == 1


def test_requests_beyond_the_limit_are_unscored(tiny_bundle, frame):
    table = VerdictTable(tiny_bundle(), max_requests=2)
    verdicts = table.apply(
        frame(0, rows_of(2, range(4)), 100.0, started=[started(slot, f"{slot}") for slot in range(3)]), "tiny"
    )
    assert (verdicts.tally.untracked, verdicts.tally.unscored, verdicts.tally.unknown) == (1, 4, 0)
    assert not verdicts.fired and len(table) == 2
    again = table.apply(frame(1, finished=[0], started=[started(2, "2")]), "tiny")
    assert again.tally.untracked == 0, "the same request is turned away once"
    later = table.apply(frame(2, rows_of(2, [0]), 100.0, finished=[2], started=[started(2, "3")]), "tiny")
    assert not later.finished and later.tally.scored == 1, "there is room again"


def test_slots_out_of_range_are_turned_away(apply, table):
    assert apply(0, started=[started(-1), started(10**9)]).tally.untracked == 2
    assert len(table) == 0


def test_rows_are_recycled(table, apply):
    for sequence in range(500):
        apply(sequence, rows_of(0, [0]), 0.0, started=[started(0, f"{sequence}")], finished=[0])
    assert len(table) == 1 and table._running.aggregates.capacity == 64


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_any_interleaving_gives_each_request_its_own_verdict(shared_bundle, frame, seed):
    """Requests in random chunks, interleaved at random over frames, against the reference on each alone."""
    bundle, random = shared_bundle, np.random.default_rng(seed)
    table = VerdictTable(bundle)
    requests = int(random.integers(1, 6))
    tokens = random.integers(1, 120, requests)
    scores = [random.normal(size=(count, 3)).astype(np.float32) * 3 for count in tokens]
    roles = [random.choice([Role.USER, Role.ASSISTANT, Role.TEMPLATE], count) for count in tokens]
    done = np.zeros(requests, int)
    fired = {}
    sequence = 0
    announced = [started(slot, f"{slot}") for slot in range(requests)]
    while (done < tokens).any():
        rows, values = [], []
        for slot in random.permutation(requests):
            chunk = min(int(random.choice([0, 1, 1, 30])), tokens[slot] - done[slot])
            for position in range(done[slot], done[slot] + chunk):
                rows.append((slot, position, roles[slot][position], 0))
                values.append(scores[slot][position])
            done[slot] += chunk
        sent = frame(sequence, rows, values, started=announced if not sequence else ())
        for item in table.apply(sent, "tiny").fired:
            fired[item.request.engine_request_id, item.probe] = item.position
        sequence += 1
    for finished in table.apply(frame(sequence, finished=range(requests)), "tiny").finished:
        slot = int(finished.request.engine_request_id)
        for column, (probe, reading) in enumerate(zip(bundle.probes, finished.readings, strict=True)):
            read = bundle.read_mask[roles[slot], column]
            means = running_mean(scores[slot][read, column], 4.0)[2:]
            over = np.flatnonzero(means >= probe.threshold)
            expected = int(np.flatnonzero(read)[2:][over[0]]) if len(over) else None
            assert reading.fired_at == fired.get((f"{slot}", probe.name)) == expected
            assert reading.peak == (pytest.approx(means.max()) if len(means) else None)
            assert reading.tokens == read.sum()
