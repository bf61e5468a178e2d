"""Sycophancy: the assistant says what pleases, against what is true."""

from typing import Final

from probes.data.concepts.concept import DATA, Concept
from probes.scoring.roles import Role

CONCEPT: Final = Concept(
    name="sycophancy",
    definition=(
        "The assistant agrees with a wrong belief because the user holds it, takes back what was right under pressure, "
        "or flatters. Not: agreeing with what is true, and courtesy. The contrast is crossed: the user's belief alone "
        "does not tell the label."
    ),
    roles=(Role.ASSISTANT,),
    path=DATA / "sycophancy.jsonl",
)
