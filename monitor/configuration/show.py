"""The effective configuration as YAML, each value with its source beside it; no secret is in it."""

from collections.abc import Iterator
from typing import Any, Final

import yaml
from pydantic import BaseModel

from monitor.configuration.effective import Effective
from monitor.configuration.settings import Setting

_COLUMN: Final = 44
"""At which sources begin, where the value leaves room."""
_PLACEHOLDER: Final = "-"
"""Stands for what is missing while the rest is read."""


def as_yaml(effective: Effective, kind: type[BaseModel]) -> Iterator[str]:
    """The lines of a file that would configure the same, but for secrets and what is not set.

    Args:
        effective: What all sources say.
        kind: The whole configuration.

    Raises:
        ConfigError: A value is wrong.
    """
    missing = frozenset(setting.path for setting in effective.missing)
    value = effective.assuming(dict.fromkeys(missing, _PLACEHOLDER)).read(kind)
    yield from _lines(effective, value, (), missing)


def _lines(
    effective: Effective, value: BaseModel, path: tuple[str, ...], missing: frozenset[tuple[str, ...]]
) -> Iterator[str]:
    indent = "  " * len(path)
    for name, field in type(value).model_fields.items():
        setting, one = Setting((*path, name), field), getattr(value, name)
        source = effective.sources.get(setting.path)
        if isinstance(one, BaseModel):
            yield f"{indent}{name}:"
            yield from _lines(effective, one, setting.path, missing)
        elif setting.path in missing:
            yield f"{indent}# {name}: not set, and needed"
        elif setting.secret and one is not None:
            yield f"{indent}# {name}: a secret, not shown  # {source.said if source else 'default'}"
        else:
            line = f"{indent}{name}: {_scalar(one)}"
            yield f"{line:<{_COLUMN}}  # {source.said if source else 'default'}"


def _scalar(value: Any) -> str:
    plain = [str(item) for item in value] if isinstance(value, tuple) else value
    if not isinstance(plain, list | bool | int | float | None):
        plain = str(plain)
    written = yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True)
    return written.removesuffix("\n").removesuffix("\n...")
