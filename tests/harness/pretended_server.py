"""A server that only pretends, for ``plumbob serve`` to start."""

import time

SCRIPT = """\
import os, sys
from monitor.supervisor import serving
from monitor.cli.app import main
from monitor.engine.vllm import versions as compat

def start(self, checked):
    # A child of its own, as the engine core is one.
    self.server = self._spawn([sys.executable, "-c", {server!r}], os.environ)

serving.Serving._start_server = start
serving._healthy = lambda url: True
serving.Serving._heard = lambda self: True
compat.version = lambda name: compat.TESTED["cpu"][0] + "+cpu"
main()
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
