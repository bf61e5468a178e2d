"""The page about the configuration has every setting, as the code describes it."""

from enum import Enum
from pathlib import Path

from pydantic_core import PydanticUndefined

from monitor.configuration import settings_of
from monitor.supervisor.config import ServeConfig

PAGE = Path(__file__).parents[2] / "deploy" / "docs" / "configuration.md"


def row(setting) -> str:
    default = setting.field.default
    if setting.field.is_required():
        shown = "needed"
    elif default is PydanticUndefined:
        shown = "depends on the user"
    elif default in (None, ()):
        shown = "none"
    elif isinstance(default, tuple):
        shown = f"`{', '.join(default)}`"
    else:
        shown = f"`{str(default.value if isinstance(default, Enum) else default).lower()}`"
    flag = setting.flag or setting.argument
    return f"| `{setting.name}` | {f'`{flag}`' if flag else ''} | {shown} | {setting.field.description} |"


def test_every_setting_is_a_row_of_its_table_and_no_other_is():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert rows == [row(setting) for setting in settings_of(ServeConfig)]
