import pytest

from monitor.errors import PolicyError
from monitor.events import ProbeFired, Request
from monitor.policy import AlertAction, SteerAction, Steering, default_policy, load_policy

RULE = """
version: 1
rules:
  - name: harmful-request
    when: {probe: harmful_intent}
    mode: enforce
    actions:
      - alert: {severity: critical}
      - steer: {vector: harmful_intent, dose: -0.25, tokens: 200}
"""


MAPPING = "must be a mapping with the keys version and rules."


def fired(probe="harmful_intent", model="llama-8b") -> ProbeFired:
    request = Request("engine", model, "user-a", "a", 12)
    return ProbeFired(request, probe, aggregate=3.214, threshold=2.1, position=14, role="user")


@pytest.fixture
def load(tiny_bundle, tmp_path):
    bundle = tiny_bundle()

    def load(text: str):
        path = tmp_path / "policy.yaml"
        path.write_text(text)
        return load_policy(path, bundle)

    return load


@pytest.fixture
def error(load, tmp_path):
    """What is wrong with a policy, without the name of its file."""

    def error(text: str) -> str:
        with pytest.raises(PolicyError) as caught:
            load(text)
        message, file = str(caught.value), f"{tmp_path / 'policy.yaml'}: "
        assert message.startswith(file) and "\n" not in message
        return message.removeprefix(file)

    return error


def test_a_rule_decides_each_of_its_actions(load):
    alert, steer = load(RULE).decide(fired())
    assert (alert.rule, alert.mode, alert.action) == ("harmful-request", "enforce", AlertAction("critical"))
    assert steer.action == SteerAction(Steering("harmful_intent", dose=-0.25, tokens=200))
    assert steer.reason == (
        "probe harmful_intent reached 3.21 (threshold 2.10) at token 14 (user); "
        "rule 'harmful-request' enforces: steer harmful_intent at dose -0.25 for 200 tokens"
    )


def test_shadow_says_what_it_would_do(load):
    alert, steer = load(RULE.replace("enforce", "shadow").replace(", tokens: 200", "")).decide(fired())
    assert alert.reason.endswith("rule 'harmful-request' shadows: would alert with severity critical")
    assert steer.reason.endswith("would steer harmful_intent at dose -0.25 until the request ends")
    assert steer.action.steering.tokens is None


def test_no_rule_that_matches_is_no_decision(load):
    assert load(RULE).decide(fired("toxicity")) == []


def test_rules_may_be_for_some_models_only(load):
    policy = load(RULE.replace("{probe: harmful_intent}", '{probe: harmful_intent, models: ["llama-*", qwen]}'))
    assert [len(policy.decide(fired(model=model))) for model in ("llama-8b", "qwen", "qwen-2", "Llama-8b")] == [
        2,
        2,
        0,
        0,
    ]


def test_every_rule_that_matches_counts_in_order(load):
    second = RULE.split("rules:")[1].replace("harmful-request", "and-again")
    assert [decision.rule for decision in load(RULE + second).decide(fired())] == [
        "harmful-request", "harmful-request", "and-again", "and-again",
    ]  # fmt: skip


def test_the_digest_is_of_the_content(load):
    assert load(RULE).digest == load(RULE).digest != load(RULE + "# a word\n").digest


