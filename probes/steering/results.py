"""Results of a steering evaluation: what ``steering.json`` holds, and its page is drawn from.

A figure that is not there is ``None``: not measured. Shares are between 0 and 1, scores in logits, doses in norms of
the residual stream.
"""

from typing import Annotated, Final, Literal

import msgspec

from probes.evaluation.metrics import Interval

FORMAT: Final = 1

Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Shift(msgspec.Struct, frozen=True):
    """A quantity of one arm, and how far it is from the unsteered arm on the same prompts."""

    mean: float
    change: Interval
    """Of the differences within prompts, with its interval by prompt; 0 of the unsteered arm."""

    @property
    def rises(self) -> bool:
        """True where the whole interval of the change lies above 0."""
        return self.change.low > 0

    @property
    def falls(self) -> bool:
        """True where it lies below."""
        return self.change.high < 0


class Outcome(msgspec.Struct, frozen=True):
    """One arm: what it did to the answers, and to what should be left alone."""

    name: str
    """Such as ``unsteered``, ``dose +0.1``, ``always``, ``policy``."""
    dose: float
    probe: Shift | None
    """Score of the answers' tokens by the concept's probe, in logits, read without steering."""
    fired: Shift | None
    """Share of answers on which that probe fires."""
    words: Shift | None
    """Score of the answers' words, in logits."""
    refused: Shift
    """Share of answers that refuse."""
    repetition: Shift
    """Share of sequences of three tokens that occurred before in the same answer."""
    perplexity: Interval | None
    """Of ordinary answers, as the ratio to unsteered."""
    accuracy: Shift | None
    """Share of facts whose true form the model finds likelier than its false one."""
    tokens: Count
    """Of all answers."""
    steered: Count
    """Rows steered before one of these tokens, or the end of an answer, was chosen."""
    triggered: Count | None
    """Prompts on which the trigger fired; ``None`` without one."""
    empty: Count
    """Answers without a token; they have no part in the scores."""
    ordinary_steered: Share
    """Of the ordinary answers' rows."""


class SteeringReport(msgspec.Struct, frozen=True):
    """``steering.json``."""

    kind: Literal["sweep", "trial"]
    """Doses side by side; or one dose, always and by policy."""
    plumbob: str
    """Version that wrote it."""
    created: str
    """UTC, ISO 8601."""
    model: str
    fingerprint: dict[str, str]
    """SHA-256 of the model's parts."""
    bundle: str
    """Its digest."""
    command: str
    vector: str
    layer: int
    hidden_norm: float
    """The unit of dose."""
    method: str
    """The method by which the vector was made."""
    concept: str | None
    """The judges of answers."""
    probe: str | None
    """That reads the answers."""
    trigger: str | None
    """The probe that sets steering off, in the policy's arm."""
    words_auroc: float | None
    """Of the words, on the concept's pairs of topics that they have not seen."""
    prompts: Count
    ordinary: Count
    """Ordinary answers whose perplexity was measured."""
    ordinary_perplexity: float
    """Of these, unsteered."""
    facts: Count
    facts_right: Share | None
    """Share that is right, unsteered."""
    outcomes: list[Outcome]
    """Unsteered first; doses ascending otherwise."""
    working: tuple[float, float] | None = None
    """Lowest and highest dose at which ordinary text is unharmed; of a sweep."""
    max_dose: float | None = None
    """The cap that follows; of a sweep."""
    notes: list[str] = []
    says: list[str] = []
    """Conclusions from the numbers, in plain sentences."""
    format: int = FORMAT
