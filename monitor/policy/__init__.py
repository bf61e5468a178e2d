"""What to do when a probe fires: YAML to rules to decisions.

``document``    the file's shape, and errors that name the place in it
``rules``       rules as values, and the decisions that they give
``load``        from a file to a policy that fits a bundle
"""

from monitor.policy.load import MAX_DOSE, default_policy, load_policy
from monitor.policy.rules import Action, AlertAction, Decision, Policy, Rule, SteerAction

__all__ = [
    "MAX_DOSE",
    "Action",
    "AlertAction",
    "Decision",
    "Policy",
    "Rule",
    "SteerAction",
    "default_policy",
    "load_policy",
]
