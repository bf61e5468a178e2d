"""Policies that let the engine decide, ablate, clamp, stop and escalate: what they mean, and what is wrong in them."""

import re

import msgspec
import numpy as np
import pytest

from monitor.errors import PolicyError
from monitor.events import ProbeFired, Request
from monitor.policy import EscalateAction, Gate, SteerAction, Steering, StopAction, load_policy
from probes.bundle import Calibration, Evaluation, ModelIdentity, Probe, Vector, save_bundle
from probes.scoring.aggregate import Aggregate
from probes.scoring.roles import Markers

RULE = """
version: 1
max_dose: 0.5
rules:
  - name: flattery
    when: {probe: sycophancy}
    mode: enforce
    actions:
      - steer:
          vector: sycophancy
          dose: -0.25
          gate: true
          hold: 16
          release: {margin: 1.0, streak: 4}
          threshold: 0.75
          tokens: 200
      - escalate: {}
      - stop: {message: "I cannot go on with this."}
"""
STEER = "rules[0].actions[0].steer"


@pytest.fixture
def load(tiny_bundle, tmp_path):
    bundle = tiny_bundle()

    def load(text: str, bundle=bundle):
        path = tmp_path / "policy.yaml"
        path.write_text(text)
        return load_policy(path, bundle)

    return load


def test_a_gate_is_armed_where_the_rule_enforces(load):
    policy = load(RULE)
    ((id, gate),) = policy.gates.items()
    assert re.fullmatch(r"policy:[0-9a-f]{12}:flattery:0", id) and gate.rule.name == "flattery"
    assert gate.does == Steering("sycophancy", dose=-0.25, tokens=200, gate=Gate(16, -0.25, 4, 0.75))
    assert str(gate.does) == (
        "steer sycophancy at dose -0.25 for 200 tokens, by the engine's gate holding 16 tokens until below -0.25"
    )
    assert policy.max_dose == 0.5
    assert load(RULE.replace("enforce", "shadow")).gates == {}


def test_a_gate_is_named_by_what_it_does(load):
    named = load(RULE).gates.keys()
    assert load(RULE + "      - alert: {severity: info}\n").gates.keys() == named
    for old, new in (("-0.25", "-0.2500001"), ("hold: 16", "hold: 17"), ("max_dose: 0.5", "max_dose: 0.4")):
        assert not load(RULE.replace(old, new, 1)).gates.keys() & named


def test_decisions_name_the_gate_that_the_engine_decides_by(load):
    fired = ProbeFired(Request("engine", "tiny", "u", "a", 4), "sycophancy", 0.9, 0.5, 7, "assistant")
    steer, escalate, stop = load(RULE).decide(fired)
    assert steer.gate.endswith(":flattery:0") and escalate.gate == stop.gate == ""
    assert (escalate.action, stop.action) == (EscalateAction(), StopAction("I cannot go on with this."))
    assert stop.reason.endswith("enforces: stop with the policy's message")
    assert {decision.gate for decision in load(RULE.replace("enforce", "shadow")).decide(fired)} == {""}


@pytest.mark.parametrize(
    ("written", "action"),
    [
        ("ablate: true", SteerAction(Steering("sycophancy", "ablate"))),
        ("clamp: [-0.1, 0.2]", SteerAction(Steering("sycophancy", "clamp", low=-0.1, high=0.2))),
        ("clamp: [null, 0.2]", SteerAction(Steering("sycophancy", "clamp", high=0.2))),
        ("clamp: [-0.1, null]", SteerAction(Steering("sycophancy", "clamp", low=-0.1))),
        ("clamp: [0, 0]", SteerAction(Steering("sycophancy", "clamp", low=0.0, high=0.0))),
        ("dose: 0.1, gate: true", SteerAction(Steering("sycophancy", dose=0.1, gate=Gate()))),
        (
            "dose: 0.1, gate: true, release: {logits: 0.25}",
            SteerAction(Steering("sycophancy", dose=0.1, gate=Gate(release=0.25))),
        ),
        (
            # The threshold of the probe is 0.5.
            "dose: 0.1, gate: true, release: {margin: 1.0}",
            SteerAction(Steering("sycophancy", dose=0.1, gate=Gate(release=-0.5))),
        ),
    ],
)
def test_what_may_be_done(load, written, action):
    text = RULE.split("      - steer:")[0] + f"      - steer: {{vector: sycophancy, {written}}}\n"
    ((found,),) = [rule.actions for rule in load(text).rules]
    assert found == action


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dose: -0.25", "dose: -0.6", f"{STEER}.dose: -0.6 is beyond max_dose of this file, 0.5."),
        ("max_dose: 0.5", "max_dose: 1.5", "max_dose: 1.5 is beyond the limit of 1."),
        ("max_dose: 0.5", "max_dose: 0", "max_dose: must be greater than 0, not 0."),
        ("dose: -0.25", "ablate: true\n          dose: 0.1", f"{STEER}: has more than one of dose, ablate and clamp."),
        ("dose: -0.25", "clamp: [0.2, 0.1]", f"{STEER}.clamp: the range from 0.2 to 0.1 clamps nothing."),
        ("dose: -0.25", "clamp: [null, null]", f"{STEER}.clamp: the range from -inf to inf clamps nothing."),
        ("dose: -0.25", "clamp: [.nan, 0.1]", f"{STEER}.clamp: must be a finite number."),
        ("dose: -0.25", "dose: .inf", f"{STEER}.dose: must be a finite number."),
        ("hold: 16", "hold: -1", f"{STEER}.hold: must be greater than or equal to 0, not -1."),
        ("tokens: 200", "tokens: 0", f"{STEER}.tokens: must be greater than or equal to 1, not 0."),
        ("streak: 4", "streak: 0", f"{STEER}.release.streak: must be greater than or equal to 1, not 0."),
        ("dose: -0.25", "clamp: [0.1]", f"{STEER}.clamp: must be a lower and an upper bound."),
        ("dose: -0.25", "clamp: [0, 0.6]", f"{STEER}.clamp: 0.6 is beyond max_dose of this file, 0.5."),
        ("gate: true", "gate: false", f"{STEER}.hold: is what a gate does. Write gate: true beside it."),
        ("margin: 1.0", "margin: 1.0, logits: 0.0", f"{STEER}.release: must have one of margin and logits."),
        ("margin: 1.0", "logits: 1.0", f"{STEER}.release.logits: 1 is above the threshold of 0.75."),
        ("margin: 1.0", "margin: -1.0", f"{STEER}.release.margin: must be greater than or equal to 0, not -1.0."),
        ("margin: 1.0", "margn: 1.0", f"{STEER}.release.margn: unknown key. Did you mean 'margin'?"),
        ("threshold: 0.75", "threshold: .nan", f"{STEER}.threshold: must be a finite number."),
        ("threshold: 0.75", "half_life: 4.0", f"{STEER}.half_life: unknown key."),
        ("probe: sycophancy", "probe: harmful_intent", f"{STEER}.release: probe 'harmful_intent' reads no response"),
        ("I cannot go on with this.", "x" * 1001, "actions[2].stop.message: String should have at most 1000"),
        ("escalate: {}", "escalate: {to: me}", "actions[1].escalate.to: unknown key. There is none."),
        ("mode: enforce", "mode: alert", f"{STEER}: rule 'flattery' has mode alert, which never changes"),
    ],
)
def test_an_error_names_the_place(load, old, new, message):
    assert old in RULE
    with pytest.raises(PolicyError) as caught:
        load(RULE.replace(old, new, 1))
    assert message in str(caught.value)


