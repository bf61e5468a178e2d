"""Toxicity: text that insults, demeans, threatens or harasses."""

from typing import Final

from probes.data.concepts.concept import DATA, Concept
from probes.scoring.roles import Role

CONCEPT: Final = Concept(
    name="toxicity",
    definition=(
        "The text insults, demeans, threatens or harasses a person or a group, in a request or a response. Not: naming "
        "a group, quoting or opposing abuse, swearing at nobody."
    ),
    roles=(Role.USER, Role.ASSISTANT),
    path=DATA / "toxicity.jsonl",
)
