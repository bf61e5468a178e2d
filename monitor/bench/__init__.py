"""Benchmarks: the cost of Plumbob, measured against stock vLLM in the same run."""

from monitor.bench.result import Result

__all__ = ["Result"]
