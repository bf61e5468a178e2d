"""Flags of the settings: made from the fields of the configuration, so that a new setting is one field."""

import functools
import inspect
import types
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, Union, get_args, get_origin

import annotated_types
import typer

from monitor.configuration import Flag, Layer, Setting, from_flag, settings_of
from monitor.supervisor.config import ServeConfig

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Configuration file; what PLUMBOB_ variables and flags say outweighs it."
    ),
]

_FLAGS: Final = "flags"
"""The parameter that a command takes them by."""


def takes_settings(section: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of all settings, or of one section of them.

    The command has a parameter ``flags``: the layers of those that were given.

    Args:
        section: Key of the section.
    """
    settings: dict[str, Setting] = {}
    for setting in settings_of(ServeConfig):
        if setting.flag is not None and section in (None, setting.path[0]):
            settings.setdefault(setting.flag, setting)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(**given: Any) -> None:
            flags: list[Layer] = []
            for flag, setting in settings.items():
                # A flag that may be repeated, and was not given, is an empty list.
                if (value := given.pop(_parameter_name(setting))) is not None and value != []:
                    flags.append(from_flag(ServeConfig, flag, value))
            command(**given, flags=flags)

        own = [parameter for parameter in inspect.signature(command).parameters.values() if parameter.name != _FLAGS]
        parameters = [*own, *(_parameter(setting) for setting in settings.values())]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate


def _parameter_name(setting: Setting) -> str:
    return f"set_{setting.path[-1]}"


def _parameter(setting: Setting) -> inspect.Parameter:
    """The parameter of a command from which typer makes the flag; ``None`` where it is not given."""
    name, mark = setting.flag or "", next(item for item in setting.field.metadata if isinstance(item, Flag))
    kind = _kind(setting.field.annotation)
    bounds: dict[str, Any] = {}
    for constraint in setting.field.metadata if kind in (int, float) else ():
        if isinstance(constraint, annotated_types.Ge):
            bounds["min"] = constraint.ge
        elif isinstance(constraint, annotated_types.Le):
            bounds["max"] = constraint.le
    option = typer.Option(
        *([f"{name}/--no-{name.removeprefix('--')}"] if kind is bool else filter(None, [name, mark.short])),
        help=_help(setting),
        metavar=mark.metavar or ("PATH" if setting.is_path else None),
        show_default=_default(setting) or False,
        **bounds,
    )
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(
        _parameter_name(setting), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _kind(annotation: Any) -> Any:
    """The type that the command line reads: a tuple of any length is a list, of a flag that may be repeated."""
    if get_origin(annotation) in (types.UnionType, Union):
        return next(_kind(part) for part in get_args(annotation) if part is not types.NoneType)
    if get_origin(annotation) is tuple:
        return list[_kind(get_args(annotation)[0])]
    # A path would lose what tells ./none from none.
    return str if annotation is Path else annotation


def _help(setting: Setting) -> str:
    text = setting.field.description or ""
    return f"{text.removesuffix('.')}; may be repeated." if get_origin(setting.field.annotation) is tuple else text


def _default(setting: Setting) -> str:
    """The default as it is typed; empty where there is none to type."""
    default = setting.field.default
    if default is True:
        return (setting.flag or "").removeprefix("--")
    if default is False or not isinstance(default, int | str):
        return ""
    return str(default.value if isinstance(default, Enum) else default)
