"""Imported by the fork server of :mod:`tests.harness.warm` before anything is started: vLLM, as engines run it."""

import multiprocessing
import os

# Read while vLLM is imported; what else an engine's environment says is read when it starts.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# Threads that spin while they wait take the core from those that they wait for, of the same engine or of another.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import vllm.utils.system_utils


def _fork() -> multiprocessing.context.BaseContext:
    """On CPU vLLM asks for processes that import everything again; elsewhere it forks, as these do."""
    return multiprocessing.get_context("fork")


vllm.utils.system_utils.get_mp_context = _fork

import vllm.v1.engine.core
import vllm.v1.executor.multiproc_executor
import vllm.v1.worker.cpu_worker
from vllm import LLM  # noqa: F401
