"""Bundles for scoring offline with a tiny model."""

import pytest

torch = pytest.importorskip("torch")
from pathlib import Path

import msgspec
import numpy as np
import pytest

from probes.bundle import Bundle, Calibration, Evaluation, Probe, WorkerProbe, save_bundle
from probes.models import identify
from probes.models.chat import Message
from probes.models.markers import find_markers
from probes.scoring.aggregate import Aggregate
from probes.scoring.multimax import MultiMax

transformers = pytest.importorskip("transformers")
PROBES = (
    ("asked", 1, ["user", "text"], Aggregate(half_life=4.0, min_tokens=3)),
    ("said", 3, ["assistant"], Aggregate(half_life=2.0, min_tokens=2, window=3, agree=2, agree_of=3)),
    ("either", 3, ["user", "assistant", "text"], Aggregate(half_life=8.0, min_tokens=1)),
)


def user(text):
    return Message("user", text)


def assistant(text):
    return Message("assistant", text)


def bundle_for(model: Path, path: Path, threshold: float = 25.0) -> Bundle:
    """Three random probes of a tiny model; about half of what they read makes them fire."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    identity = identify(model, str(model))
    random = np.random.default_rng(3)
    return save_bundle(
        path,
        version="0",
        created="2026-01-01T00:00:00Z",
        model=identity,
        markers=find_markers(tokenizer),
        probes=[
            (
                Probe(
                    name=name,
                    layer=layer,
                    roles=roles,
                    threshold=threshold,
                    aggregate=aggregate,
                    calibration=Calibration(0.01, 100, 1, (0.0, 0.05)),
                    evaluation=Evaluation(positives=50, negatives=50, auroc=0.9, auroc_text=0.6, recall=0.8),
                ),
                random.normal(size=identity.hidden),
                0.1,
            )
            for name, layer, roles, aggregate in PROBES
        ],
        vectors=[],
    )


@pytest.fixture(scope="module")
def bundle(tiny_model, tmp_path_factory):
    return bundle_for(tiny_model, tmp_path_factory.mktemp("bundles") / "bundle")


WORKERS = (
    ("asked at length", 2, ["user"], Aggregate(half_life=1.0, min_tokens=3)),
    ("either at length", 3, ["assistant", "user"], Aggregate(half_life=2.0, min_tokens=2, agree=2, agree_of=3)),
)
WINDOW = 5


def with_workers(bundle, path, probes=True):
    """The same bundle with networks of two heads beside its probes, or in their place."""
    random = np.random.default_rng(8)
    hidden, workers = bundle.manifest.model.hidden, []
    for name, layer, roles, aggregate in WORKERS:
        shapes = (6, hidden), (6,), (6, 6), (6,), (2, 6), (2, 6), (1,)
        tensors = [random.normal(size=shape).astype(np.float32) for shape in shapes]
        tensors[5] /= 30
        probe = msgspec.structs.replace(
            bundle.probes[0], name=name, layer=layer, roles=roles, aggregate=aggregate, kind="multimax", threshold=150.0
        )
        workers.append(WorkerProbe(probe, MultiMax(*tensors, window=WINDOW)))
    kept = list(zip(bundle.probes, bundle.weight, bundle.bias.tolist(), strict=True)) if probes else []
    manifest = bundle.manifest
    return save_bundle(
        path,
        version="0",
        created="",
        model=manifest.model,
        markers=manifest.markers,
        probes=kept,
        vectors=[],
        worker_probes=workers,
    )
