"""The share of memory that a vLLM for CPU can have on this machine.

On the CPU, ``--gpu-memory-utilization`` is the share of a NUMA node's memory, or of the container's limit where that is
less, that one engine takes for its weights and its KV cache together. vLLM refuses to start where so much is not
available (``CPUWorker.__init__`` in ``vllm/v1/worker/cpu_worker.py``), which with its default is already so where a
tenth is in use. Total and available memory are counted here as it counts them (``get_memory_node_info`` in
``vllm/utils/cpu_resource_utils.py``), before it is started.
"""

import math
from pathlib import Path
from typing import Final, NamedTuple

DEFAULT_SHARE: Final = 0.92
"""vLLM's own (``CacheConfig.gpu_memory_utilization``)."""
STARTING_BYTES: Final = 2 << 30
"""Memory that API server, engine and monitor take before the engine looks at what is available."""
_MARGIN: Final = 0.85
"""Share of what is available that is used; the rest is for what else this machine begins meanwhile."""

_UNLIMITED: Final = 1 << 62
_LIMITS: Final = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and usage of this container's memory, in version 2 and 1 of cgroups."""


class Memory(NamedTuple):
    """Memory of a NUMA node or of a machine, in bytes."""

    total: int
    available: int


def fitting_share(root: Path = Path("/")) -> float | None:
    """A share that every NUMA node has available, in hundredths.

    Args:
        root: Where ``/sys`` and ``/proc`` are.

    Returns:
        The share; ``None`` where vLLM's default fits, or nothing is known of this machine's memory.
    """
    shares = [_share(memory) for memory in memory_nodes(root)]
    found = [share for share in shares if share is not None]
    return min(found) if found else None


def memory_nodes(root: Path = Path("/")) -> list[Memory]:
    """Total and available memory of each NUMA node that has processors; of the machine where no node is listed."""
    nodes = sorted((root / "sys/devices/system/node").glob("node[0-9]*"))
    found = [_node(node) for node in nodes if (node / "cpulist").is_file() and (node / "cpulist").read_text().strip()]
    return [_limited(memory, root) for memory in found or _machine(root)]


def _share(memory: Memory) -> float | None:
    if DEFAULT_SHARE * memory.total <= memory.available - STARTING_BYTES:
        return None
    # On a machine that has hardly more than the processes need, half of what is there.
    fits = max(_MARGIN * memory.available - STARTING_BYTES, memory.available / 2)
    return max(0.01, math.floor(100 * fits / memory.total) / 100)


def _node(directory: Path) -> Memory:
    """From lines as ``Node 0 MemTotal: 97421888 kB``."""
    rows = (line.split() for line in (directory / "meminfo").read_text().splitlines())
    sizes = {row[2].rstrip(":"): int(row[3]) * 1024 for row in rows if len(row) > 3}
    reclaimable = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
    return Memory(sizes["MemTotal"], sum(sizes.get(name, 0) for name in reclaimable))


def _machine(root: Path) -> list[Memory]:
    """From lines as ``MemTotal: 97421888 kB``."""
    path = root / "proc/meminfo"
    if not path.is_file():
        return []
    rows = (line.split() for line in path.read_text().splitlines())
    sizes = {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) > 1}
    return [Memory(sizes["MemTotal"], sizes["MemAvailable"])]


def _limited(memory: Memory, root: Path) -> Memory:
    """The memory that the container's limit leaves of it."""
    for limit_file, usage_file in _LIMITS:
        limit, usage = _number(root / limit_file), _number(root / usage_file)
        if limit is not None:
            if limit >= min(memory.total, _UNLIMITED):
                return memory
            return Memory(limit, max(0, min(memory.available, limit - (usage or 0))))
    return memory


def _number(path: Path) -> int | None:
    """The number in a file; ``None`` where it is not there, or says ``max``."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
