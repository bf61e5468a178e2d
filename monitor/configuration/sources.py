"""Sources of settings: a file, each environment variable and each flag is a :class:`Layer`."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, SecretStr
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError

from monitor.configuration.settings import NESTED, NOTHING, PREFIX, Section, Setting, settings_of
from monitor.configuration.yaml_mapping import dotted, read_mapping, suggest
from monitor.errors import ConfigError

Kind = Literal["package", "file", "environment variable", "flag"]
"""The kinds of sources, from the lightest to the weightiest; the package ships one bundle."""

_OTHERS: Final = frozenset({"PLUMBOB_CACHE", "PLUMBOB_ENGINE"})
"""Variables of ours that are no settings: the cache directory, and what an engine hands down to its processes."""
_SERVICE_LINK: Final = re.compile(r".*_SERVICE_(HOST|PORT\w*)|.*_PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?")
"""Variables that Kubernetes sets in every container for a Service called plumbob or plumbob-anything."""
_SERVICE_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class Layer:
    """The settings of one source."""

    kind: Kind
    label: str
    """Names it: the file's path, the variable, the flag."""
    values: Mapping[str, Any]
    """Nested as the configuration is; unchecked."""

    @property
    def said(self) -> str:
        """Kind and name, as ``flag --host``."""
        return f"{self.kind} {self.label}"

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
    """Read each variable; an empty one is as one that is not set.

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
    """Give the setting that has a flag its value."""
    values: dict[str, Any] = {}
    for setting in settings_of(model):
        if setting.flag == flag:
            put(values, setting.path, value)
    return Layer("flag", flag, values)


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
    """An environment without settings, for a process that is given all of them otherwise, or that needs none."""
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
    """Tell a variable that is meant to be a setting from others."""
    if not name.startswith(PREFIX) or name in _OTHERS or _SERVICE_LINK.fullmatch(name):
        return False
    return not (name.endswith("_PORT") and _SERVICE_ADDRESS.match(value))


def _require_known(model: type[BaseModel], layer: Layer, path: list[str]) -> None:
    settings = list(settings_of(model))
    if not any(list(setting.path[: len(path)]) == path for setting in settings):
        same = [setting.variable for setting in settings if setting.path[-1] == path[-1]]
        known = [setting.variable for setting in settings]
        raise layer.fail((), "is no setting", f"Did you mean '{same[-1]}'?" if same else suggest(layer.label, known))


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


def put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set a value in nested mappings, which are made where there are none."""
    for key in path[:-1]:
        values = values.setdefault(key, {})
    values[path[-1]] = value
