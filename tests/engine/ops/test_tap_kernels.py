"""The Triton kernels against the ops' references: through Triton's interpreter, or on a GPU where there is one.

Triton decides when it is imported whether functions are interpreted, those of its own library among them, and other
tests import it first. So without a GPU this module runs itself once more, in a process of its own. What the interpreter
cannot see, types, tiles, registers, is checked by compiling every launch for an H100, which takes no GPU.
"""

import functools
import importlib.util
import os
import re
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.engine.ops import tap as op

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LAST = 12
"""The table's last entry but none: rows draw from −1 to ``LAST``."""

executes = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="runs in the child process of test_in_the_interpreter"
)
on_gpu = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="takes a GPU")
compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    from monitor.engine.ops.triton import tap_kernels

    return tap_kernels


@pytest.fixture(scope="module")
def row_kernels() -> ModuleType:
    from monitor.engine.ops.triton import row_kernels

    return row_kernels


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="runs as it is")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    child = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr


def make(seed, *, rows, width, probes, vectors, dtype, split=True, padding=0, states=None, stream=0):
    """Arguments of ``tap``, by name, with room around everything that is written."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    count = probes + vectors
    table = torch.tensor(op.NEUTRAL).repeat(LAST + 1, vectors, 1)
    # A few entries each of what steering is for: adding, ablating, and keeping a projection within a range.
    table[0:4, :, 0] = 4 * random(4, vectors)
    table[2:6, :, 1] = torch.rand(4, vectors, generator=generator)
    table[4:8, :, 2:] = (10 * random(4, vectors, 2)).sort(dim=-1).values
    arguments = {
        "hidden": random(rows, width + padding).to(dtype)[:, :width],
        "residual": random(rows, width + 2 * padding).to(dtype)[:, :width] if split else None,
        "weights": random(count, width),
        "bias": random(count),
        "row_entry": torch.randint(-1, LAST + 1, (rows + 3,), generator=generator, dtype=torch.int32),
        "table": table,
        "vectors": random(vectors, width),
        "scores": random(rows + 2, probes + 5),
        "column": 3,
        "states": random(0 if states is None else rows + 2, width).to(states or dtype),
        "stream": torch.tensor([stream], dtype=torch.int32),
    }
    return {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}


def whole(tensor):
    """All that a tensor is a view of, what lies between its rows included, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def same_bits(one, other):
    return torch.equal(whole(one), whole(other))


def copy(arguments):
    """The same arguments, with the same strides, in storage of their own."""

    def clone(tensor):
        return whole(tensor).clone().view(tensor.dtype).as_strided(tensor.shape, tensor.stride())

    return {name: clone(value) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}


def tolerances(arguments):
    """How far scores and steered rows may lie from the reference's, element by element.

    With u = 2⁻²⁴, a float32 sum of n terms errs by at most n·u of the sum of their magnitudes in any order (Higham,
    Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2), tensor cores, which truncate, by twice that;
    three TF32 terms for a product leave out less than 2⁻¹⁸ of it. The reference errs by n·u as well. An amount inherits
    the error of its projection at most ``1 + |scale|`` times, since clipping brings no two numbers further apart.
    """
    unit = 2.0**-24
    vectors, dtype = arguments["vectors"].double(), arguments["hidden"].dtype
    count, width = arguments["weights"].shape
    rows, probes = len(arguments["hidden"]), count - len(vectors)
    state = arguments["hidden"].float() + (0 if arguments["residual"] is None else arguments["residual"].float())
    magnitude = state.double().abs() @ arguments["weights"].double().abs().T + arguments["bias"].double().abs()
    of_projection = (3 * (width + 1) * unit + 2.0**-18) * magnitude
    entries = arguments["row_entry"][:rows].long().clamp(min=0)
    add, scale, low, high = arguments["table"].double()[entries].unbind(-1)
    finite = torch.where(low.isfinite(), low.abs().maximum(high.abs()), 0)
    of_amount = (1 + scale.abs()) * of_projection[:, probes:] + 4 * unit * (
        add.abs() + (2 + scale.abs()) * magnitude[:, probes:] + finite
    )
    amount = add.abs() + (1 + scale.abs()) * magnitude[:, probes:] + finite
    of_change = (of_amount + (2 * len(vectors) + 2) * unit * amount) @ vectors.abs()
    # The interpreter truncates to bfloat16 where the reference and a GPU round to nearest: apart by one unit in the
    # last place at most, as are two roundings of numbers that differ a little.
    return of_projection[:, :probes], of_change, torch.finfo(dtype).eps


