"""Leases that the engine keeps: what begins them, what ends them, and what is told."""

import pytest

from monitor.engine.steering.leases import Arrived, Leases
from monitor.wire.frames import Refusal
from monitor.wire.orders import Act, Arm, Disarm, Release, Steer, Stop, Stream

ACTS = [Act("v", add=0.1)]
KEYS = {"a", "b"}


def gate(id="order:g", lease: float | None = 10.0) -> Arm:
    return Arm(id, "probe", ACTS, lease=lease)


def steer(key="a", id="order:s", lease: float | None = 10.0) -> Steer:
    return Steer(key, ACTS, None, id, lease)


def take(leases: Leases, *orders, at: float = 0.0, now: float | None = None, keys=KEYS):
    return leases.take([Arrived(order, at) for order in orders], at if now is None else now, keys)


def ended(order: str, id: str, key: str = "", seconds: str = "10") -> Refusal:
    return Refusal(-1, order, id, key, "expired", f"Its lease of {seconds} s has ended.")


def test_orders_without_a_lease_go_through_and_never_end():
    leases = Leases()
    orders = [gate(lease=None), steer(lease=None), Stop("a", ""), Stream(1, "all")]
    assert take(leases, *orders) == (orders, [])
    assert take(leases, now=1e9) == ([], [])


def test_a_lease_ends_with_the_first_step_after_it_and_is_told_once():
    leases = Leases()
    assert take(leases, gate(), steer()) == ([gate(), steer()], [])
    assert take(leases, now=9.9) == ([], [])
    orders, told = take(leases, now=10.0)
    assert orders == [Disarm("order:g"), Release("a", "order:s")]
    assert told == [ended("arm", "order:g"), ended("steer", "order:s", "a")]
    assert take(leases, now=1e9) == ([], [])


def test_a_lease_counts_from_when_the_order_arrived_not_from_the_step_that_takes_it():
    leases = Leases()
    assert take(leases, gate(), at=0.0, now=8.0)[0] == [gate()]
    assert take(leases, now=10.0)[0] == [Disarm("order:g")]


@pytest.mark.parametrize("order", [gate(), steer()])
def test_what_comes_too_late_is_refused_and_never_done(order):
    orders, (refused,) = take(Leases(), order, at=0.0, now=10.0)
    assert orders == []
    assert (refused.cause, refused.id) == ("lease", order.id)
    assert refused.reason.startswith("Its lease of 10 s ended before it could take effect.")


def test_a_lease_without_an_id_could_not_be_undone_and_is_refused():
    orders, (refused,) = take(Leases(), steer(id=""))
    assert orders == [] and (refused.cause, refused.engine_request_id) == ("lease", "a")


def test_a_newer_lease_replaces_the_older_one():
    leases = Leases()
    take(leases, gate())
    take(leases, gate(), at=5.0)
    assert take(leases, now=14.9) == ([], [])
    assert take(leases, now=15.0)[0] == [Disarm("order:g")]
    take(leases, gate(), at=20.0)
    take(leases, gate(lease=None), at=21.0)
    assert take(leases, now=1e9) == ([], [])


@pytest.mark.parametrize("undo", [Disarm("order:g"), Release("a", "order:s"), Release("a")])
def test_what_is_undone_before_does_not_end_again(undo):
    leases = Leases()
    take(leases, gate(), steer())
    assert take(leases, undo, at=10.0)[0][0] == undo
    left = Release("a", "order:s") if isinstance(undo, Disarm) else Disarm("order:g")
    # The other one ended in that very step.
    assert take(leases, now=1e9) == ([], [])
    again = Leases()
    take(again, gate(), steer())
    assert take(again, undo, at=10.0)[0] == [undo, left]


def test_a_lease_ends_with_its_request_without_a_word():
    leases = Leases()
    take(leases, steer(), steer("b"))
    assert take(leases, now=5.0, keys={"b"}) == ([], [])
    assert take(leases, now=10.0)[0] == [Release("b", "order:s")]


def test_a_gate_that_cannot_be_armed_has_none():
    leases = Leases()
    take(leases, gate())
    leases.forget(gate())
    assert take(leases, now=1e9) == ([], [])
