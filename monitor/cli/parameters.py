"""Arguments and options that several commands have."""

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face id, a local directory, or: demo")]
Untested = Annotated[bool, typer.Option("--allow-untested", help="Start on a vLLM version the tap was not tested on.")]