def test_stop_and_escalate_in_mode_alert(load):
    head = RULE.split("      - steer:")[0].replace("enforce", "alert")
    assert load(head + "      - escalate: {}\n").rules[0].actions == (EscalateAction(),)
    with pytest.raises(PolicyError, match=r"actions\[0\]\.stop: rule 'flattery' has mode alert"):
        load(head + '      - stop: {message: ""}\n')


def test_the_cap_of_the_bundle_counts_too(load, tmp_path):
    bundle = _bundle(tmp_path / "capped", Aggregate(), max_dose=0.2)
    with pytest.raises(PolicyError) as caught:
        load(RULE, bundle)
    assert f"{STEER}.dose: A dose of -0.25 of vector 'sycophancy' is over the bundle's cap of 0.2." in str(caught.value)


@pytest.mark.parametrize(
    ("aggregate", "message"),
    [
        (Aggregate(window=4), "averages means of 4 scores, which no gate does. Remove gate: true"),
        (Aggregate(agree=2, agree_of=3), "wants 2 of 3 averages to agree, which no gate does. Remove gate: true"),
    ],
)
def test_a_probe_that_no_gate_can_read(load, tmp_path, aggregate, message):
    bundle = _bundle(tmp_path / "other", aggregate)
    with pytest.raises(PolicyError) as caught:
        load(RULE, bundle)
    assert f"{STEER}.gate: probe 'sycophancy' {message}" in str(caught.value)


def _bundle(path, aggregate, max_dose=None):
    probe = Probe(
        name="sycophancy",
        layer=1,
        roles=["assistant"],
        threshold=0.5,
        aggregate=aggregate,
        calibration=Calibration(0.01, 100, 1, (0.0, 0.05)),
        evaluation=Evaluation(50, 60, 0.9, 0.6, 0.8),
    )
    vector = msgspec.structs.replace(Vector("sycophancy", 2, hidden_norm=10.0), max_dose=max_dose)
    return save_bundle(
        path,
        version="0",
        created="2026-01-01T00:00:00Z",
        model=ModelIdentity(name="tiny", hidden=8, layers=4, parts={"config": "c", "weights": "w"}),
        markers=Markers(headers={"user": [1, 2], "assistant": [1, 3]}, terminator=[4]),
        probes=[(probe, np.ones(8), 0.0)],
        vectors=[(vector, np.ones(8))],
    )


def test_a_stop_may_be_left_to_the_engines_gate(load):
    text = RULE.replace('go on with this."}', 'go on with this.", gate: true}')
    steer, stop = load(text).gates.values()
    assert isinstance(steer.does, Steering)
    assert stop.does == StopAction("I cannot go on with this.", gate=True)
    assert re.fullmatch(r"policy:[0-9a-f]{12}:flattery:2", stop.id)
    assert str(stop.does) == "stop with the policy's message, by the engine's gate"
    assert load(text.replace("enforce", "shadow")).gates == {}
    fired = ProbeFired(Request("engine", "tiny", "u", "a", 4), "sycophancy", 0.9, 0.5, 7, "assistant")
    assert [decision.gate for decision in load(text).decide(fired)] == [steer.id, "", stop.id]


@pytest.mark.parametrize("key", ["hold: 3", "tokens: 3", "release: {margin: 1.0}", "dose: 0.1"])
def test_a_stop_has_no_more_to_say(load, key):
    with pytest.raises(PolicyError, match=r"rules\[0\].actions\[2\].stop"):
        load(RULE.replace('go on with this."}', f'go on with this.", gate: true, {key}}}'))
