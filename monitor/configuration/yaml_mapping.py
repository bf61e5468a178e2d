"""YAML files that people write: read without surprises, and refused in one line that names the place in them."""

import types
from collections.abc import Hashable, Iterable
from difflib import get_close_matches
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from probes.errors import PlumbobError


def read_mapping(
    text: str, name: str, error: type[PlumbobError], shape: str = "a mapping of keys to values"
) -> dict[str, Any]:
    """Read YAML whose outermost node is a mapping; an empty file is an empty one.

    Args:
        text: The content of the file.
        name: Its path, for errors.
        error: The class of what is raised.
        shape: A mapping, in the words of its readers.

    Raises:
        PlumbobError: It is not YAML, has a key twice, or is something else; of class ``error``.
    """
    try:
        content = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as wrong:
        mark = wrong.problem_mark or wrong.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "the file"
        raise error(f"{name}: {place}: {wrong.problem or wrong.context}.") from wrong
    except yaml.YAMLError as wrong:
        raise error(f"{name}: {' '.join(str(wrong).split())}.") from wrong
    except (ValueError, RecursionError) as wrong:
        # PyYAML lets what its constructors and its own recursion raise pass: a date that does not exist, deep nesting.
        raise error(f"{name}: cannot be read as YAML: {wrong}.") from wrong
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise error(f"{name}: must be {shape}.")
    return content


def suggest(word: object, known: Iterable[str]) -> str:
    """The known name that is nearest to ``word``, as a question; without one, all of them."""
    known = list(known)
    if nearest := get_close_matches(str(word), known, n=1):
        return f"Did you mean '{nearest[0]}'?"
    return f"Known: {', '.join(known)}." if known else "There is none."


def dotted(path: Iterable[str | int]) -> str:
    """A place in a document: ``rules[0].when``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def describe(error: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    """Say an error of pydantic in words.

    Args:
        error: One of those that were found.
        model: Of the whole document.

    Returns:
        What is wrong with the value at ``error["loc"]``, and what to do about it, if more is known than that.
    """
    context, given = error.get("ctx", {}), error["input"]
    match error["type"]:
        case "extra_forbidden":
            return "unknown key", suggest(error["loc"][-1], _keys(model, error["loc"][:-1]))
        case "missing":
            return "is missing", ""
        case "literal_error" | "enum":
            return f"must be {context['expected']}, not {given!r}", ""
        case "too_short":
            return "must have at least one item", ""
        case "finite_number":
            return "must be a finite number", ""
        case "value_error":
            return str(context["error"]), ""
        case _:
            message = error["msg"].replace("Input should be ", "must be ")
            return f"{message}, not {given!r}" if isinstance(given, str | int | float) else message, ""


def model_within(annotation: Any) -> Any:
    """The model inside of ``list[Model]`` or ``Model | None``; the annotation itself where it is neither."""
    while get_origin(annotation) in (list, tuple, types.UnionType, Union, Annotated):
        annotation = get_args(annotation)[0]
    return annotation


def _keys(model: type[BaseModel], path: Iterable[str | int]) -> list[str]:
    """The keys that a mapping at this place may have."""
    kind: Any = model
    for part in path:
        kind = model_within(kind.model_fields[part].annotation) if isinstance(part, str) else kind
    return list(kind.model_fields)


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
