"""The running system: taps in the engine, frames, verdicts, policy, actions, and what is served about them.

Only :mod:`monitor.engine` imports vllm. The monitor process (everything else) needs neither torch nor vllm.
"""

from importlib.metadata import version

__version__ = version("plumbob")
