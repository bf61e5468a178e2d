"""Events in words: every kind has them, and what is done to a generation is said one way."""

from typing import get_args

import pytest

from monitor import events
from monitor.events import words
from tests.events.samples import KINDS, sample

REQUEST = events.Request("engine", "tiny", "chat-1", "chat-1-a", 12)


def intervention(**changes):
    given = {"vector": "v", "dose": 0.0, "tokens": None, "sent": True, "reason": "why"} | changes
    return events.Intervention(
        REQUEST, "rule", given.pop("mode", "enforce"), "harm", aggregate=2.5, threshold=1.5, position=17, **given
    )


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_words(kind, bare):
    event = sample(kind, bare=bare)
    said = words.wording(event)
    assert said.label.isupper() and len(said.label) <= 6
    assert said.about and said.text.startswith(said.strong)
    assert said.severity in get_args(events.Severity)
    assert str(said).startswith(f"{said.label} {said.about} {said.text}")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "reason" in kind.__struct_fields__])
def test_a_reason_is_told(kind):
    event = sample(kind)
    assert event.reason in words.wording(event).text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"add": -0.2}, "steer v at dose -0.2"),
        ({"scale": 0.0}, "ablate v"),
        ({"scale": 0.5}, "scale v by 0.5"),
        ({"high": 0.1}, "clamp v to at most 0.1"),
        ({"low": -0.1}, "clamp v to at least -0.1"),
        ({"low": 0.0, "high": 0.0}, "clamp v between 0 and 0"),
        ({"scale": 0.0, "high": 0.5, "add": 0.1}, "ablate v, clamp v to at most 0.5, steer v at dose 0.1"),
        ({}, "leave v as it is"),
    ],
)
def test_steering(given, expected):
    assert words.steering("v", **given) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dose": -0.3, "tokens": 64}, "steer v at dose -0.3 for 64 tokens"),
        ({"operation": "ablate"}, "ablate v until the request ends"),
        ({"operation": "clamp", "low": -0.1, "high": 0.25}, "clamp v between -0.1 and 0.25 until the request ends"),
        ({"operation": "stop", "vector": ""}, "stop with the policy's message"),
    ],
)
def test_an_intervention_says_what_the_action_that_it_carries_out_says(changes, expected):
    assert words.done(intervention(**changes)) == expected


def test_what_was_not_sent_says_why():
    assert words.wording(intervention(sent=False, refusal="it is away")).note == "enforce: not sent, it is away"
    assert words.wording(intervention(sent=False, mode="shadow")).note == "shadow: not sent"
    assert words.wording(intervention()).note == ""


def test_a_gate_says_how_many_averages_it_wanted_and_which_probe_it_read():
    alone = words.gate_opened("harm", 0.75, 0.5, 1, 9)
    assert alone == "the engine's gate read probe harm at 0.75 (threshold 0.50) at token 9"
    assert words.gate_opened("harm", 0.75, 0.5, 3, 9).endswith("(threshold 0.50, 3 averages in a row) at token 9")
    assert words.gate_opened("", 0.75, 0.0, 1, 9) == "the engine's gate averaged 0.75 at token 9"
