"""Settings from a YAML file, the environment and flags, in that order of weight.

``yaml_mapping``   files that people write: duplicate keys refused, errors that name the place and the nearest known key
``settings``       the fields of a configuration, each with its place in a file, its variable and its flag
``sources``        what each source says
``effective``      the one configuration that follows
``show``           that configuration as YAML, with the source of each value
"""

from monitor.configuration.effective import Effective, combine
from monitor.configuration.settings import Argument, Flag, OptionalPath, Port, Section, Setting, settings_of
from monitor.configuration.sources import (
    Layer,
    as_variables,
    from_environment,
    from_file,
    from_flag,
    without_variables,
)

__all__ = [
    "Argument",
    "Effective",
    "Flag",
    "Layer",
    "OptionalPath",
    "Port",
    "Section",
    "Setting",
    "as_variables",
    "combine",
    "from_environment",
    "from_file",
    "from_flag",
    "settings_of",
    "without_variables",
]
