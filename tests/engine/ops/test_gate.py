"""The gate's reference against the running verdict (``probes.scoring.aggregate``) and its rules written out."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.engine.ops import gate as op
from monitor.engine.ops.gate_layout import FOREVER, Counter, Flag, Limit, Rule
from monitor.engine.ops.tap import NEUTRAL
from probes.scoring.aggregate import Aggregate, Aggregates
from probes.scoring.roles import Role
from tests.harness.gate_model import Settings, clear, model
from tests.harness.tap_arguments import make

LAYER = 3


class Gate:
    """The buffers of a few gates, and steps through them."""

    def __init__(self, gates, slots=4, rows=256, columns=3, ops=op) -> None:
        self.gates, self._ops = gates, ops
        count = len(gates)
        integers = {"dtype": torch.int32}
        self.limits = torch.tensor([[g.aggregate.decay, g.threshold, g.release] for g in gates], dtype=torch.float64)
        self.rules = torch.zeros(count, len(Rule), **integers)
        for index, g in enumerate(gates):
            roles = sum(1 << role for role in g.roles)
            how = (g.aggregate.min_tokens, g.aggregate.agree, g.calm, g.hold, g.budget)
            self.rules[index] = torch.tensor((LAYER, g.column, roles, *how))
        self.averages = torch.zeros(slots, count, 2, dtype=torch.float64)
        self.counters = torch.zeros(slots, count, len(Counter), **integers)
        self.scores = torch.full((rows, columns), torch.nan)
        self.row_slot = torch.full((rows,), -1, **integers)
        self.row_position = torch.zeros(rows, **integers)
        self.row_role = torch.zeros(rows, dtype=torch.int8)
        self.row_gates = torch.zeros(rows, count, dtype=torch.int8)
        self.row_average = torch.full((rows, count), torch.nan)
        self.gated = torch.ones(1, **integers)

    def start(self, slot: int, respond: int, armed: bool = True) -> None:
        self.averages[slot], self.counters[slot] = 0.0, 0
        self.counters[slot, :, Counter.ARMED] = int(armed)
        self.counters[slot, :, Counter.RESPOND] = respond

    def step(self, *parts, given=None):
        """Judge parts of requests ``(slot, first position, scores (rows, columns), roles)``.

        Returns:
            Flags before and behind the op, and averages, each ``(rows, gates)``.
        """
        slots = [slot for slot, _, scores, _ in parts for _ in scores]
        rows = len(slots)
        self.row_slot[:rows] = torch.tensor(slots, dtype=torch.int32)
        positions = [first + row for _, first, scores, _ in parts for row in range(len(scores))]
        self.row_position[:rows] = torch.tensor(positions, dtype=torch.int32)
        self.row_role[:rows] = torch.tensor([role for *_, roles in parts for role in roles], dtype=torch.int8)
        self.scores[:rows] = torch.tensor(np.concatenate([scores for _, _, scores, _ in parts]))
        if given is not None:
            self.row_gates[:rows] = torch.tensor(given, dtype=torch.int8)
        self._ops.open_rows(self.row_slot, self.row_position, self.counters, self.row_gates, rows)
        before = self.row_gates[:rows].numpy().copy()
        self.judge(rows)
        after, average = self.row_gates[:rows].numpy().copy(), self.row_average[:rows].numpy().copy()
        self.row_slot.fill_(-1)
        self.row_gates.zero_()
        self.row_average.fill_(torch.nan)
        return before, after, average

    def judge(self, tokens: int, layer: int = LAYER) -> None:
        # One row of padding behind them.
        self._ops.gate(
            self.scores,
            self.row_slot,
            self.row_position,
            self.row_role,
            self.gated,
            self.limits,
            self.rules,
            self.averages,
            self.counters,
            self.row_gates,
            self.row_average,
            tokens + 1,
            layer,
        )


@st.composite
def gates(draw):
    streak = draw(st.integers(1, 4))
    aggregate = Aggregate(
        half_life=draw(st.sampled_from([0.5, 2.0, 12.0])),
        min_tokens=draw(st.integers(1, 5)),
        agree=streak,
        agree_of=streak,
    )
    threshold = draw(st.sampled_from([-0.31, 0.17, 0.73]))
    calm = draw(st.integers(0, 3))
    return Settings(
        aggregate,
        threshold,
        threshold - draw(st.sampled_from([0.0, 0.4])) if calm else -np.inf,
        calm,
        draw(st.sampled_from([0, 1, 3, FOREVER])),
        draw(st.sampled_from([0, 1, 4, FOREVER])),
        draw(st.sampled_from([(Role.USER,), (Role.ASSISTANT,), (Role.USER, Role.ASSISTANT)])),
        draw(st.integers(0, 2)),
    )


@st.composite
def requests(draw):
    """Scores ``(tokens, 3)``, roles, and the length of the prompt."""
    prompt, answer = draw(st.integers(1, 20)), draw(st.integers(0, 25))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    # A level that changes now and then makes verdicts rise and fall; single scores alone rarely make them last.
    level = np.repeat(random.normal(size=9), 5)[: prompt + answer, None]
    scores = (level + random.normal(size=(prompt + answer, 3))).astype(np.float32)
    scores[random.random(prompt + answer) < 0.03] = np.nan
    roles = [*random.choice([Role.TEMPLATE, Role.USER, Role.USER], prompt), *[Role.ASSISTANT] * answer]
    return scores, [Role(role) for role in roles], prompt


@settings(max_examples=200, deadline=None)
@given(gates(), requests())
def test_opens_at_the_token_at_which_the_running_verdict_fires(chosen, request):
    scores, roles, prompt = request
    chosen = dataclasses.replace(chosen, budget=FOREVER)
    column = scores[:, chosen.column].astype(np.float64)
    read = np.array([role in chosen.roles for role in roles]) & np.isfinite(column)
    verdict = Aggregates([chosen.aggregate], np.array([chosen.threshold]))
    verdict.update(0, column[:, None], np.arange(len(column)), read[:, None])
    fired_at, fired_with = int(verdict.fired_at[0, 0]), float(verdict.fired_with[0, 0])
    if not clear(chosen, column, roles):
        return
    house = Gate([chosen])
    house.start(2, prompt - 1)
    _, flags, average = house.step((2, 0, scores, roles))
    fired = np.flatnonzero(flags[:, 0] & Flag.FIRED)
    assert fired[:1].tolist() == [fired_at] * (fired_at >= 0)
    if len(fired) and chosen.aggregate.agree == 1:
        assert average[fired[0], 0] == pytest.approx(fired_with, rel=1e-6)
    assert int(house.counters[2, 0, Counter.COUNT]) == verdict.count[0, 0]


@settings(max_examples=200, deadline=None)
@given(gates(), requests())
def test_steers_by_its_rules(chosen, request):
    scores, roles, prompt = request
    if not clear(chosen, scores[:, chosen.column], roles):
        return
    house = Gate([chosen])
    house.start(0, prompt - 1)
    before, flags, average = house.step((0, 0, scores, roles))
    fired, steered, expected = model(chosen, scores[:, chosen.column].astype(np.float64), roles, prompt - 1)
    assert (before == 0).all()
    assert ((flags[:, 0] & Flag.FIRED) != 0).tolist() == fired.tolist()
    assert ((flags[:, 0] & Flag.STEER) != 0).tolist() == steered.tolist()
    tainted = np.cumsum(steered) - steered > 0
    assert ((flags[:, 0] & Flag.TAINTED) != 0).tolist() == tainted.tolist()
    np.testing.assert_allclose(average[:, 0], expected, rtol=1e-6)


@settings(max_examples=150, deadline=None)
@given(st.lists(gates(), min_size=1, max_size=3), st.lists(requests(), min_size=1, max_size=3), st.integers(0, 10_000))
def test_any_division_into_steps_decides_the_same(chosen, drawn, seed):
    """With other requests in the same steps, in any order, and with parts computed again."""
    random = np.random.default_rng(seed)
    whole, house = Gate(chosen), Gate(chosen)
    expected, found = [], [np.zeros((len(scores), len(chosen)), int) for scores, _, _ in drawn]
    for slot, (scores, roles, prompt) in enumerate(drawn):
        whole.start(slot, prompt - 1)
        house.start(slot, prompt - 1)
        expected.append(whole.step((slot, 0, scores, roles))[1])
    done = [0] * len(drawn)
    while any(done[slot] < len(drawn[slot][0]) for slot in range(len(drawn))):
        parts, given = [], []
        for slot in random.permutation(len(drawn)).tolist():
            scores, roles, _ = drawn[slot]
            # Preempted now and then: from an earlier row on, all is computed again.
            first = random.integers(0, done[slot] + 1) if random.random() < 0.3 else done[slot]
            last = min(len(scores), max(first, done[slot]) + random.integers(0, 10))
            if last == first:
                continue
            parts.append((slot, first, scores[first:last], roles[first:last]))
            told = np.where(expected[slot][first : done[slot]] & Flag.STEER, int(Flag.GIVEN), 0)
            given += [*told.tolist(), *np.zeros((last - max(first, done[slot]), len(chosen)), int).tolist()]
        if not parts:
            continue
        _, flags, _ = house.step(*parts, given=given)
        row = 0
        for slot, first, scores, _ in parts:
            here = flags[row : row + len(scores)]
            row += len(scores)
            new = max(0, done[slot] - first)
            again = expected[slot][first : first + new] & Flag.STEER
            assert ((here[:new] & Flag.STEER) == again).all()
            found[slot][first + new : first + len(scores)] = here[new:]
            done[slot] = max(done[slot], first + len(scores))
    for slot in range(len(drawn)):
        assert ((found[slot] & ~int(Flag.EARLY)) == expected[slot]).all()
        assert (house.counters[slot] == whole.counters[slot]).all()
        assert (house.averages[slot] == whole.averages[slot]).all()


ALWAYS = Settings(Aggregate(half_life=1.0, min_tokens=1), threshold=0.5)


def decode(house, slot, position, score):
    before, after, _ = house.step((slot, position, np.full((1, 3), score, np.float32), [Role.ASSISTANT]))
    return int(before[0, 0]), int(after[0, 0])


def test_the_row_that_opens_it_is_steered_at_later_layers_and_the_next_one_at_all():
    house = Gate([dataclasses.replace(ALWAYS, hold=1)])
    house.start(1, 0)
    assert decode(house, 1, 0, 0.0) == (0, 0)
    assert decode(house, 1, 1, 9.0) == (0, Flag.FIRED | Flag.STEER)
    on = Flag.EARLY | Flag.STEER | Flag.TAINTED
    assert decode(house, 1, 2, -99.0) == (on, on)
    # Closed: nothing is steered, but the cache carries what was.
    assert decode(house, 1, 3, -99.0) == (Flag.TAINTED, Flag.TAINTED)


def test_nothing_happens_where_no_gate_reads_the_layer():
    house = Gate([ALWAYS])
    house.start(0, 0)
    for gated, layer in ((0, LAYER), (1, LAYER + 1)):
        house.gated.fill_(gated)
        house.row_slot[0], house.scores[0] = 0, 9.0
        house.row_role[0] = Role.ASSISTANT
        house.judge(1, layer)
        assert not house.row_gates.any()
        assert not house.averages.any()
        assert house.row_average.isnan().all()


def test_a_request_that_the_gate_does_not_apply_to_is_left_alone():
    house = Gate([ALWAYS])
    house.start(0, 0, armed=False)
    house.start(1, 0)
    before = house.counters[0].clone()
    row = np.full((1, 3), 9.0, np.float32)
    _, flags, _ = house.step((0, 0, row, [Role.ASSISTANT]), (1, 0, row, [Role.ASSISTANT]))
    assert (flags[:, 0] & Flag.STEER).tolist() == [0, Flag.STEER]
    assert torch.equal(house.counters[0], before)


def test_two_gates_of_different_probes_keep_apart():
    house = Gate([ALWAYS, dataclasses.replace(ALWAYS, column=2)])
    house.start(0, 0)
    scores = np.array([[0.0, 0.0, 9.0], [9.0, 0.0, 0.0]], np.float32)
    _, flags, _ = house.step((0, 0, scores, [Role.ASSISTANT] * 2))
    assert ((flags & Flag.FIRED) != 0).tolist() == [[False, True], [True, False]]


def test_a_score_that_is_not_a_number_is_not_read():
    house = Gate([ALWAYS])
    house.start(0, 0)
    assert decode(house, 0, 0, np.nan) == (0, 0)
    assert decode(house, 0, 1, np.inf) == (0, 0)
    assert decode(house, 0, 2, 9.0) == (0, Flag.FIRED | Flag.STEER)
    assert int(house.counters[0, 0, Counter.COUNT]) == 1


def test_is_a_proper_operator_for_the_compiler():
    house = Gate([ALWAYS])
    house.start(0, 0)
    house.row_slot[:2] = 0
    arguments = (house.scores, house.row_slot, house.row_position, house.row_role, house.gated, house.limits)
    state = (house.rules, house.averages, house.counters, house.row_gates, house.row_average)
    torch.library.opcheck(
        torch.ops.plumbob.gate.default, (*arguments, *state, 3, LAYER), test_utils=("test_schema", "test_faketensor")
    )
    assert len(Limit) == house.limits.shape[1]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 1000),
    ordered=st.lists(st.booleans(), min_size=6, max_size=6),
    steering=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=6, max_size=6),
    split=st.booleans(),
)
def test_taps_join_what_gates_and_orders_do_to_a_row(seed, ordered, steering, split):
    """Written out: sums of what is added, products of scales, intersections of ranges, each vector by itself."""
    arguments = make(seed, 6, 24, 2, 2, 1, torch.float32, split=split)
    random = np.random.default_rng(seed)
    tables = np.array([random.normal(size=(4, 2)), random.random((4, 2)), *np.sort(random.normal(size=(2, 4, 2)), 0)])
    entries = tables.transpose(1, 2, 0).astype(np.float32)
    arguments["table"][0] = torch.from_numpy(entries[0])
    arguments["row_entry"][:6] = torch.where(torch.tensor(ordered), 0, -1)
    flags = torch.where(torch.tensor(steering), int(Flag.STEER), 0) | int(Flag.TAINTED)
    arguments |= {"row_gates": flags.to(torch.int8), "gate_table": torch.from_numpy(entries[1:])}
    state = (arguments["hidden"] + (arguments["residual"] if split else 0)).double().numpy()
    weights, vectors = arguments["weights"].double().numpy(), arguments["vectors"].double().numpy()
    projection = state @ weights[2:].T + arguments["bias"][2:].double().numpy()
    expected = arguments["hidden"].double().numpy()
    for row in range(6):
        applied = [entries[0]] * ordered[row] + [entries[1 + gate] for gate in range(3) if steering[row][gate]]
        for vector in range(2):
            add, scale, low, high = np.array([entry[vector] for entry in applied]).reshape(-1, 4).T.astype(float)
            clipped = min(
                max(np.prod(scale) * projection[row, vector], max(low, default=-np.inf)), min(high, default=np.inf)
            )
            expected[row] += (add.sum() + clipped - projection[row, vector]) * vectors[vector]
    untouched = [row for row in range(6) if not ordered[row] and not any(steering[row])]
    before = arguments["hidden"].clone()
    torch.ops.plumbob.tap(*arguments.values())
    np.testing.assert_allclose(arguments["hidden"], expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(arguments["hidden"][untouched], before[untouched])


def test_a_gates_dose_is_that_of_an_order_to_the_last_bit():
    by_order = make(0, 5, 32, 1, 2, 1, torch.bfloat16, split=True)
    by_gate = {name: value.clone() if torch.is_tensor(value) else value for name, value in by_order.items()}
    by_order["table"][0, :, 0] = 0.7
    by_order["row_entry"][:5] = 0
    gate_table = torch.tensor(NEUTRAL).repeat(1, 2, 1)
    gate_table[0, :, 0] = 0.7
    by_gate |= {"row_gates": torch.full((5, 1), int(Flag.STEER), dtype=torch.int8), "gate_table": gate_table}
    before = by_gate["hidden"].clone()
    torch.ops.plumbob.tap(*by_order.values())
    torch.ops.plumbob.tap(*by_gate.values())
    assert torch.equal(by_gate["hidden"], by_order["hidden"])
    assert not torch.equal(by_gate["hidden"], before)
