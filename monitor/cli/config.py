"""``plumbob config``: what is configured and by what, whether a file is right, and what it may have."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from monitor.cli.console import out
from monitor.cli.flags import ConfigFile, takes_settings
from monitor.configuration import Layer
from monitor.supervisor.config import ServeConfig, load

config_commands = typer.Typer(help="Show, check and describe the configuration.", no_args_is_help=True)


@config_commands.command()
@takes_settings()
def show(config: ConfigFile = None, *, flags: list[Layer]) -> None:
    """Print the effective configuration as YAML, with the source of each value; secrets are left out."""
    from monitor.configuration.show import as_yaml

    for line in as_yaml(load(config, flags), ServeConfig):
        out.print(Text(line))


@config_commands.command()
def check(file: Annotated[Path, typer.Argument(metavar="FILE", help="The configuration file.")]) -> None:
    """Check a configuration file, and the files that it names: exit code 0, else 2.

    Variables of the environment outweigh it, as they would where it is used.
    """
    from monitor.supervisor.checks import check_files

    for line in check_files(load(file)):
        out.print(Text(line))
    out.print(Text(f"valid: {file}"))


@config_commands.command()
def schema() -> None:
    """Print the JSON Schema of a configuration file."""
    out.print(Text(json.dumps(ServeConfig.model_json_schema(), indent=2, ensure_ascii=False)))
