"""The shape of a policy file, and errors that name the place in it.

::

    version: 1
    max_dose: 0.5                         # optional: no rule may order more, either way
    rules:
      - name: harmful-request             # unique; the label of metrics
        when: {probe: harmful_intent}     # at the bundle's threshold; optionally models: ["llama-*"]
        mode: enforce                     # shadow, alert or enforce
        actions:
          - alert: {severity: critical}
          - steer: {vector: harmful_intent, dose: -0.25, tokens: 200, fail: closed, message: "I must stop here."}
      - name: at-the-very-token
        when: {probe: sycophancy}
        mode: enforce
        actions:
          - steer:                        # dose: a number, ablate: true, or clamp: [low, high] in norms of the stream
              vector: sycophancy
              clamp: [null, 0.05]
              gate: true                  # the engine decides; without it, the monitor orders from the next step on
              tokens: 200                 # the most that are steered of a request
              hold: 16                    # so many after the last token over the threshold
              release: {margin: 1.0, streak: 4}   # or {logits: 0.5}: until 4 averages in a row are so far below it
              threshold: 0.8              # in logits; without it, the gate opens where the probe fires
          - escalate: {}                  # marks the request for review and keeps its trace
          - stop: {message: "I cannot go on with this."}
      - name: nothing-of-the-answer
        when: {probe: harmful_intent}
        mode: enforce
        actions:
          - stop: {message: "I cannot help with this.", gate: true}   # the first token waits for the prompt's verdict

``release`` is a margin in logits and not a share of the threshold, which may be zero or below it. ``fail`` says what
becomes of a generation that cannot be steered, since the engine refuses the order or cannot be reached: with ``open``,
the default, it goes on unsteered, with ``closed`` it is stopped with ``message``, and either is recorded. Where every
rule is held to shadow, nothing is stopped for it either.
"""

from dataclasses import dataclass
from typing import Annotated, Final, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from monitor.configuration.yaml_mapping import describe, dotted, read_mapping
from monitor.errors import PolicyError
from monitor.events import Mode, Severity

MESSAGE_CHARACTERS: Final = 1000
"""Length of the message of ``stop``: a refusal, not a page."""


class _Strict(BaseModel):
    # Strict: YAML has its own types, and "true" is neither a dose nor a number of tokens.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AlertSpec(_Strict):
    """``alert``."""

    severity: Severity = "warning"


class ReleaseSpec(_Strict):
    """``release``: exactly one of ``margin`` and ``logits``."""

    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    logits: float | None = None
    streak: int = 1


class SteerSpec(_Strict):
    """``steer``: exactly one of ``dose``, ``ablate`` and ``clamp``, whose numbers
    :func:`monitor.policy.steering.require_valid` checks.
    """

    vector: str
    dose: float | None = None
    ablate: bool = False
    clamp: Annotated[list[float | None], Field(min_length=2, max_length=2)] | None = None
    tokens: int | None = None
    gate: bool = False
    hold: int | None = None
    release: ReleaseSpec | None = None
    threshold: float | None = None
    fail: Literal["open", "closed"] = "open"
    message: Annotated[str, Field(max_length=MESSAGE_CHARACTERS)] | None = None


class StopSpec(_Strict):
    """``stop``."""

    message: Annotated[str, Field(max_length=MESSAGE_CHARACTERS)]
    gate: bool = False


class EscalateSpec(_Strict):
    """``escalate``."""


class ActionSpec(_Strict):
    """One item of ``actions``: exactly one of its keys."""

    alert: AlertSpec | None = None
    steer: SteerSpec | None = None
    stop: StopSpec | None = None
    escalate: EscalateSpec | None = None


class WhenSpec(_Strict):
    """``when``."""

    probe: str
    models: Annotated[list[str], Field(min_length=1)] | None = None


class RuleSpec(_Strict):
    """One item of ``rules``."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$", max_length=64)]
    when: WhenSpec
    mode: Mode
    actions: Annotated[list[ActionSpec], Field(min_length=1)]


class PolicySpec(_Strict):
    """The file."""

    version: Literal[1]
    max_dose: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    rules: Annotated[list[RuleSpec], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a policy file, for errors."""

    file: str
    path: tuple[str | int, ...] = ()
    """The keys and indices that lead there."""

    def at(self, *parts: str | int) -> "Place":
        """A place within this one."""
        return Place(self.file, (*self.path, *parts))

    def fail(self, message: str, fix: str = "") -> NoReturn:
        """Raise a PolicyError: the file, the place, and what is wrong, in one line."""
        raise PolicyError(": ".join(filter(None, (self.file, dotted(self.path), f"{message}."))), fix)


def parse(text: str, name: str) -> PolicySpec:
    """Read a policy file.

    Args:
        text: Its content.
        name: Its path, for errors.

    Raises:
        PolicyError: It is not YAML, or not of the shape above.
    """
    shape = "a mapping with the keys version and rules"
    content = read_mapping(text, name, PolicyError, shape)
    if not content:
        Place(name).fail(f"must be {shape}")
    try:
        return PolicySpec.model_validate(content)
    except ValidationError as error:
        # An unknown key first: it may be what is missing, misspelt.
        errors = error.errors(include_url=False)
        first, *others = sorted(errors, key=lambda item: item["type"] != "extra_forbidden")
        message, fix = _describe(first)
        more = f" ({len(others)} more)" if others else ""
        Place(name, first["loc"]).fail(message + more, fix)


def _describe(error: ErrorDetails) -> tuple[str, str]:
    """An error of pydantic in the words of a policy, and what to do."""
    context, given = error.get("ctx", {}), error["input"]
    match error["type"]:
        case "missing" if error["loc"][-1] == "mode":
            return "is missing", "Write mode: shadow, alert or enforce; there is no default."
        case "string_pattern_mismatch":
            return f"{given!r} may only have the characters a-z, 0-9 and -", ""
        case "too_short" | "too_long" if context.get("max_length") == 2 or context.get("min_length") == 2:
            return "must be a lower and an upper bound", "Write null for one that there is not."
        case _:
            return describe(error, PolicySpec)
