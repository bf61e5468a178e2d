"""Gates through a step as an engine takes it: slots, rows that come again, orders, and what the host learns."""

import math

import numpy as np
import pytest

from monitor.engine.gates.host import Report
from monitor.engine.ops.gate_layout import MAX_GATES, Flag
from monitor.engine.settings import ENVIRONMENT, KEY, inherited, read_wanted, take_over
from monitor.errors import EngineError, FrameError
from monitor.wire.codec import decode_order, encode_order
from monitor.wire.orders import Act, Arm, Steer
from probes.errors import PlumbobError
from probes.scoring.aggregate import Aggregate
from probes.scoring.roles import Role
from tests.harness.bundles import make_bundle
from tests.harness.decoder import HIDDEN
from tests.harness.gate_model import Settings, clear, model
from tests.harness.gated_runner import EARLY, LATE, PROMPT, House, arm, torch

LAST = len(PROMPT) - 1


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Probes whose averages are the last token's score, but for its last bits."""
    return make_bundle(tmp_path_factory.mktemp("gates") / "bundle", half_life=0.01)


@pytest.fixture
def house(shared) -> House:
    return House(shared)


@pytest.fixture
def slow(tiny_bundle) -> House:
    """The probes average all that they have read, from the fourth token on."""
    return House(tiny_bundle(half_life=1e9, min_tokens=4))


def test_an_open_gate_steers_later_layers_in_the_row_and_all_of_them_from_the_next_step(house):
    house.start("a")
    house.arm()
    assert not house.step(a=(0, 8)).any()
    assert not house.step(1.0, a=(8, 1)).any()
    early, late = house.step(9.0, a=(9, 1))[..., 0]
    assert (early.tolist(), late.tolist()) == ([False], [True])
    assert house.step(0.0, a=(10, 1))[..., 0].all()
    assert house.told() == [("opened", "g", "A", 9, 0)]
    assert house.events[0].average == pytest.approx(9.0)


def test_a_prompts_token_opens_it_and_the_first_response_row_is_steered(house):
    house.start("a")
    house.arm()
    scores = np.zeros((8, 3))
    scores[3] = 9.0
    early, late = house.step(scores, a=(0, 8))[..., 0]
    assert not early.any()
    assert late.tolist() == [False] * LAST + [True]
    assert house.step(a=(8, 1))[..., 0].all()
    assert house.told() == [("opened", "g", "A", 3, 0)]


def test_a_token_whose_keys_and_values_were_cached_counts_like_any_other(house):
    house.start("a")
    house.arm()
    house.cache = np.zeros((8, 3), np.float32)
    house.cache[3] = 9.0
    assert house.step(0.0, a=(6, 2))[..., 0].tolist() == [[False, True]] * 2
    assert house.told() == [("opened", "g", "A", 3, 0)]
    assert house.step(0.0, a=(8, 1))[..., 0].all()


def test_cached_tokens_without_scores_are_not_read_and_cached_answers_not_steered(slow):
    house = slow
    house.start("a")
    house.arm()
    house.cache = np.full((12, 3), np.nan, np.float32)
    # Three of a prompt that was never scored, two of an answer: after a preemption, the cache may have both.
    house.cache[[8, 9]] = 9.0
    assert not house.step(9.0, a=(10, 1)).any()
    assert house.step(9.0, a=(11, 1))[1, 0, 0]
    house.start("b")
    house.cache[:] = 9.0
    house.step(9.0, b=(10, 1))
    house.finish("b")
    assert house.told()[-2:] == [("opened", "g", "B", 8, 0), ("closed", "g", "B", 11, 1)]


def test_a_template_token_opens_nothing(house):
    house.start("a")
    house.arm()
    scores = np.zeros((8, 3))
    scores[[0, 1, 5, 6, 7]] = 9.0
    assert not house.step(scores, a=(0, 8)).any()
    assert not house.told()


def test_what_was_steered_is_steered_again_alike_and_counted_once(house):
    house.start("a")
    house.arm(hold=1, acts=[EARLY, LATE])
    house.step(a=(0, 8))
    first = [house.step(score, a=(8 + index, 1))[:, 0] for index, score in enumerate((0.0, 9.0, 0.0, 0.0, 9.0))]
    counters, told = house.taps.gates.counters.clone(), house.told()
    # Preempted: prompt and answer come again as one prefill, with scores of their own.
    again = house.step(9.0, a=(0, 13))
    assert not again[:, :8].any()
    assert (again[:, 8:] == np.stack(first, axis=1)).all()
    assert torch.equal(house.taps.gates.counters, counters)
    assert (
        house.told() == told == [("opened", "g", "A", 9, 0), ("closed", "g", "A", 11, 2), ("opened", "g", "A", 12, 2)]
    )
    assert house.step(0.0, a=(13, 1))[..., 0].all()


