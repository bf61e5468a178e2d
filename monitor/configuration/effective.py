"""The one configuration that follows from all sources.

A variable outweighs the file, and a flag outweighs both. Two sources of the same weight that give the same setting
disagree, even where they give the same value: whichever were taken, the other would be read by somebody and mean
nothing.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from monitor.configuration.settings import Setting, settings_of
from monitor.configuration.sources import Kind, Layer, put
from monitor.configuration.yaml_mapping import describe, dotted, suggest
from monitor.errors import ConfigError

_WEIGHTS: Final[Mapping[Kind, int]] = {"package": -1, "file": 0, "environment variable": 1, "flag": 2}

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Effective:
    """All sources together: the values that are in force, and where each comes from."""

    model: type[BaseModel]
    values: Mapping[str, Any]
    """Nested; every section is there."""
    sources: Mapping[tuple[str, ...], Layer]
    """The source of each value that is not a default."""

    @property
    def missing(self) -> list[Setting]:
        """The settings that have no default and that no source gives."""
        return [
            setting
            for setting in settings_of(self.model)
            if setting.field.is_required() and setting.path not in self.sources
        ]

    def assuming(self, values: Mapping[tuple[str, ...], Any]) -> "Effective":
        """The same with further values, which no source has said."""
        assumed = copy.deepcopy(dict(self.values))
        for path, value in values.items():
            put(assumed, path, value)
        return replace(self, values=assumed)

    def read(self, kind: type[M], *path: str) -> M:
        """The configuration, or the section at ``path``, as a value.

        Args:
            kind: The model of it.
            path: The keys that lead to it.

        Raises:
            ConfigError: A value is wrong, or one without a default is missing; the line begins with its source.
        """
        values: Any = self.values
        for part in path:
            values = values[part]
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise self._fail(kind, path, first) from None

    def _fail(self, kind: type[BaseModel], at: tuple[str, ...], error: Any) -> ConfigError:
        place = (*at, *error["loc"])
        setting = next((one for one in settings_of(self.model) if one.path == place[: len(one.path)]), None)
        layer = None if setting is None else self.sources.get(setting.path)
        if setting is not None and error["type"] == "missing" and layer is None:
            ways = [setting.flag or setting.argument, setting.variable, f"{setting.name} in the file of --config"]
            return ConfigError(
                f"{setting.name} is not set.", f"Give it with {', '.join(filter(None, ways[:-1]))} or {ways[-1]}."
            )
        message, fix = describe(error, kind)
        if setting is not None and setting.secret:
            message = message.partition(", not ")[0]
        return ConfigError(f"{dotted(place)}: {message}.", fix) if layer is None else layer.fail(place, message, fix)


def combine(model: type[BaseModel], layers: Iterable[Layer]) -> Effective:
    """Put the sources together: what is weightier replaces what is lighter, a list as a whole.

    Raises:
        ConfigError: A key is unknown, a section is no mapping, or two sources of the same weight, or two names for
            the same thing, are given.
    """
    values, sources = _sections(model), dict[tuple[str, ...], Layer]()
    for layer in sorted(layers, key=lambda layer: _WEIGHTS[layer.kind]):
        for path, value in _leaves(model, layer):
            before = sources.get(path)
            if before is not None and before.kind == layer.kind:
                raise ConfigError(f"{before.label} and {layer.label} both give {dotted(path)}.", "Leave one out.")
            sources[path] = layer
            put(values, path, value)
    _require_one_name(model, (), values, sources)
    return Effective(model, values, sources)


def _leaves(model: type[BaseModel], layer: Layer) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each value that a layer gives, and its place."""

    def within(section: type[BaseModel], values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Any]:
        for key, value in values.items():
            place = (*path, str(key))
            field = section.model_fields.get(key)
            if field is None:
                same = [setting.name for setting in settings_of(model) if setting.path[-1] == key]
                fix = f"Did you mean '{same[-1]}'?" if same else suggest(key, section.model_fields)
                raise layer.fail(place, "unknown key", fix)
            inner = Setting(place, field).section
            if inner is None:
                yield place, value
            elif isinstance(value, Mapping):
                yield from within(inner, value, place)
            elif value is not None:
                raise layer.fail(place, "must be a mapping of keys to values")

    return within(model, layer.values, ())


def _require_one_name(
    model: type[BaseModel], path: tuple[str, ...], values: Mapping[str, Any], sources: Mapping[tuple[str, ...], Layer]
) -> None:
    """Raise ConfigError where two names of one thing both have a value."""
    for names in getattr(model, "exclusive", ()):
        given = [f"{dotted((*path, name))} of {sources[*path, name].label}" for name in names if values.get(name)]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} are two names for one thing.", "Leave one out.")
    for name, field in model.model_fields.items():
        if (section := Setting((*path, name), field).section) is not None:
            _require_one_name(section, (*path, name), values[name], sources)


def _sections(model: type[BaseModel]) -> dict[str, Any]:
    """A mapping with nothing in it but an empty one for each section."""
    found = ((name, Setting((name,), field).section) for name, field in model.model_fields.items())
    return {name: _sections(section) for name, section in found if section is not None}
