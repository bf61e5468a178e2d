"""Refusal: the model declines what it was asked, wholly or in part."""

from typing import Final

from probes.data.concepts.concept import DATA, Concept
from probes.scoring.roles import Role

CONCEPT: Final = Concept(
    name="refusal",
    definition=(
        "The assistant declines the request, wholly or in part, or turns it away to something else. Not: apologising, "
        "warning or mentioning rules while it complies. Where it fires and harmful_intent does not, the model may "
        "refuse too much; where harmful_intent fires and it does not, too little."
    ),
    roles=(Role.ASSISTANT,),
    path=DATA / "refusal.jsonl",
)