def test_without_a_policy_every_probe_alerts(tiny_bundle):
    bundle = tiny_bundle()
    policy = default_policy(bundle)
    for probe in bundle.probes:
        (decision,) = policy.decide(fired(probe.name))
        assert (decision.mode, decision.action) == ("alert", AlertAction("warning"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version: 1", "version: 2", "version: must be 1, not 2."),
        ("version: 1\n", "", "version: is missing."),
        ("rules:", "rulez:", "rulez: unknown key (1 more). Did you mean 'rules'?"),
        ("name: harmful-request", "name: Harmful", "rules[0].name: 'Harmful' may only have the characters"),
        (
            "harmful_intent}",
            "harmfull_intent}",
            "rules[0].when.probe: the bundle has no probe 'harmfull_intent'. Did you mean 'harmful_intent'?",
        ),
        ("harmful_intent}", "zzz}", "the bundle has no probe 'zzz'. Known: harmful_intent, toxicity"),
        (
            "{probe: harmful_intent}",
            "{probe: toxicity, models: []}",
            "rules[0].when.models: must have at least one",
        ),
        ("when: ", "wen: ", "rules[0].wen: unknown key (1 more). Did you mean 'when'?"),
        (
            "mode: enforce",
            "mode: Enforce",
            "rules[0].mode: must be 'shadow', 'alert' or 'enforce', not 'Enforce'.",
        ),
        (
            "    mode: enforce\n",
            "",
            "rules[0].mode: is missing. Write mode: shadow, alert or enforce; there is no default.",
        ),
        (
            "mode: enforce",
            "mode: alert",
            "rules[0].actions[1].steer: rule 'harmful-request' has mode alert, which never",
        ),
        (
            "severity: critical",
            "severty: critical",
            "rules[0].actions[0].alert.severty: unknown key. Did you mean 'severity'?",
        ),
        (
            "severity: critical",
            "severity: fatal",
            "rules[0].actions[0].alert.severity: must be 'info', 'warning' or",
        ),
        ("- alert", "- alrt", "rules[0].actions[0].alrt: unknown key. Did you mean 'alert'?"),
        ("tokens: 200", "token: 200", "rules[0].actions[1].steer.token: unknown key. Did you mean 'tokens'?"),
        (
            "tokens: 200",
            "tokens: 0",
            "rules[0].actions[1].steer.tokens: must be greater than or equal to 1, not 0.",
        ),
        ("tokens: 200", "tokens: true", "rules[0].actions[1].steer.tokens: must be a valid integer"),
        (
            "vector: harmful_intent",
            "vector: sicophancy",
            "steer.vector: the bundle has no steering vector 'sicophancy'. Did you mean 'sycophancy'?",
        ),
        ("dose: -0.25", "dose: 0", "rules[0].actions[1].steer.dose: 0 changes nothing."),
        ("dose: -0.25", "dose: -1.5", "rules[0].actions[1].steer.dose: -1.5 is beyond the limit of 1."),
        ("dose: -0.25", "dose: .nan", "rules[0].actions[1].steer.dose: must be a finite number."),
        ("dose: -0.25", "dose: -.inf", "rules[0].actions[1].steer.dose: must be a finite number."),
        ("dose: -0.25", "dose: much", "rules[0].actions[1].steer.dose: must be a valid number, not 'much'."),
        ("dose: -0.25, ", "", "rules[0].actions[1].steer.dose: is missing."),
        ("      - steer", "        steer", "rules[0].actions[0]: has two actions in one item."),
        (
            "- alert: {severity: critical}",
            "- {}",
            "rules[0].actions[0]: must be an alert, steer, stop or escalate action.",
        ),
        (
            "mode: enforce",
            "mode: enforce\n    mode: shadow",
            "line 7, column 5: the key 'mode' is given twice.",
        ),
        ("mode: enforce", "mode: [enforce", "line 7, column 12: expected ',' or ']'"),
        (RULE, "just words", MAPPING),
        (RULE, "", MAPPING),
        (RULE, "version: 1\nrules: []\n", "rules: must have at least one item."),
        (RULE, "version: 1\nrules: {a: 1}\n", "rules: must be a valid list."),
        (RULE, "a: !!python/object:os.system {}\n", "line 1, column 4: could not determine a constructor"),
        (RULE, "a: \x00", "unacceptable character"),
    ],
)
def test_an_error_names_the_place_and_the_nearest_name(error, old, new, message):
    assert old in RULE
    assert message in error(RULE.replace(old, new, 1))


def test_two_rules_of_one_name_are_refused(error):
    second = RULE.split("rules:")[1]
    assert error(RULE + second) == "rules[1].name: 'harmful-request' is already the name of rules[0]."


def test_a_rule_without_actions_is_refused(error):
    text = RULE.split("    actions:")[0] + "    actions: []\n"
    assert error(text) == "rules[0].actions: must have at least one item."


def test_a_file_that_is_not_there_is_named(shared_bundle, tmp_path):
    with pytest.raises(PolicyError, match=r"none\.yaml: cannot be read"):
        load_policy(tmp_path / "none.yaml", shared_bundle)