def check(kernels, arguments):
    """Run both; compare everything that is written, and every bit that is not to be."""
    ours, reference = copy(arguments), copy(arguments)
    kernels.tap(*ours.values())
    op.tap(*reference.values())
    of_score, of_change, epsilon = tolerances(arguments)
    rows, probes = of_score.shape
    column, steered = arguments["column"], arguments["row_entry"][:rows] >= 0
    written = ours["scores"][:rows, column : column + probes]
    assert ((written - reference["scores"][:rows, column : column + probes]).abs() <= of_score).all()
    written.copy_(reference["scores"][:rows, column : column + probes])
    out, expected = ours["hidden"][steered].double(), reference["hidden"][steered].double()
    assert ((out - expected).abs() <= of_change[steered] + epsilon * expected.abs().maximum(out.abs())).all()
    ours["hidden"][steered] = reference["hidden"][steered]
    if len(arguments["states"]):
        states, expected = ours["states"][:rows].double(), reference["states"][:rows].double()
        assert ((states - expected).abs() <= torch.finfo(arguments["states"].dtype).eps * expected.abs()).all()
        ours["states"][:rows] = reference["states"][:rows]
    for name, value in ours.items():
        assert not isinstance(value, torch.Tensor) or same_bits(value, reference[name]), name


@executes
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 36),
    width=st.integers(1, 90).map(lambda eighths: 8 * eighths),
    probes=st.integers(0, 64),
    vectors=st.integers(0, 8),
    dtype=st.sampled_from(DTYPES),
    split=st.booleans(),
    padding=st.sampled_from((0, 8, 24)),
    states=st.sampled_from((None, *DTYPES)),
    stream=st.integers(0, 1),
)
def test_scores_steers_and_streams_as_the_reference_does(kernels, seed, **shape):
    check(kernels, make(seed, **shape))


@executes
@pytest.mark.parametrize(
    ("rows", "width", "probes", "vectors"),
    [(1, 5120, 48, 1), (1, 16384, 3, 2), (33, 640, 64, 8), (256, 136, 4, 1), (300, 168, 17, 2)],
)
def test_agrees_where_the_division_of_labour_changes(kernels, rows, width, probes, vectors):
    arguments = make(0, rows=rows, width=width, probes=probes, vectors=vectors, dtype=torch.bfloat16, stream=1)
    # The wider the row, the less the bound on the error of its projection holds it to: steer by far more than that.
    arguments["row_entry"][0], arguments["table"][0, :, 0] = 0, 1000.0
    check(kernels, arguments)


@executes
@pytest.mark.parametrize("dtype", DTYPES)
def test_neutral_entries_leave_every_bit_as_it_was(kernels, dtype):
    arguments = make(0, rows=20, width=96, probes=2, vectors=3, dtype=dtype)
    arguments["row_entry"].fill_(LAST)  # an entry that make() leaves neutral
    arguments["hidden"][:, ::7] = -0.0
    before = copy(arguments)["hidden"]
    kernels.tap(*arguments.values())
    assert same_bits(arguments["hidden"], before)


@executes
@pytest.mark.parametrize("dtype", DTYPES)
def test_opposite_amounts_of_one_vector_cancel_to_the_last_bit(kernels, dtype):
    arguments = make(0, rows=20, width=96, probes=2, vectors=2, dtype=dtype)
    arguments["row_entry"].fill_(LAST)
    arguments["vectors"][1] = -arguments["vectors"][0]
    arguments["table"][LAST, :, 0] = 0.7
    before = copy(arguments)["hidden"]
    kernels.tap(*arguments.values())
    assert same_bits(arguments["hidden"], before)
    arguments["table"][LAST, 1, 0] = 0.0
    kernels.tap(*arguments.values())
    assert not same_bits(arguments["hidden"], before)