def test_rows_downstream_of_its_steering_are_marked_in_the_same_frame_and_later(house):
    house.start("a")
    house.arm(hold=0)
    house.step(a=(0, 8))
    house.step(9.0, a=(8, 1))
    assert house.seen()[:1] == [True]
    house.step(0.0, a=(9, 1))
    assert house.seen()[:1] == [True]
    batch = house.slots.batch(["a"], np.array([2]), np.array([8]), suspended=False)
    assert batch.describe(np.array([0, 0], np.int32), np.array([7, 8], np.int32))["steered"].tolist() == [0, 1]


def test_an_order_to_steer_keeps_the_mark_of_a_gate(house):
    house.start("a")
    house.arm(hold=0)
    house.step(a=(0, 8))
    house.step(9.0, a=(8, 1))
    house.slots.order(Steer("a", [Act("harmful_intent", add=0.1)]))
    batch = house.slots.batch(["a"], np.array([1]), np.array([9]), suspended=False)
    assert batch.tainted_from.tolist() == [8]


def test_a_disarmed_gate_steers_nobody_from_the_next_step_on_but_what_it_steered_again(house):
    house.start("a")
    house.arm()
    house.step(a=(0, 8))
    first = house.step(9.0, a=(8, 1))
    house.gates.disarm("g")
    assert house.gates.active
    assert not house.step(9.0, a=(9, 1)).any()
    again = house.step(9.0, a=(0, 10))
    assert (again[:, 8] == first[:, 0]).all()
    assert not again[:, 9].any()
    house.finish("a")
    assert not house.gates.active
    assert house.told() == [("opened", "g", "A", 8, 0), ("closed", "g", "A", 9, 1)]


def test_a_place_is_free_when_nobody_is_left_that_its_gate_steered(shared):
    house = House(shared, gates=1)
    house.start("a")
    house.arm()
    house.step(a=(0, 8))
    house.step(9.0, a=(8, 1))
    house.gates.disarm("g")
    with pytest.raises(EngineError, match="All 1 gates are in use"):
        house.arm(id="h")
    house.finish("a")
    house.start("b")
    house.arm(id="h")
    assert not house.step(0.0, b=(0, 8)).any()
    assert house.step(9.0, b=(8, 1))[1].any()


class UnderWay:
    """A copy to the host that has not arrived, and does so when somebody waits for it."""

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass


@pytest.fixture
def late(house, monkeypatch):
    """As on a GPU: what a step's gates said is under way when the next one begins."""
    gates = house.gates

    def report(*parts, rows):
        host = tuple(part[:rows].clone() for part in parts)
        gates._reports.append(Report(gates._step, dict(gates._requests), host, UnderWay()))

    monkeypatch.setattr(gates, "_report", report)
    return house


def test_a_gate_takes_the_place_of_one_that_is_disarmed_in_the_same_step(late):
    late.start("a")
    late.arm(id="one")
    late.arm(id="two")
    late.step(0.0, a=(0, 8))
    late.gates.disarm("one")
    late.arm(id="three")
    assert late.step(9.0, a=(8, 2))[1].any(axis=0).sum() == 2


def test_the_end_of_a_gate_is_told_that_was_disarmed_before_its_request_ended(late):
    late.start("a")
    late.arm()
    late.step(9.0, a=(0, 8))
    late.gates.settle()
    late.gates.disarm("g")
    late.step(9.0, a=(8, 1))
    late.finish("a")
    assert [kind for kind, *_ in late.told()] == ["opened"], "the last step's copy is under way"
    assert late.gates.active, "or nobody would look for it"
    late.gates.settle()
    late.events += late.gates.take_events()
    assert [kind for kind, *_ in late.told()] == ["opened", "closed"]
    late.gates.settle()
    assert not late.gates.active


def test_a_gate_that_is_armed_later_reads_from_the_next_row_on(house):
    house.start("a")
    house.step(9.0, a=(0, 9))
    house.arm()
    # Computed again is not new.
    assert not house.step(9.0, a=(0, 9)).any()
    assert house.step(9.0, a=(9, 1))[1, 0, 0]
    assert house.told() == [("opened", "g", "A", 9, 0)]


def test_tuning_goes_on_with_the_averages(slow):
    house = slow
    house.start("a")
    house.arm()
    house.step(a=(0, 8))
    house.step(8.0, a=(8, 1))
    assert not house.told()
    # Four tokens were read: three of the user's that scored 0, and one that scored 8.
    house.arm(threshold=2.5)
    house.step(6.0, a=(9, 1))
    assert house.told() == [("opened", "g", "A", 9, 0)]
    assert house.events[0].average == pytest.approx(14 / 5)


