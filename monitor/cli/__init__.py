"""The command line: ``plumbob``."""

from monitor.cli.app import main

__all__ = ["main"]