@executes
@pytest.mark.parametrize(("probes", "vectors"), [(2, 1), (0, 0)])
def test_streaming_is_switched_on_the_device(kernels, probes, vectors):
    shape = {"rows": 20, "width": 96, "probes": probes, "vectors": vectors, "dtype": torch.bfloat16}
    arguments = make(0, **shape, states=torch.float32)
    before, state = copy(arguments)["states"], arguments["hidden"].float() + arguments["residual"].float()
    kernels.tap(*arguments.values())
    assert same_bits(arguments["states"], before)
    arguments = make(0, **shape, states=torch.float32, stream=1)
    kernels.tap(*arguments.values())
    assert torch.equal(arguments["states"][:20], state)  # before steering, though rows are steered
    assert torch.equal(arguments["states"][20:], before[20:])


@executes
def test_a_step_without_rows_changes_nothing(kernels):
    arguments = make(0, rows=0, width=96, probes=2, vectors=1, dtype=torch.bfloat16, states=torch.bfloat16, stream=1)
    before = copy(arguments)
    kernels.tap(*arguments.values())
    assert all(same_bits(arguments[name], before[name]) for name in ("scores", "states"))


def integers(*values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


@executes
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_maps_rows_to_their_requests(row_kernels, data):
    lengths = data.draw(st.lists(st.integers(0, 60), max_size=9))
    requests, used, capacity = len(lengths), sum(lengths), 400
    rows = data.draw(st.integers(max(0, used - 5), min(capacity, used + 9)))
    slots = data.draw(st.lists(st.integers(-1, 3), min_size=requests, max_size=requests))
    firsts = data.draw(st.lists(st.integers(0, 50), min_size=requests, max_size=requests))
    bounds = st.lists(st.integers(0, 120), min_size=4, max_size=4, unique=True).map(sorted)
    # Two segments of a slot that may touch but not overlap, and one that is unused.
    segments = [[(a, b, 5), (0, 0, 6), (c, d, 7)] for a, b, c, d in data.draw(st.lists(bounds, min_size=4, max_size=4))]
    starts = [sum(lengths[:request]) for request in range(requests + 1)]
    row_slot, row_position, row_entry = [-1] * capacity, [-9] * capacity, [-1] * capacity
    for request, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        for row in range(start, min(start + length, rows)):
            position = firsts[request] + row - start
            row_slot[row], row_position[row] = slots[request], position
            for begin, end, entry in segments[slots[request]] if slots[request] >= 0 else ():
                if begin <= position < end:
                    row_entry[row] = entry
    written = [torch.full((capacity,), -9, dtype=torch.int32, device=DEVICE) for _ in range(3)]
    # What lies beyond the last request is of earlier steps.
    stale = [7] * 3
    row_kernels.map_rows(
        integers(*starts, *stale),
        integers(*slots, *stale),
        integers(*firsts, *stale),
        torch.tensor(segments, dtype=torch.int32, device=DEVICE),
        *written,
        rows,
        requests,
    )
    assert [tensor.tolist() for tensor in written] == [row_slot, row_position, row_entry]


@executes
def test_maps_rows_of_slots_that_cannot_be_steered(row_kernels):
    written = [torch.full((5,), -9, dtype=torch.int32, device=DEVICE) for _ in range(3)]
    none = torch.zeros(4, 0, 3, dtype=torch.int32, device=DEVICE)
    row_kernels.map_rows(integers(0, 2, 3), integers(3, 1), integers(8, 0), none, *written, 3, 2)
    assert [tensor.tolist() for tensor in written] == [[3, 3, 1, -1, -1], [8, 9, 0, -9, -9], [-1] * 5]


@executes
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(0, 60),
    probes=st.integers(1, 300),
    kept=st.booleans(),
    room=st.integers(0, 3),
)
def test_commits_scores_to_where_they_leave_from_and_to_the_cache(row_kernels, seed, rows, probes, kept, room):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows + 2, probes + room, generator=generator).to(DEVICE)[:, :probes]
    row_slot = torch.randint(-1, 2, (rows + 4,), generator=generator, dtype=torch.int32).to(DEVICE)
    places = torch.randperm(2 * rows + 1, generator=generator)[: rows + 1].to(DEVICE)
    places[torch.rand(rows + 1, generator=generator).to(DEVICE) < 0.2] = -1
    kv_scores = torch.full((2 * rows + 1, probes), -5.0, device=DEVICE) if kept else None
    staged = torch.full((rows + 3, probes), -5.0, device=DEVICE)
    expected_staged, expected_kv = staged.clone(), kv_scores.clone() if kept else None
    expected_staged[:rows] = scores[:rows]
    for row in range(rows if kept else 0):
        if places[row] >= 0:
            expected_kv[places[row]] = scores[row] if row_slot[row] >= 0 else float("nan")
    row_kernels.commit(scores, row_slot, places if kept else None, kv_scores, staged, rows)
    assert torch.equal(staged, expected_staged)
    assert not kept or torch.equal(kv_scores.nan_to_num(nan=-7.0), expected_kv.nan_to_num(nan=-7.0))


