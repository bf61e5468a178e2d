"""``python -m monitor.cli`` is ``plumbob``."""

from monitor.cli.app import main

main()
