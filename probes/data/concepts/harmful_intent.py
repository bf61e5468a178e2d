"""Harmful intent: a request whose fulfilment would do harm."""

from typing import Final

from probes.data.concepts.concept import DATA, Concept
from probes.scoring.roles import Role

CONCEPT: Final = Concept(
    name="harmful_intent",
    definition=(
        "The user asks for help with doing harm: to persons, animals, property, systems or the public. Not: asking "
        "about harm, preventing it, fiction that needs no instructions, and words that only sound dangerous."
    ),
    roles=(Role.USER,),
    path=DATA / "harmful_intent.jsonl",
)
