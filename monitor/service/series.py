"""The series that a policy's rules will count in, so that they are there with 0 before anything has happened."""

from monitor.policy import AlertAction, EscalateAction, Policy, SteerAction, StopAction
from monitor.telemetry.collector import Expected


def expected_series(policy: Policy) -> Expected:
    """Labels of counters, without the model, by the counter's name."""
    expected: Expected = {"alerts": [], "interventions": [], "escalations": []}
    for rule in policy.rules:
        for action in rule.actions:
            match action:
                case AlertAction(severity):
                    expected["alerts"].append((rule.name, severity, rule.mode))
                case EscalateAction():
                    expected["escalations"].append((rule.name, rule.mode))
                case SteerAction() | StopAction():
                    vector = action.steering.vector if isinstance(action, SteerAction) else ""
                    expected["interventions"] += [(rule.name, vector, rule.mode, sent) for sent in (True, False)]
    return expected