def test_averages_go_on_where_a_gate_that_steered_nobody_gets_another_dose(slow):
    house = slow
    house.start("a")
    house.arm()
    house.step(a=(0, 8))
    house.step(8.0, a=(8, 1))
    house.arm(threshold=2.5, acts=[EARLY])
    house.step(6.0, a=(9, 1))
    assert [event.average for event in house.events] == [pytest.approx(14 / 5)]


def test_another_dose_takes_effect_when_it_opens_again_and_the_old_one_stays_where_it_was(house):
    house.start("a")
    house.arm(hold=5)
    house.step(a=(0, 8))
    house.step(9.0, a=(8, 1))
    house.arm(hold=5, acts=[EARLY])
    assert not house.step(0.0, a=(9, 1)).any()
    assert house.step(9.0, a=(10, 1))[1].tolist() == [[False, True]]
    again = house.step(0.0, a=(0, 11))
    assert again[1, 8:].tolist() == [[True, False], [False, False], [False, True]]


def test_a_streaming_session_that_goes_on_has_a_longer_prompt(house):
    house.start("a")
    house.arm()
    house.step(a=(0, 8))
    house.step(9.0, a=(8, 1))
    house.gates.extend("a", 14)
    assert not house.step(0.0, a=(9, 4)).any()
    assert house.step(0.0, a=(13, 1)).any()


def test_a_finished_request_ends_its_steering(house):
    house.start("a")
    house.arm()
    house.step(a=(0, 8))
    house.step(9.0, a=(8, 1))
    house.finish("a")
    assert house.told() == [("opened", "g", "A", 8, 0), ("closed", "g", "A", 9, 1)]
    assert [event.number for event in house.events] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"probe": "hope"}, "reads no probe 'hope'"),
        ({"acts": []}, "has to do one thing"),
        ({"stop": "Enough."}, "has to do one thing"),
        ({"acts": [], "stop": "a" * 4097}, "is too long"),
        ({"acts": [Act("hope")]}, "no steering vector 'hope'"),
        ({"acts": [LATE, LATE]}, "names a vector twice"),
        ({"acts": [Act("sycophancy", add=math.nan)]}, "cannot be applied"),
        ({"acts": [Act("sycophancy", low=1.0, high=0.0)]}, "holds no number"),
        ({"threshold": math.nan}, "threshold nan"),
        ({"release": 6.0}, "release 6"),
        ({"probe": "harmful_intent", "release": 0.0}, "reads no response"),
    ],
)
def test_what_cannot_be_armed_is_refused_by_name_and_changes_nothing(house, changes, named):
    house.start("a")
    with pytest.raises(PlumbobError, match=named):
        house.arm(**changes)
    assert not house.gates.active


@pytest.mark.parametrize("changes", [{"release_streak": 0}, {"hold": -1}, {"budget": 0}])
def test_an_order_with_impossible_numbers_is_no_order(changes):
    with pytest.raises(FrameError, match="cannot be decoded"):
        decode_order(encode_order(arm(**changes)))
    assert decode_order(encode_order(arm())) == arm()


def test_a_gate_judges_as_its_probe(tiny_bundle):
    house = House(tiny_bundle(half_life=4.0, min_tokens=3, agree=2))
    house.start("a")
    house.gates.arm(Arm("g", "toxicity", [LATE]), house.slots.upcoming)
    limits, rules = house.taps.gates.limits[0].tolist(), house.taps.gates.rules[0].tolist()
    assert limits == [Aggregate(half_life=4.0).decay, 1.0, -math.inf]
    assert rules[:6] == [1, 1, 1 << Role.USER | 1 << Role.ASSISTANT | 1 << Role.TOOL, 3, 2, 0]


def test_disarming_what_is_not_armed_names_what_is(house):
    house.arm()
    with pytest.raises(EngineError, match=r"No gate 'h' is armed\. Armed are: g"):
        house.gates.disarm("h")


def test_how_many_gates_there_are_is_part_of_what_shapes_the_graph(shared, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "")
    wanted = read_wanted({KEY: {"bundle": "b", "gates": 2}})
    assert take_over(wanted, shared)["gates"] == 2
    assert inherited().gates == 2
    with pytest.raises(EngineError, match="gates"):
        read_wanted({KEY: {"bundle": "b", "gates": MAX_GATES + 1}})


