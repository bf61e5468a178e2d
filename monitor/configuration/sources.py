"""What each source says, and the one configuration that follows.

A file, each environment variable and each flag are a :class:`Layer`. A variable outweighs the file, and a flag
outweighs both. Two layers of the same weight that give the same setting disagree, even where they give the same value:
whichever were taken, one of them would be read by somebody and mean nothing.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError

from monitor.configuration.settings import NESTED, NOTHING, PREFIX, Section, Setting, settings_of
from monitor.configuration.yaml_mapping import describe, dotted, read_mapping, suggest
from monitor.errors import ConfigError

Kind = Literal["file", "environment variable", "flag"]
"""Of a source, from the lightest to the weightiest."""

_WEIGHTS: Final[Mapping[Kind, int]] = {"file": 0, "environment variable": 1, "flag": 2}
_OTHERS: Final = frozenset({"PLUMBOB_CACHE", "PLUMBOB_ENGINE"})
"""Variables of ours that are no settings: the cache directory, and what an engine hands down to its processes."""
_SERVICE_LINK: Final = re.compile(r".*_SERVICE_(HOST|PORT\w*)|.*_PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?")
"""Variables that Kubernetes sets in every container for a Service called plumbob or plumbob-anything."""
_SERVICE_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Layer:
    """What one source says."""

    kind: Kind
    label: str
    """Names it: the file's path, the variable, the flag."""
    values: Mapping[str, Any]
    """Nested as the configuration is; unchecked."""

    def fail(self, path: Iterable[str | int], message: str, fix: str = "") -> ConfigError:
        """The error that names the source and, of a file, the place in it."""
        place = dotted(path) if self.kind == "file" else ""
        return ConfigError(": ".join(filter(None, (self.label, place, f"{message}."))), fix)


def from_file(model: type[BaseModel], path: Path) -> Layer:
    """Read a configuration file; relative paths in it are relative to its directory.

    Raises:
        ConfigError: It cannot be read, or is not YAML whose outermost node is a mapping.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}.", "Name a configuration file with --config.") from error
    values = read_mapping(text, str(path), ConfigError)
    for setting in settings_of(model):
        if setting.is_path:
            _anchor(values, setting.path, path.absolute().parent)
    return Layer("file", str(path), values)


def from_environment(model: type[BaseSettings], environ: Mapping[str, str] | None = None) -> list[Layer]:
    """What each variable says; an empty one is as one that is not set.

    Args:
        model: The whole configuration.
        environ: The environment; ``None``: this process's.

    Raises:
        ConfigError: A variable has our prefix and names no setting, or is not JSON where that is due.
    """
    source, layers = EnvSettingsSource(model, env_prefix=PREFIX, env_nested_delimiter=NESTED), list[Layer]()
    for name, value in sorted((os.environ if environ is None else environ).items()):
        if not value or not _is_setting(name, value):
            continue
        # One at a time, so that what is wrong is known by its variable.
        source.env_vars = {name.lower(): value}
        layer = Layer("environment variable", name, {})
        path = name.removeprefix(PREFIX).lower().split(NESTED)
        _require_known(model, layer, path)
        try:
            layers.append(Layer(layer.kind, name, source()))
        except SettingsError as error:
            raise layer.fail((), f"must be JSON, not {value!r}", 'Write a list as ["a", "b"].') from error
    return layers


def from_flag(model: type[BaseModel], flag: str, value: Any) -> Layer:
    """What a flag says, of every setting that has it."""
    values: dict[str, Any] = {}
    for setting in settings_of(model):
        if setting.flag == flag:
            _put(values, setting.path, value)
    return Layer("flag", flag, values)


@dataclass(frozen=True, slots=True)
class Effective:
    """What all sources say together."""

    model: type[BaseModel]
    values: Mapping[str, Any]
    """Nested; every section is there."""
    sources: Mapping[tuple[str, ...], Layer]
    """Where each value that is not a default comes from."""

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
            ways = [setting.flag, setting.variable, f"{setting.name} in the file of --config"]
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
            _put(values, path, value)
    _require_one_name(model, (), sources)
    return Effective(model, values, sources)


def as_variables(section: Section, path: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment from which a process reads this very section.

    Args:
        section: What it is to read.
        path: The keys that lead to the section.
    """
    variables: dict[str, str] = {}
    for setting in settings_of(type(section)):
        value: Any = section
        for part in setting.path:
            value = getattr(value, part)
        if value is None and setting.field.default is None:
            continue
        variables[Setting((*path, *setting.path), setting.field).variable] = _as_text(value)
    return variables


def without_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without settings, for a process that is told all of them or that they do not concern."""
    return {name: value for name, value in environ.items() if not _is_setting(name, value)}


def _as_text(value: Any) -> str:
    match value:
        case None:
            return NOTHING
        case SecretStr():
            return value.get_secret_value()
        case tuple() | list():
            return json.dumps([str(item) for item in value])
        case bool():
            return str(value).lower()
        case _:
            return str(value)


def _is_setting(name: str, value: str) -> bool:
    """Whether a variable is meant to be a setting."""
    if not name.startswith(PREFIX) or name in _OTHERS or _SERVICE_LINK.fullmatch(name):
        return False
    return not (name.endswith("_PORT") and _SERVICE_ADDRESS.match(value))


def _require_known(model: type[BaseModel], layer: Layer, path: list[str]) -> None:
    settings = list(settings_of(model))
    if not any(list(setting.path[: len(path)]) == path for setting in settings):
        same = [setting.variable for setting in settings if setting.path[-1] == path[-1]]
        known = [setting.variable for setting in settings]
        raise layer.fail((), "is no setting", f"Did you mean '{same[-1]}'?" if same else suggest(layer.label, known))


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


def _require_one_name(model: type[BaseModel], path: tuple[str, ...], sources: Mapping[tuple[str, ...], Layer]) -> None:
    """Raise ConfigError where two names of one thing are both given."""
    for one, other in getattr(model, "exclusive", ()):
        if (first := sources.get((*path, one))) and (second := sources.get((*path, other))):
            raise ConfigError(
                f"{dotted((*path, one))} of {first.label} and {dotted((*path, other))} of {second.label} "
                "are two names for one thing.",
                "Leave one out.",
            )
    for name, field in model.model_fields.items():
        if (section := Setting((*path, name), field).section) is not None:
            _require_one_name(section, (*path, name), sources)


def _sections(model: type[BaseModel]) -> dict[str, Any]:
    """A mapping with nothing in it but an empty one for each section."""
    found = ((name, Setting((name,), field).section) for name, field in model.model_fields.items())
    return {name: _sections(section) for name, section in found if section is not None}


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
    values[path[-1]] = value


def _anchor(values: Any, path: tuple[str, ...], directory: Path) -> None:
    """Make the paths at one place of a file absolute; what is no path there is refused later, and left alone."""
    for key in path[:-1]:
        values = values.get(key) if isinstance(values, dict) else None
    if isinstance(values, dict) and path[-1] in values:
        given = values[path[-1]]
        values[path[-1]] = (
            [_absolute(item, directory) for item in given] if isinstance(given, list) else _absolute(given, directory)
        )


def _absolute(given: Any, directory: Path) -> Any:
    return str(directory / given) if isinstance(given, str) and given != NOTHING else given
