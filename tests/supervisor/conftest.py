"""The command line's surroundings, for servers that are started through it."""

from tests.cli.conftest import surroundings, taken_port, world  # noqa: F401  (fixtures)
