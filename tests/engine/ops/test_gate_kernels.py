"""The gate's kernels against its reference: through Triton's interpreter, or on a GPU where there is one.

As in ``test_kernels.py``: without a GPU this module runs itself once more, in a process of its own, and every launch is
compiled for an H100 besides.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.engine.ops import gate as op
from monitor.engine.ops import tap as tapped
from monitor.engine.ops.gate_layout import FOREVER, Counter, Flag, Rule

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
LAYER = 3
SLOTS = 4
CLOSE = 1e-9
"""Averages nearer to a threshold than this may fall on either side of it: scans add in another order."""

executes = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="runs in the child process of test_in_the_interpreter"
)
compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")


@pytest.fixture(scope="module")
def kernels():
    from monitor.engine.ops.triton import gate_kernels as kernels_gate

    return kernels_gate


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="runs as it is")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    child = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr


def make(seed, lengths, gates, *, answers=True):
    """Arguments of ``gate``, by name: a step of requests in the middle of their lives."""
    random = np.random.default_rng(seed)
    slots, positions, roles = [], [], []
    responds = random.integers(0, 200, SLOTS)
    firsts = [int(random.integers(0, 200)) for _ in lengths]
    order = random.permutation(SLOTS)[: len(lengths)]
    for slot, first, length in zip(order, firsts, lengths, strict=True):
        slots += [slot if random.random() < 0.9 else -1] * length
        positions += range(first, first + length)
        roles += random.integers(0, 4, length).tolist()
    rows, room = len(slots), len(slots) + 3
    threshold = random.choice([-0.31, 0.17], gates)
    limits = np.stack([0.5 ** (1 / random.choice([1.0, 12.0], gates)), threshold, threshold - 0.2], axis=1)
    rules = np.zeros((gates, len(Rule)), np.int32)
    rules[:, Rule.LAYER] = np.where(random.random(gates) < 0.8, LAYER, -1)
    rules[:, Rule.COLUMN] = random.integers(0, 3, gates)
    rules[:, Rule.ROLES] = random.integers(0, 16, gates)
    rules[:, Rule.MIN_TOKENS] = random.integers(1, 5, gates)
    rules[:, Rule.STREAK] = random.integers(1, 4, gates)
    rules[:, Rule.CALM] = random.integers(0, 3, gates)
    rules[:, Rule.HOLD] = random.choice([0, 2, FOREVER], gates)
    rules[:, Rule.BUDGET] = random.choice([0, 3, 40, FOREVER], gates)
    counters = random.integers(0, 5, (SLOTS, gates, len(Counter))).astype(np.int32)
    counters[..., Counter.ARMED] = random.random((SLOTS, gates)) < 0.8
    counters[..., Counter.OPEN] = random.random((SLOTS, gates)) < 0.3
    counters[..., Counter.RESPOND] = responds[:, None]
    counters[..., Counter.SEEN] = 0
    for slot, first, length in zip(order, firsts, lengths, strict=True):
        # Some of its rows are computed again; none of those that are new were ever skipped.
        counters[slot, :, Counter.SEEN] = first + random.integers(0, length // 2 + 1)
        if not answers:
            counters[slot, :, Counter.RESPOND] = first + length
    level = np.repeat(random.normal(size=room // 5 + 1), 5)[:room, None]
    scores = (level + random.normal(size=(room, 3))).astype(np.float32)
    scores[random.random(room) < 0.03] = np.nan
    counts = random.integers(0, 30, (SLOTS, gates, 1))
    arguments = {
        "scores": scores,
        "row_slot": np.array([*slots, -1, -1, -1], np.int32),
        "row_position": np.array([*positions, 0, 0, 0], np.int32),
        "row_role": np.array([*roles, 0, 0, 0], np.int8),
        "gated": np.ones(1, np.int32),
        "limits": limits,
        "rules": rules,
        "averages": np.concatenate([counts * random.normal(size=(SLOTS, gates, 1)), counts], axis=-1).astype(float),
        "counters": counters,
        "row_gates": random.choice([0, int(Flag.STEER | Flag.EARLY | Flag.GIVEN), int(Flag.GIVEN)], (room, gates)),
        "row_average": np.full((room, gates), np.nan, np.float32),
        "tokens": rows + 1,
        "layer": LAYER,
    }
    arguments["row_gates"] = arguments["row_gates"].astype(np.int8)
    return {n: torch.from_numpy(v).to(DEVICE) if isinstance(v, np.ndarray) else v for n, v in arguments.items()}


def copy(arguments, device=None):
    moved = {n: v.to(device or DEVICE, copy=True) if torch.is_tensor(v) else v for n, v in arguments.items()}
    return {name: value.clone() if torch.is_tensor(value) else value for name, value in moved.items()}


def rounding_decides(reference) -> bool:
    average = reference["row_average"].double()
    levels = reference["limits"][:, 1:].T[:, None, :]
    # A float32 cannot show what lies closer than its own last bits.
    near = (average[None] - levels).abs() <= CLOSE + 2.0**-23 * levels.abs()
    return bool(near.any())


def check(kernels, arguments) -> None:
    ours, reference = copy(arguments), copy(arguments, "cpu")
    for module, part in ((kernels, ours), (op, reference)):
        named = {name: part[name] for name in ("row_slot", "row_position", "counters", "row_gates")}
        module.open_rows(**named, rows=part["tokens"] - 1)
    assert torch.equal(ours["row_gates"].cpu(), reference["row_gates"])
    kernels.gate(**ours)
    op.gate(**reference)
    if rounding_decides(reference):
        return
    for name, expected in reference.items():
        if not torch.is_tensor(expected):
            continue
        found = ours[name].cpu()
        if expected.is_floating_point():
            exact = 1e-12 if expected.dtype is torch.float64 else 1e-6
            torch.testing.assert_close(found, expected, rtol=exact, atol=exact, equal_nan=True, msg=name)
        else:
            assert torch.equal(found, expected), name


@executes
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=4),
    gates=st.integers(1, 3),
)
def test_judges_as_the_reference_does(kernels, seed, lengths, gates):
    check(kernels, make(seed, lengths, gates))


@executes
@pytest.mark.parametrize("seed", range(4))
def test_scans_a_long_prompt_as_the_reference_does(kernels, seed):
    check(kernels, make(seed, [300, 2, 128], 2, answers=False))


@executes
def test_a_prompt_in_one_step_is_judged_as_in_many(kernels):
    whole = make(7, [200], 1, answers=False)
    whole["row_slot"][:200] = 1
    whole["rules"][:, Rule.LAYER], whole["rules"][:, Rule.ROLES] = LAYER, 0b1100
    whole["rules"][:, Rule.BUDGET] = FOREVER
    whole["averages"].zero_()
    whole["counters"].zero_()
    whole["row_gates"].zero_()
    whole["counters"][1, 0, Counter.ARMED] = 1
    whole["counters"][1, 0, Counter.RESPOND] = int(whole["row_position"][199]) + 1
    pieces = copy(whole)
    kernels.gate(**whole)
    flags = []
    for rows in (slice(0, 1), slice(1, 3), slice(3, 131), slice(131, 200)):
        step = dict(pieces)
        step["tokens"] = rows.stop - rows.start
        for name in ("scores", "row_slot", "row_position", "row_role", "row_gates", "row_average"):
            step[name] = pieces[name][rows].contiguous()
        kernels.gate(**step)
        flags += step["row_gates"][:, 0].tolist()
    assert flags == whole["row_gates"][:200, 0].tolist()
    assert flags.count(int(Flag.FIRED)) == 1
    assert torch.equal(pieces["counters"], whole["counters"])
    torch.testing.assert_close(pieces["averages"], whole["averages"], rtol=1e-12, atol=0)


@executes
@pytest.mark.parametrize(("gated", "layer"), [(0, LAYER), (1, LAYER + 1)])
def test_does_nothing_where_no_gate_reads_the_layer(kernels, gated, layer):
    arguments = make(0, [5, 9], 2)
    arguments["gated"].fill_(gated)
    arguments["rules"][:, Rule.LAYER] = LAYER
    before = copy(arguments)
    kernels.gate(**{**arguments, "layer": layer})
    for name in ("averages", "counters", "row_gates"):
        assert torch.equal(arguments[name], before[name])
    assert arguments["row_average"].isnan().all()


@executes
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), gates=st.integers(1, 3), vectors=st.integers(1, 3))
def test_the_tap_joins_gates_and_orders_as_the_reference_does(kernels, seed, gates, vectors):
    from monitor.engine.ops.triton.tap_kernels import tap

    random = np.random.default_rng(seed)
    # Whole numbers, so that every sum is exact in any order and what is compared is what was chosen to be added.
    rows, width = 7, 40
    integers = functools.partial(random.integers, -4, 5)

    def table(entries):
        bounds = np.sort(integers((entries, vectors, 2)), axis=-1)
        drawn = np.concatenate([integers((entries, vectors, 1)), random.integers(0, 2, (entries, vectors, 1))], axis=-1)
        return np.concatenate([drawn, bounds], axis=-1).astype(np.float32)

    drawn = {
        "hidden": integers((rows, width)).astype(np.float32),
        "residual": integers((rows, width)).astype(np.float32),
        "weights": integers((1 + vectors, width)).astype(np.float32),
        "bias": integers(1 + vectors).astype(np.float32),
        "row_entry": random.integers(-1, 2, rows).astype(np.int32),
        "table": table(2),
        "vectors": integers((vectors, width)).astype(np.float32),
        "scores": np.zeros((rows, 1), np.float32),
        "column": 0,
        "states": np.zeros((0, width), np.float32),
        "stream": np.zeros(1, np.int32),
        "row_gates": random.choice([0, 1, 8, 9], (rows, gates)).astype(np.int8),
        "gate_table": table(gates),
    }
    ours = {n: torch.from_numpy(v).to(DEVICE) if isinstance(v, np.ndarray) else v for n, v in drawn.items()}
    reference = copy(ours, "cpu")
    tap(*ours.values())
    tapped.tap(*reference.values())
    assert torch.equal(ours["hidden"].cpu(), reference["hidden"])


@compiles
@pytest.mark.parametrize("gates", [1, 8])
def test_compiles_for_an_h100(monkeypatch, tmp_path, gates):
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    driver = SimpleNamespace(
        get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda device: 0
    )
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(sys.modules[__name__], "DEVICE", "cpu")
    compiled = []

    def launch(kernel, grid, *arguments, **options):
        compiled.append(kernel.run(*arguments, grid=grid, warmup=True, **options))

    monkeypatch.setattr(
        triton.runtime.jit.KernelInterface, "__getitem__", lambda kernel, grid: functools.partial(launch, kernel, grid)
    )
    # A copy of the module, so that nothing compiled here is ever launched.
    specification = importlib.util.find_spec("monitor.engine.ops.triton.gate_kernels")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    arguments = make(0, [5, 9], gates)
    module.gate(**arguments)
    names = ("row_slot", "row_position", "counters", "row_gates")
    module.open_rows(*(arguments[name] for name in names), 14)
    assert len(compiled) == 2
    # Scans of a block of float64 need no more than what every multiprocessor has to spare beside the model's kernels.
    assert all(kernel.metadata.shared <= 8 * 1024 for kernel in compiled)
