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
              streak: 2                   # averages in a row that must reach the threshold
          - escalate: {}                  # marks the request for review and keeps its trace
          - stop: {message: "I cannot go on with this."}

``release`` is a margin in logits and not a share of the threshold, which may be zero or below it. ``fail`` says what
becomes of a generation that cannot be steered, since the engine refuses the order or cannot be reached: with ``open``,
the default, it goes on unsteered, with ``closed`` it is stopped with ``message``. Either is told. Where every rule is
held to shadow, nothing is stopped for it either.
"""

import types
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Final, Literal, NoReturn, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from monitor.errors import PolicyError
from monitor.events import Mode, Severity

MESSAGE_CHARACTERS: Final = 1000
"""What ``stop`` may say: a refusal, not a page, since every token of it is a step of the engine."""


class _Strict(BaseModel):
    # Strict: YAML has its own types, and "true" is neither a dose nor a number of tokens.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AlertSpec(_Strict):
    """``alert``."""

    severity: Severity = "warning"


class ReleaseSpec(_Strict):
    """``release``: exactly one of ``margin`` and ``logits``."""

    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    logits: Annotated[float, Field(allow_inf_nan=False)] | None = None
    streak: Annotated[int, Field(ge=1)] = 1


class SteerSpec(_Strict):
    """``steer``: exactly one of ``dose``, ``ablate`` and ``clamp``."""

    vector: str
    dose: Annotated[float, Field(allow_inf_nan=False)] | None = None
    ablate: bool = False
    clamp: (
        Annotated[list[Annotated[float, Field(allow_inf_nan=False)] | None], Field(min_length=2, max_length=2)] | None
    ) = None
    tokens: Annotated[int, Field(ge=1)] | None = None
    gate: bool = False
    hold: Annotated[int, Field(ge=0)] | None = None
    release: ReleaseSpec | None = None
    streak: Annotated[int, Field(ge=1)] | None = None
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    half_life: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    min_tokens: Annotated[int, Field(ge=1)] | None = None
    fail: Literal["open", "closed"] = "open"
    message: Annotated[str, Field(max_length=MESSAGE_CHARACTERS)] | None = None


class StopSpec(_Strict):
    """``stop``."""

    message: Annotated[str, Field(max_length=MESSAGE_CHARACTERS)]


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
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        path = "".join(parts).lstrip(".")
        raise PolicyError(": ".join(filter(None, (self.file, path, f"{message}."))), fix)


def parse(text: str, name: str) -> PolicySpec:
    """Read a policy file.

    Args:
        text: Its content.
        name: Its path, for errors.

    Raises:
        PolicyError: It is not YAML, or not of the shape above.
    """
    try:
        content = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "the file"
        raise PolicyError(f"{name}: {place}: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise PolicyError(f"{name}: {' '.join(str(error).split())}.") from error
    except (ValueError, RecursionError) as error:
        # PyYAML lets what its constructors and its own recursion raise pass: a date that does not exist, deep nesting.
        raise PolicyError(f"{name}: cannot be read as YAML: {error}.") from error
    if not isinstance(content, dict):
        Place(name).fail("must be a mapping with the keys version and rules")
    try:
        return PolicySpec.model_validate(content)
    except ValidationError as error:
        # An unknown key first: it may be what is missing, misspelt.
        errors = error.errors(include_url=False)
        first, *others = sorted(errors, key=lambda item: item["type"] != "extra_forbidden")
        message, fix = _describe(first)
        more = f" ({len(others)} more)" if others else ""
        Place(name, first["loc"]).fail(message + more, fix)


def suggest(word: object, known: Iterable[str]) -> str:
    """The known name that is nearest to ``word``, as a question; without one, all of them."""
    known = list(known)
    if nearest := get_close_matches(str(word), known, n=1):
        return f"Did you mean '{nearest[0]}'?"
    return f"Known: {', '.join(known)}." if known else "There is none."


def _describe(error: ErrorDetails) -> tuple[str, str]:
    """An error of pydantic in words, and what to do."""
    context, given = error.get("ctx", {}), error["input"]
    match error["type"]:
        case "extra_forbidden":
            return "unknown key", suggest(error["loc"][-1], _keys(error["loc"][:-1]))
        case "missing":
            return "is missing", _missing(str(error["loc"][-1]))
        case "literal_error":
            return f"must be {context['expected']}, not {given!r}", ""
        case "string_pattern_mismatch":
            return f"{given!r} may only have the characters a-z, 0-9 and -", ""
        case "too_short" | "too_long" if context.get("max_length") == 2 or context.get("min_length") == 2:
            return "must be a lower and an upper bound", "Write null for one that there is not."
        case "too_short":
            return "must have at least one item", ""
        case "finite_number":
            return "must be a finite number", ""
        case _:
            message = error["msg"].replace("Input should be ", "must be ")
            return f"{message}, not {given!r}" if isinstance(given, str | int | float) else message, ""


def _missing(key: str) -> str:
    return "Write mode: shadow, alert or enforce; there is no default." if key == "mode" else ""


def _keys(path: Iterable[str | int]) -> list[str]:
    """The keys that a mapping at this place may have."""
    kind: Any = PolicySpec
    for part in path:
        kind = _within(kind.model_fields[part].annotation) if isinstance(part, str) else kind
    return list(kind.model_fields)


def _within(annotation: Any) -> Any:
    """The model inside of ``list[Model]`` or ``Model | None``."""
    while get_origin(annotation) in (list, types.UnionType, Annotated):
        annotation = get_args(annotation)[0]
    return annotation


class _Loader(yaml.SafeLoader):
    """YAML where a key given twice is an error: the second would silently undo the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key '{key.value}' is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)
