"""``python -m monitor.cli`` is ``plumbob``."""

import sys
from pathlib import Path

from monitor.cli import main

# The working directory, which is first with -m: a probes.py in it is not ours, nor is any other module's namesake.
if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[2]:
    del sys.path[0]

main()
