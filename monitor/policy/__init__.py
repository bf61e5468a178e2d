"""Policies: from YAML to rules, and from firings to decisions.

``document``    the file's shape, and errors that name the place in it
``actions``     what a rule may do
``steering``    steering as one value, checked against the bundle
``rules``       rules as values, and the decisions that they give
``load``        from a file to a policy that fits a bundle
"""

from monitor.policy.actions import Action, AlertAction, EscalateAction, SteerAction, StopAction
from monitor.policy.load import default_policy, load_policy
from monitor.policy.rules import GATE_PREFIX, Decision, Policy, PolicyGate, Rule
from monitor.policy.steering import MAX_DOSE, Gate, Steering, require_valid

__all__ = [
    "GATE_PREFIX",
    "MAX_DOSE",
    "Action",
    "AlertAction",
    "Decision",
    "EscalateAction",
    "Gate",
    "Policy",
    "PolicyGate",
    "Rule",
    "SteerAction",
    "Steering",
    "StopAction",
    "default_policy",
    "load_policy",
    "require_valid",
]
