"""The fields of a configuration, each with its place in a file, its environment variable and its flag.

A configuration is a pydantic model whose fields are values or :class:`Section` s. The docstring of a field is what
``--help``, ``plumbob config schema`` and this code say about it: a new setting is one field.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic.fields import FieldInfo

PREFIX: Final = "PLUMBOB_"
"""Begins the name of every environment variable."""
NESTED: Final = "__"
"""Between the parts of a setting's place, in a variable's name."""
NOTHING: Final = "none"
"""Stands, in any source, for a file that there is not; a file of that name is ``./none``."""


class Section(BaseModel):
    """Settings that belong together: a mapping of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    exclusive: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of fields that are two names for one thing, of which one source or another may give one."""


@dataclass(frozen=True, slots=True)
class Flag:
    """Metadata of a field that has a flag, ``--`` and its name with dashes.

    Args:
        short: A second name, as ``-b``.
        metavar: Stands for its value in ``--help``.
    """

    short: str = ""
    metavar: str | None = None


@dataclass(frozen=True, slots=True)
class Argument:
    """Metadata of a field that is given by its position on the command line.

    Args:
        metavar: Its name there.
    """

    metavar: str


def _nothing(given: Any) -> Any:
    return None if given == NOTHING else given


OptionalPath = Annotated[Path | None, BeforeValidator(_nothing)]
"""A file or a directory; ``none``: there is none."""
Port = Annotated[int, Field(ge=1, le=65535)]
"""A TCP port."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value of a configuration, or a section of it."""

    path: tuple[str, ...]
    """The keys that lead to it in a file."""
    field: FieldInfo

    @property
    def name(self) -> str:
        """Its place in a file, ``monitor.grpc_port``."""
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + NESTED.join(self.path).upper()

    @property
    def flag(self) -> str | None:
        """Its flag, if it has one."""
        has = any(isinstance(item, Flag) for item in self.field.metadata)
        return "--" + self.path[-1].replace("_", "-") if has else None

    @property
    def argument(self) -> str | None:
        """Its name on the command line, if it is given by its position."""
        return next((item.metavar for item in self.field.metadata if isinstance(item, Argument)), None)

    @property
    def secret(self) -> bool:
        """True where its value is to be shown nowhere."""
        return _mentions(self.field.annotation, SecretStr)

    @property
    def is_path(self) -> bool:
        """True where it names files, which a configuration file names relative to itself."""
        return _mentions(self.field.annotation, Path)

    @property
    def section(self) -> type[BaseModel] | None:
        """The model of its own fields, where it has such."""
        kind = self.field.annotation
        return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def settings_of(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """The values of a configuration, those of its sections included, in the order in which they are written."""
    for name, field in model.model_fields.items():
        setting = Setting((*path, name), field)
        if setting.section is None:
            yield setting
        else:
            yield from settings_of(setting.section, setting.path)


def _mentions(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_mentions(part, kind) for part in get_args(annotation))