@on_gpu
def test_a_replayed_graph_does_what_its_buffers_say_then(kernels):
    first = make(0, rows=32, width=576, probes=3, vectors=2, dtype=torch.bfloat16, states=torch.bfloat16)
    second = make(1, rows=32, width=576, probes=3, vectors=2, dtype=torch.bfloat16, states=torch.bfloat16, stream=1)
    kernels.tap(*copy(first).values())  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.tap(*first.values())
    for name, value in second.items():
        if isinstance(value, torch.Tensor):
            first[name].copy_(value)
    graph.replay()
    kernels.tap(*second.values())
    assert all(torch.equal(first[name], second[name]) for name in ("hidden", "scores", "states"))


@pytest.fixture
def launches(monkeypatch, tmp_path):
    """The kernels' modules, their launches compiled for an H100 instead of made, and the list of what was compiled."""
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    driver = SimpleNamespace(
        get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda device: 0
    )
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = []

    def launch(kernel, grid, *arguments, **options):
        compiled.append(kernel.run(*arguments, grid=grid, warmup=True, **options))

    monkeypatch.setattr(
        triton.runtime.jit.KernelInterface, "__getitem__", lambda kernel, grid: functools.partial(launch, kernel, grid)
    )
    copies = []
    for name in ("tap_kernels", "row_kernels"):
        # A copy of the module, so that nothing compiled here is ever launched.
        specification = importlib.util.find_spec(f"monitor.engine.ops.triton.{name}")
        copies.append(importlib.util.module_from_spec(specification))
        specification.loader.exec_module(copies[-1])
    return *copies, compiled


def stack_bytes(kernel, path):
    """What the kernel keeps in local memory: registers that were spilled."""
    path.write_bytes(kernel.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(int(number) for number in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))


@compiles
@pytest.mark.parametrize("rows", [256, 257])
@pytest.mark.parametrize(
    ("probes", "vectors", "dtype"), [(48, 1, torch.bfloat16), (64, 8, torch.bfloat16), (64, 8, torch.float32)]
)
def test_the_tap_compiles_within_an_h100s_registers_and_shared_memory(
    launches, tmp_path, rows, probes, vectors, dtype, monkeypatch
):
    monkeypatch.setattr(sys.modules[__name__], "DEVICE", "cpu")
    module, _, compiled = launches
    arguments = make(0, rows=rows, width=4096, probes=probes, vectors=vectors, dtype=dtype, states=dtype)
    module.tap(*arguments.values())
    project, finish = compiled
    for kernel in compiled:
        assert stack_bytes(kernel, tmp_path / "kernel.cubin") == 0
        # Two programs share a multiprocessor's 228 KiB, of which each has 1 KiB taken from it; float32 rows get one.
        assert kernel.metadata.shared <= (113 if dtype is torch.bfloat16 else 227) * 1024
    assert re.search(r"mma.*tf32", project.asm["ptx"])
    assert "fma" not in finish.asm["ptx"]  # see tap()


@compiles
def test_everything_else_compiles_for_an_h100(launches, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "DEVICE", "cpu")
    module, rows, compiled = launches
    row = torch.zeros(64, dtype=torch.int32)
    rows.map_rows(row, row, row, torch.zeros(4, 6, 3, dtype=torch.int32), row, row, row, 33, 5)
    scores = torch.zeros(64, 144)
    rows.commit(scores, row, row.long(), scores, scores, 33)
    rows.commit(scores, row, None, None, scores, 33)
    streamed_only = make(0, rows=33, width=64, probes=0, vectors=0, dtype=torch.bfloat16, states=torch.bfloat16)
    module.tap(*streamed_only.values())
    assert len(compiled) == 4
    assert all(stack_bytes(kernel, tmp_path / "kernel.cubin") == 0 for kernel in compiled)
