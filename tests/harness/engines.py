"""Real engines, what they are given, and how close they must come to transformers."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monitor.offline.engine_process import Arm
from probes.bundle import Bundle, Calibration, Evaluation, Probe, Vector, save_bundle
from probes.models import DEMO, identify
from probes.scoring.aggregate import Aggregate
from probes.scoring.roles import Markers
from tests.harness.wire import Seen

LAYERS = (5, 15, 29)
"""Early, middle, and the last: after it, transformers reports the state only behind one more norm."""

# bfloat16 keeps 8 bits of mantissa: a relative rounding error of up to 2**-9 at each operation. Thirty blocks of
# attention, MLP and two residual additions each, with independent errors, leave sqrt(30 * 4) * 2**-9 = 2% of the
# state's norm; twice that covers the tokens on which norms differ most. A probe of unit weight turns an error of the
# state into one of the score that is no larger, and typically sqrt(hidden) = 24 times smaller, since it points into one
# direction of many.
LARGEST = 0.04
"""Largest difference allowed, relative to the norm of the state."""
TYPICAL = 0.04 / np.sqrt(576)
"""Root mean square of the difference allowed, relative to the norm of the state."""

CHUNK = 64
"""Rows of a step at most: most prompts take several."""
BLOCK = 32

# float32 keeps 24 bits of mantissa. Sums over the hidden width and the context in another order, through up to thirty
# blocks, leave some hundreds of roundings: 2**-24 * 500 = 3e-5 of the state's norm; ten times that is allowed to the
# worst token, whose norm may be much smaller than those it attends to.
FLOAT32_LARGEST = 3e-4
"""Largest difference allowed of engines in float32, relative to the norm of the state."""


def random_bundle(
    path: Path, model_path: Path, markers: Markers, *, threshold: float, layers: Sequence[int] = LAYERS
) -> Bundle:
    """Random probes of unit weight at three layers, and two random steering vectors in the middle."""
    random = np.random.default_rng(7)
    identity = identify(model_path, DEMO)
    probes = []
    for layer, index in itertools.product(layers, range(2)):
        weight = random.normal(size=identity.hidden)
        probe = Probe(
            name=f"random-{layer}-{index}",
            layer=layer,
            roles=["user", "assistant", "text"],
            threshold=threshold,
            aggregate=Aggregate(),
            calibration=Calibration(0.01, 100, 0, (0.0, 0.04)),
            evaluation=Evaluation(10, 10, 0.5, 0.5, 0.5),
        )
        probes.append((probe, weight / np.linalg.norm(weight), 0.5))
    vectors = [
        (Vector(f"random-{index}", layers[1], hidden_norm=160.0), random.normal(size=identity.hidden))
        for index in range(2)
    ]
    return save_bundle(
        path,
        version="0",
        created="2026-01-01T00:00:00Z",
        model=identity,
        markers=markers,
        probes=probes,
        vectors=vectors,
    )


def settings(model_path: Path, **more: object) -> dict[str, object]:
    """Arguments of an engine that is small and ready soon."""
    return {"model": str(model_path), "max_model_len": 1024, "max_num_seqs": 32, "enforce_eager": True, **more}


def start(name: str, folder: Path, **engine: object) -> Arm:
    return Arm(name, folder / f"{name}.log", engine)


def check_scores(prompts, answers, seen: list[Seen], source, bundle: Bundle) -> None:
    """Every score is the probe applied to the hidden state of transformers in float32, within bfloat16."""
    sequences = [[*prompt, *tokens[:-1]] for prompt, tokens in zip(prompts, answers, strict=True)]
    errors, misplaced = [], []
    for request, reading, sequence in zip(seen, source.read(sequences, LAYERS), sequences, strict=True):
        # Every token that was read, once each, in order: the last one generated never is.
        assert request.positions == list(range(len(sequence)))
        states = np.repeat(reading.states, 2, axis=0)
        reference = np.einsum("pth,ph->tp", states, bundle.weight) + bundle.bias
        norms = np.linalg.norm(states, axis=-1).T
        scores = np.array(request.scores)
        errors.append((scores - reference) / norms)
        misplaced.append((scores[1:] - reference[:-1]) / norms[:-1])
    error = np.concatenate(errors)
    largest, typical = np.abs(error).max(), np.sqrt((error**2).mean(axis=0)).max()
    print(f"score differences relative to the state's norm: largest {largest:.5f}, root mean square {typical:.6f}")
    assert largest <= LARGEST
    assert typical <= TYPICAL
    # The same bound is far from met by the scores of the token before: the check can tell.
    assert np.sqrt((np.concatenate(misplaced) ** 2).mean(axis=0)).min() > 5 * TYPICAL
