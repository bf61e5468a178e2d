"""A fit that takes seconds: a tiny model and a few sentences."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
import json
from dataclasses import replace

import pytest

from probes.data.concepts import Concept
from probes.data.examples import Benign
from probes.fit import bundle_fit as fitting
from probes.fit import concept_fit
from probes.fit import material as gathering
from probes.models.activations import TransformersSource
from probes.models.chat import Message
from probes.scoring.aggregate import Aggregate
from probes.scoring.roles import Role

THINGS = ("boat", "house", "bird", "door", "car", "hat", "cup", "box", "bell", "kite", "tent", "ring")
AGGREGATE = Aggregate(half_life=4.0, min_tokens=2)
BENIGN = 80
RATE = 0.1
REQUESTS = [
    Benign(
        f"b-{number}",
        "t",
        [Message("user", f"Is it warm in {'the ' * (number % 5)}house number {number} today?")],
        "streets" if number % 2 else "shipped",
    )
    for number in range(BENIGN)
]


def pair(index, thing, name, role):
    before = [] if role == "user" else [{"role": "user", "content": f"What colour is the {thing}?"}]
    red, blue = (
        [*before, {"role": role, "content": f"The {colour} {colour} {thing} and the {colour} {colour} hat."}]
        for colour in ("red", "blue")
    )
    return {"id": f"{name}-{index}", "topic": thing, "positive": red, "negative": blue}


def write_concept(folder, name, role, family="", rows=None):
    """Pairs that tell red from blue, in the last message."""
    path = folder / f"{name}.jsonl"
    rows = [pair(index, thing, name, role.name.lower()) for index, thing in enumerate(THINGS)] if rows is None else rows
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Concept(name, "it is red", (role,), path, aggregates=(AGGREGATE,), family=family)


@pytest.fixture(scope="module")
def concepts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts")
    return (
        write_concept(folder, "asked", Role.USER),
        write_concept(folder, "said", Role.ASSISTANT, "colours"),
        write_concept(folder, "answered", Role.ASSISTANT, "colours"),
    )


@pytest.fixture(scope="module")
def quick(concepts):
    """One concept with one way to fit it."""
    return (replace(concepts[0], kinds=("mean_difference",)),)


@pytest.fixture(scope="module", autouse=True)
def few_benign():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "load_benign", lambda: REQUESTS)
        patch.setattr(gathering, "load_benign", lambda: REQUESTS)
        patch.setattr(gathering, "ANSWER_TOKENS", 6)
        patch.setattr(concept_fit, "PENALTIES", (1e-2,))
        yield


class Reads:
    """What a model was asked to do."""

    def __init__(self, patch):
        self.read, self.answered = [], []
        read, respond = TransformersSource.read, TransformersSource.respond

        def reading(source, conversations, *rest):
            self.read += [list(ids) for ids in conversations]
            return read(source, conversations, *rest)

        def responding(source, prompts, *rest):
            self.answered += [list(ids) for ids in prompts]
            return respond(source, prompts, *rest)

        patch.setattr(TransformersSource, "read", reading)
        patch.setattr(TransformersSource, "respond", responding)


def fit(model, out, concepts, **options):
    return fitting.fit_bundle(
        str(model), out, **{"version": "1.2.3", "false_positive_rate": RATE, "concepts": concepts} | options
    )
