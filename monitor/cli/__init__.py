"""The command line: ``plumbob``."""

__all__ = ["main"]


def main() -> None:
    """Run a command."""
    from monitor.cli.app import main as run

    run()
