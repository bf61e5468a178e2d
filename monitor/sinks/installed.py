"""Sinks by name: entry points of the group ``plumbob.sinks``, those that ship and those of other packages alike.

An entry point names what makes the sink when called without arguments: a class, or a function that reads its settings
where they are. So a new sink is one module and one line of its package's metadata.
"""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from monitor.configuration.yaml_mapping import suggest
from monitor.errors import ConfigError
from monitor.sinks.base import Sink

GROUP: Final = "plumbob.sinks"


def installed_sinks() -> dict[str, EntryPoint]:
    """Every sink that is installed, by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def require_sinks(names: Iterable[str]) -> list[EntryPoint]:
    """Find sinks by name.

    Args:
        names: Of entry points, each once.

    Raises:
        ConfigError: No such sink is installed, or it is named twice.
    """
    installed, found = installed_sinks(), dict[str, EntryPoint]()
    for name in names:
        if name in found:
            raise ConfigError(f"Sink '{name}' is named twice.", "Name it once.")
        if name not in installed:
            raise ConfigError(f"No sink '{name}' is installed.", suggest(name, installed))
        found[name] = installed[name]
    return list(found.values())


def open_sinks(names: Iterable[str]) -> list[Sink]:
    """Make sinks.

    Args:
        names: Of entry points, each once.

    Raises:
        ConfigError: No such sink is installed, it is named twice, or it cannot be made.
    """
    opened: list[Sink] = []
    for point in require_sinks(names):
        try:
            opened.append(point.load()())
        except Exception as error:
            # Whatever another package raises: the monitor does not start without a sink that it was told to have.
            raise ConfigError(
                f"Sink '{point.name}' ({point.value}) cannot be made: {error or type(error).__name__}.",
                "Correct its settings, or leave it out.",
            ) from error
    return opened
