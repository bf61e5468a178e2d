"""The files of true and false statements, family by family."""

import re
from dataclasses import dataclass
from typing import Final

NEGATION: Final = re.compile(r"\b(?:not|never|cannot)\b|n['’]t\b", re.IGNORECASE)
"""Words that deny."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement and whether it is true."""

    text: str
    true: bool
    source: str
    topic: str
    group: str
    """Unique within the source."""
    joined: bool = False
    """It is a conjunction of two statements."""

    @property
    def negated(self) -> bool:
        """True where it denies something."""
        return NEGATION.search(self.text) is not None


@dataclass(frozen=True, slots=True)
class Family:
    source: str
    topic: str
    """Shared by families of the same entities, so that leaving a topic out leaves all of them out."""
    folder: str
    simple: tuple[str, ...]
    """Files of affirmations, then of affirmations and their negations."""
    joined: str = ""
    entity: str = ""
    """Expression whose group is what a statement is about; where it does not match, or is empty, the first words."""


_NAMED: Final = r"^(.+?) (?:is a name of|is a city in)"
_ACTS: Final = (
    r"(?:(?:do|does|has|is|was)n't|has|have|is|was|operates?|engages?|provides?|offers?|produces?|manages?)\b"
)

FAMILIES: Final = (
    Family(
        "saplma_facts", "facts", "saplma", ("facts_true_false", "neg_facts_true_false"), "conj_neg_facts_true_false"
    ),
    # The same statements under another name: empty unless SAPLMA is absent.
    Family("got_facts", "facts", "geometry_of_truth", ("facts",)),
    Family("got_cities", "cities", "geometry_of_truth", ("cities", "neg_cities"), entity=r"^The city of (.+?) is "),
    # "Smaller" is the converse of "larger": the four statements about two numbers belong together.
    Family(
        "got_larger", "numbers", "geometry_of_truth", ("larger_than", "smaller_than"),
        entity=r"^(\S+) is (?:larger|smaller) than (\S+)\.$",
    ),
    Family(
        "got_animals", "animals", "geometry_of_truth", ("animal_class",), "animal_class_conj",
        r"^the (.+?) is (?:not )?an? ",
    ),
    Family(
        "saplma_animals", "animals", "saplma", ("animals_true_false",),
        entity=r"^The (\S+(?: \S+){0,2}?) (?:has|have|is|uses|can|are|was|lays|lives)\b"
        r"|human uses for (?:the )?(.+?)(?: include|\.)",
    ),
    Family("saplma_capitals", "cities", "saplma", ("capitals_true_false",), entity=_NAMED),
    Family("saplma_cities", "cities", "saplma", ("cities_true_false",), entity=_NAMED),
    Family(
        "saplma_companies", "companies", "saplma", ("companies_true_false", "neg_companies_true_false"),
        "conj_neg_companies_true_false", rf"^(.+?) {_ACTS}",
    ),
    Family("saplma_elements", "elements", "saplma", ("elements_true_false",), entity=r"^(\S+) "),
    Family(
        "saplma_inventions", "inventions", "saplma", ("inventions_true_false",),
        entity=r"^(.+?) (?:invented|lived in) ",
    ),
    Family("saplma_generated", "generated", "saplma", ("generated_true_false",)),
    Family("got_common_claim", "general", "geometry_of_truth", ("common_claim_true_false",)),
)  # fmt: skip
