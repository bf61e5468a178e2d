"""What a request may ask for, and what is done for it."""

import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from monitor.engine.settings import Wanted, inherited, take_over
from monitor.engine.vllm.admission import CHARACTERS, parse_admission
from monitor.errors import OrderError
from monitor.wire.orders import Act, Admission, Release, Steer
from probes.errors import BundleError
from tests.harness.tapped_runner import NEUTRAL, ONE, OTHER, PROMPT, House, capped, house  # noqa: F401


def ask(**asked: object) -> str:
    return json.dumps({"acts": [{"vector": ONE, "add": 0.2}], **asked})


def test_what_is_allowed_is_read(capped):
    written = ask(acts=[{"vector": ONE, "add": 0.5}, {"vector": ONE, "scale": 0}], tokens=3, prompt=True)
    assert parse_admission(written, [ONE], capped.bundle) == Admission(
        [Act(ONE, add=0.5), Act(ONE, scale=0)], tokens=3, prompt=True
    )


@pytest.mark.parametrize(
    ("written", "cause", "named"),
    [
        (3, "admission", "no string"),
        (ask() + " " * CHARACTERS, "admission", "too long"),
        ("{", "admission", "malformed"),
        ("[" * 2000, "admission", "malformed"),
        (ask(acts=[]), "admission", "malformed"),
        (ask(acts=[{"vector": ONE}] * 9), "admission", "malformed"),
        (ask(tokens=0), "admission", "malformed"),
        (ask(dose=0.1), "admission", "malformed"),
        (ask(acts=[{"vector": ONE, "dose": 0.1}]), "admission", "malformed"),
        (ask(acts=[{"vector": OTHER, "add": 0.1}]), "admission", f"vector '{OTHER}' here. They may by: {ONE}"),
        (ask(acts=[{"vector": ONE, "add": 0.6}]), "dose", "cap of 0.5"),
        (ask(acts=[{"vector": ONE, "add": 0.3}] * 2), "dose", "cap of 0.5"),
        (ask(acts=[{"vector": ONE, "scale": 3.0}]), "dose", "scale of 3"),
        (ask(acts=[{"vector": ONE, "low": 0.3, "high": 0.1}]), "operation", "holds no number"),
    ],
)
def test_what_is_not_is_refused_by_name(capped, written, cause, named):
    with pytest.raises(OrderError, match=named) as refused:
        parse_admission(written, [ONE], capped.bundle)
    assert refused.value.cause == cause


def test_nothing_may_be_asked_for_unless_the_operator_says_so(capped):
    with pytest.raises(OrderError, match="--allow-steering VECTOR"):
        parse_admission(ask(), [], capped.bundle)


def test_only_vectors_with_a_cap_can_be_allowed(capped, house, monkeypatch):
    monkeypatch.setenv("PLUMBOB_ENGINE", "")
    take_over(Wanted("b", admission=[ONE]), capped.bundle)
    assert inherited().admission == [ONE]
    with pytest.raises(BundleError, match="no cap on its dose"):
        take_over(Wanted("b", admission=[ONE]), house.bundle)
    with pytest.raises(BundleError, match="no steering vector 'hope'"):
        take_over(Wanted("b", admission=["hope"]), capped.bundle)


def test_a_request_is_steered_from_its_first_token(capped):
    capped.slots.start("a-1", "a", PROMPT, scored=True)
    asked = Admission([Act(ONE, add=0.2), Act(OTHER, scale=0.0)], tokens=2)
    assert capped.slots.admit("a-1", asked).admitted == asked
    assert [started.admitted for started in capped.slots.in_flight()] == [asked]
    rows = capped.step(**{"a-1": (0, 10)})
    # The last prompt row yields the first token.
    assert capped.steered(10) == [False] * 7 + [True, True, False]
    assert rows["steered"].tolist() == [0] * 7 + [1] * 3
    assert capped.entries(7) == [(2.0, 1.0, -math.inf, math.inf), (0.0, 0.0, -math.inf, math.inf)]


def test_the_prompt_is_steered_only_where_that_is_said(capped):
    capped.slots.start("a-1", "a", PROMPT, scored=True)
    capped.slots.admit("a-1", Admission([Act(ONE, add=0.2)], tokens=1, prompt=True))
    rows = capped.step(**{"a-1": (0, 9)})
    assert capped.steered(9) == [True] * 8 + [False]
    assert rows["steered"].all()


def test_orders_compose_with_what_was_asked_for_and_the_cap_holds_for_both(capped):
    capped.slots.start("a-1", "a", PROMPT, scored=True)
    capped.slots.admit("a-1", Admission([Act(ONE, add=0.4)]))
    capped.step(**{"a-1": (0, 8)})
    with pytest.raises(OrderError, match="cap"):
        capped.slots.order(Steer("a-1", [Act(ONE, add=0.2)]))
    capped.slots.order(Steer("a-1", [Act(ONE, add=-0.4)]))
    capped.step(**{"a-1": (8, 1)})
    assert capped.entries(0) == [NEUTRAL, NEUTRAL]
    capped.slots.order(Release("a-1"))
    capped.step(**{"a-1": (9, 1)})
    assert capped.entries(0) == [NEUTRAL, NEUTRAL]


def test_a_request_that_cannot_be_steered_is_served_unsteered(capped):
    assert capped.slots.start("a-1", "a", PROMPT, scored=False) is None
    with pytest.raises(OrderError, match="no slot"):
        capped.slots.admit("a-1", Admission([Act(ONE, add=0.2)]))
    batch = capped.slots.batch(["a-1"], np.array([8]), np.array([0]), suspended=False)
    assert batch.slots.tolist() == [-1]
