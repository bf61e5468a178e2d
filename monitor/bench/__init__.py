"""What Plumbob costs, measured against stock vLLM in the same run."""

from monitor.bench.result import Result

__all__ = ["Result"]