@pytest.mark.parametrize("compiled", [False, True])
def test_the_graph_steers_later_layers_of_the_row_that_opens_the_gate(shared, compiled):
    """A real pass: two blocks and their taps, gate between them, as one graph."""
    torch.manual_seed(0)
    house = House(shared)
    rows = torch.randn(5, HIDDEN)
    run = torch.compile(house.model, backend="aot_eager", fullgraph=True) if compiled else house.model
    # The header of an answer, of which nothing is read, and three tokens.
    house.start("a", [1, 3])
    with torch.no_grad():
        plain = run(rows.clone())
        scores = house.taps.scores[2:5, 1].tolist()
        house.arm(threshold=sorted(scores)[1] + 1e-3, hold=0, acts=[EARLY, LATE])
        house.begin({"a": (0, 5)})
        steered = run(rows.clone())
        house.end(5)
        opened = 2 + scores.index(max(scores))
        assert [event.position for event in house.events if event.kind == "opened"] == [opened]
        vector = torch.from_numpy(shared.vectors[1]) * shared.manifest.vectors[1].coefficient(LATE.add)
        expected = torch.zeros(5, HIDDEN)
        expected[opened] = vector
        torch.testing.assert_close(steered[1], plain[1])
        torch.testing.assert_close(steered[2], plain[2] + expected)
        # Behind the step, nothing is left: a run without rows of its own is as it was.
        assert torch.equal(run(rows.clone())[3], plain[3])


def test_ten_thousand_requests_leave_no_residue_in_the_slots_they_share(tiny_bundle):
    """Made-up schedules against the rules, one request at a time: chunks, preemption, batchmates, slots used again."""
    random = np.random.default_rng(0)
    aggregate = Aggregate(half_life=2.0, min_tokens=2, agree=2, agree_of=2)
    house = House(tiny_bundle(half_life=2.0, min_tokens=2, agree=2), slots=6)
    chosen = [
        Settings(aggregate, 0.7, release=0.2, calm=1, hold=1, budget=4, column=1),
        Settings(aggregate, 0.4, hold=0, roles=(Role.ASSISTANT,), column=2),
    ]
    house.arm(id="0", threshold=0.7, release=0.2, hold=1, budget=4)
    house.arm(id="1", probe="sycophancy", threshold=0.4, hold=0)
    live: dict[str, dict] = {}
    begun = checked = steered = again = 0
    while begun < 10_000 or live:
        while begun < 10_000 and len(live) < 6 and random.random() < 0.9:
            prompt = [1, 2, *[7] * random.integers(0, 4), 4, 1, 3]
            key, length = str(begun), len(prompt) + int(random.integers(0, 7))
            roles = [Role.TEMPLATE, Role.TEMPLATE, *[Role.USER] * (len(prompt) - 5), *[Role.TEMPLATE] * 3]
            roles += [Role.ASSISTANT] * (length - len(prompt))
            scores = (random.normal(size=1) + random.normal(size=(length, 3))).astype(np.float32)
            begun += 1
            if all(clear(gate, scores[:, gate.column], roles) for gate in chosen):
                house.start(key, prompt)
                late = np.zeros((length, 2), bool)
                live[key] = {"scores": scores, "roles": roles, "prompt": len(prompt), "done": 0, "found": late}
        parts = {}
        for key in random.permutation(list(live)).tolist():
            request = live[key]
            first = int(random.integers(0, request["done"] + 1)) if random.random() < 0.1 else request["done"]
            last = min(len(request["scores"]), request["done"] + int(random.integers(1, 5)))
            if random.random() < 0.8:
                parts[key] = (first, last - first)
        if not parts:
            continue
        scores = np.concatenate([live[key]["scores"][first : first + rows] for key, (first, rows) in parts.items()])
        found, row = house.step(scores, **parts)[1], 0
        # Behind the pass: what layers later than both gates saw.
        behind = (house.stage.gates.numpy() & Flag.STEER) != 0
        for key, (first, rows) in parts.items():
            request, here = live[key], behind[row : row + rows]
            assert (found[row : row + rows, 0] == here[:, 0]).all()
            row += rows
            old = request["done"] - first
            assert (here[:old] == request["found"][first : request["done"]]).all()
            again += old
            request["found"][request["done"] : first + rows] = here[old:]
            request["done"] = first + rows
            if request["done"] < len(request["scores"]):
                continue
            for index, gate in enumerate(chosen):
                column = request["scores"][:, gate.column].astype(np.float64)
                fired, expected, _ = model(gate, column, request["roles"], request["prompt"] - 1)
                assert request["found"][:, index].tolist() == expected.tolist()
                house.finish(key) if index == 1 else None
                told = [
                    e.position
                    for e in house.events
                    if (e.kind, e.engine_request_id, e.gate) == ("opened", key, str(index))
                ]
                assert told == np.flatnonzero(fired).tolist()
                steered += int(expected.sum())
            house.events = [
                event for event in house.events if event.engine_request_id in live and event.engine_request_id != key
            ]
            del live[key]
            checked += 1
    # Otherwise it would show less than it says.
    assert checked > 9_900
    assert steered > 2_000
    assert again > 1_000
