"""What to do when a probe fires: YAML to rules to decisions.

``document``    the file's shape, and errors that name the place in it
``deeds``       what a rule may do
``rules``       rules as values, and the decisions that they give
``load``        from a file to a policy that fits a bundle
``steering``    what a rule's steering says, checked against the bundle
"""

from monitor.policy.deeds import Action, AlertAction, EscalateAction, Gate, SteerAction, StopAction
from monitor.policy.load import default_policy, load_policy
from monitor.policy.rules import GATE_PREFIX, Decision, Policy, PolicyGate, Rule
from monitor.policy.steering import MAX_DOSE

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
    "StopAction",
    "default_policy",
    "load_policy",
]
