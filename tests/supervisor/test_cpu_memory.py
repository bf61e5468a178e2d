"""The share of memory that a vLLM for CPU is given, on machines that are made of files."""

import pytest

from monitor.supervisor.cpu_memory import DEFAULT_SHARE, STARTING_BYTES, Memory, fitting_share, memory_nodes

GIB = 1 << 30


class Machine:
    """A root directory with what the kernel tells of memory."""

    def __init__(self, root):
        self.root = root

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def node(self, number, total, free, cached=0, cpus="0-1"):
        lines = {"MemTotal": total - cached * 0, "MemFree": free, "Active(file)": cached, "Inactive(file)": 0}
        lines |= {"SReclaimable": 0, "AnonPages": total - free - cached}
        text = "".join(f"Node {number} {name}: {int(size * GIB / 1024)} kB\n" for name, size in lines.items())
        self.write(f"sys/devices/system/node/node{number}/meminfo", text + "Node 0 HugePages_Total: 0\n")
        self.write(f"sys/devices/system/node/node{number}/cpulist", cpus + "\n")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def accepted_by_vllm(memory, share, started=STARTING_BYTES):
    """What ``CPUWorker.__init__`` asks, once the processes that come before it have taken their memory."""
    return memory.total * share <= memory.available - started


def test_a_machine_where_the_default_fits_is_left_to_vllm(machine):
    machine.node(0, 100, 96)
    assert fitting_share(machine.root) is None


@pytest.mark.parametrize("available", [93, 90, 60, 40, 20, 14])
def test_where_it_does_not_fit_a_share_does(machine, available):
    machine.node(0, 100, available - 5, cached=5)
    (memory,) = memory_nodes(machine.root)
    assert not accepted_by_vllm(memory, DEFAULT_SHARE)
    share = fitting_share(machine.root)
    assert share is not None and accepted_by_vllm(memory, share)
    # And not so little that a model would have no room.
    assert share * memory.total >= memory.available / 2 - 0.02 * memory.total


def test_where_there_is_hardly_any_it_is_half_of_that(machine):
    machine.node(0, 100, 3)
    assert fitting_share(machine.root) == 0.01


def test_the_fullest_node_decides_and_one_without_processors_does_not(machine):
    machine.node(0, 100, 90)
    machine.node(1, 100, 40)
    machine.node(2, 100, 1, cpus="")
    assert len(memory_nodes(machine.root)) == 2
    assert fitting_share(machine.root) == pytest.approx(0.85 * 0.4 - 0.02)


@pytest.mark.parametrize(
    ("limit", "usage"),
    [
        ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ],
)
def test_the_limit_of_a_container_counts(machine, limit, usage):
    machine.node(0, 100, 90)
    machine.write(limit, str(20 * GIB))
    machine.write(usage, str(4 * GIB))
    assert memory_nodes(machine.root) == [Memory(20 * GIB, 16 * GIB)]
    assert fitting_share(machine.root) == pytest.approx((0.85 * 16 - 2) / 20, abs=0.01)
    for none in ("max", str(1 << 63), str(200 * GIB)):
        machine.write(limit, none)
        assert memory_nodes(machine.root)[0].total == 100 * GIB


def test_a_machine_without_nodes(machine):
    assert fitting_share(machine.root) is None
    machine.write("proc/meminfo", f"MemTotal: {8 << 20} kB\nMemFree: 1 kB\nMemAvailable: {6 << 20} kB\nHugePages: 0\n")
    assert memory_nodes(machine.root) == [Memory(8 * GIB, 6 * GIB)]


def test_this_machine_is_read():
    for memory in memory_nodes():
        assert 0 < memory.available <= memory.total
