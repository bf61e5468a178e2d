"""A monitor without engines, for what reads one."""

from tests.api.conftest import monitor  # noqa: F401  (a fixture)
