"""``plumbob score``, ``plumbob eval`` and ``plumbob calibrate``, as a user meets them."""

import json
import os
import resource
import shutil
import signal
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest

from probes.bundle import MANIFEST, SIGNATURE, TENSORS, load_bundle, save_bundle
from probes.bundle.keys import generate_key, load_private_key
from probes.bundle.manifest import Provenance
from probes.bundle.signing import sign_bundle
from probes.calibration.thresholds import calibrate
from probes.data.requests import read_requests
from probes.evaluation import offline_scores as scoring
from probes.evaluation.offline_scores import Scorer, open_scorer, score_requests
from probes.report import HTML, JSON, read, require_renderer
from tests.harness.command_line import assert_one_error
from tests.harness.models import tiny_model
from tests.harness.mounts import mounted
from tests.harness.offline_bundles import bundle_for, with_workers
from tests.probes.conftest import one_thread  # noqa: F401  (a fixture: so small a model is slower on several threads)

pytest.importorskip("torch")
pytest.importorskip("transformers")

CONTEXT = 48
SHOWS_TOOLS = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% for tool in tools or [] %}{{ '<|im_start|>user\\n' + tool | tojson + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""A template that writes tools as what the user said."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", "llama", max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def fitted(model, tmp_path_factory):
    return bundle_for(model, tmp_path_factory.mktemp("bundles") / "bundle", threshold=5.0)


@pytest.fixture
def folder(tmp_path, fitted):
    """A directory of a bundle, to be written to."""
    shutil.copytree(fitted.path, tmp_path / "bundle")
    return tmp_path


@pytest.fixture
def no_model(monkeypatch):
    """Whatever is wrong must be found before the model is touched: it may take minutes to load."""

    def touched(*arguments, **options):
        raise AssertionError("the model was touched")

    monkeypatch.setattr(scoring, "open_scorer", touched)


def line(index, **more):
    """A request, now of a user alone, now with an answer, now a prompt, some of them long."""
    text = f"Is it warm in {'the ' * (index % 7 + 13 * (index % 11 == 10))}house number {index} today?"
    messages = [{"role": "user", "content": text}]
    if index % 3 == 2:
        return {"id": f"p{index}", "prompt": text, **more}
    if index % 3 == 1:
        messages.append({"role": "assistant", "content": f"They eat nectar, {index} {index * index}."})
    return {"id": index, "messages": messages, **more}


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def files(folder):
    return sorted(entry.name for entry in folder.iterdir() if entry.name != "cache")


@contextmanager
def room(size):
    """No file may grow beyond so many bytes: what a full disk says to whoever writes to it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def score(folder, *options):
    return ["score", folder / "bundle", "--in", folder / "in.jsonl", "--out", folder / "out.jsonl", *options]


def test_a_line_in_is_a_line_out_in_the_same_order(plumbob, folder, fitted):
    requests = write(folder / "in.jsonl", map(line, range(70)))
    result = plumbob(*score(folder, "--batch-tokens", 300))
    assert result.code == 0, result.err
    written = [json.loads(text) for text in (folder / "out.jsonl").read_text().splitlines()]
    rows = read_requests(requests)
    assert [one["id"] for one in written] == [row.id for row in rows]

    scorer = open_scorer(fitted)
    wanted, encoded = score_requests(scorer, rows), scorer.encode(rows)
    for at, one in enumerate(written):
        assert list(one) == (["id", "verdicts", "truncated"] if encoded[at].truncated else ["id", "verdicts"])
        assert one.get("truncated", True) is True
        assert list(one["verdicts"]) == ["asked", "said", "either"]
        for column, verdict in enumerate(one["verdicts"].values()):
            assert list(verdict) == ["score", "threshold", "fired", "token", "tokens", "scored"]
            assert verdict["threshold"] == 5.0 and verdict["tokens"] == wanted.tokens[at, column]
            assert verdict["scored"] == (verdict["score"] is not None) == np.isfinite(wanted.peak[at, column])
            if verdict["scored"]:
                # Batches of another size are rounded otherwise, in bfloat16.
                assert verdict["score"] == pytest.approx(wanted.peak[at, column], rel=0.05, abs=0.5)
                assert verdict["fired"] == (verdict["score"] >= 5.0) == (verdict["token"] is not None)
            else:
                assert not verdict["fired"] and verdict["token"] is None
    truncated = sum(one.truncated for one in encoded)
    assert 0 < truncated < 70
    assert f"{truncated} of 70 requests exceed the model's context: only their beginning was read" in result.err
    fired = sum(one["verdicts"]["asked"]["fired"] for one in written)
    row = next(text for text in result.out.splitlines() if "asked" in text)
    assert [part.strip() for part in row.strip("│").split("│")] == ["asked", str(fired), "70", "0"]
    assert result.out.endswith(f"70 requests scored in {folder / 'out.jsonl'}\n")
    assert "scoring requests (tokens): " in result.err
    assert files(folder) == ["bundle", "in.jsonl", "out.jsonl"]


def test_another_place_of_the_model_may_be_named(plumbob, folder, model):
    write(folder / "in.jsonl", [line(0)])
    moved = shutil.copytree(model, folder / "moved")
    assert plumbob(*score(folder, "--model", moved)).code == 0
    (moved / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "out.jsonl").write_text("earlier\n")
    assert_one_error(plumbob(*score(folder, "--model", moved)), f"not to '{moved}': chat_template differ")
    assert (folder / "out.jsonl").read_text() == "earlier\n"


@pytest.mark.parametrize("command", ["score", "calibrate", "eval"])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{nope", "line 3: not JSON"),
        ('{"id": 0, "prompt": "x"}', "line 3: id 0 is that of line 1 already"),
        ('{"id": 9, "prompt": "x", "labels": {"tone": 1}}', "line 3: has a label for 'tone'; the probes are: asked,"),
        ('{"id": 9, "prompt": "x", "lables": {"said": 1}}', "line 3: has the key 'lables', which is nearly 'labels'"),
    ],
)
def test_a_malformed_line_leaves_nothing(plumbob, folder, no_model, command, bad, said):
    requests = write(folder / "in.jsonl", [line(0), line(1), bad, line(3)])
    before = load_bundle(folder / "bundle").digest
    commands = {
        "score": score(folder),
        "calibrate": ["calibrate", folder / "bundle", "--benign", requests, "--out", folder / "new"],
        "eval": ["eval", folder / "bundle", "--data", requests, "--out", folder / "new"],
    }
    assert_one_error(plumbob(*commands[command]), f"{requests}, {said}")
    assert files(folder) == ["bundle", "in.jsonl"]
    assert load_bundle(folder / "bundle").digest == before


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("in.jsonl", "is the file that is read"),
        ("bundle", "exists and is not a file"),
        ("gone/out.jsonl", "is not a directory that you may write to"),
        ("in.jsonl/out.jsonl", "is not a directory that you may write to"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(plumbob, folder, no_model, out, said):
    requests = write(folder / "in.jsonl", [line(0)])
    result = plumbob("score", folder / "bundle", "--in", requests, "--out", folder / out)
    assert_one_error(result, str(folder / out), said, "Name another file with --out.")
    assert files(folder) == ["bundle", "in.jsonl"]


def test_a_file_that_is_mounted_is_refused_before_any_work(plumbob, folder, no_model):
    """It is replaced by another when that is whole, and a mount point cannot be."""
    requests = write(folder / "in.jsonl", [line(0)])
    for name in ("out.jsonl", "elsewhere"):
        (folder / name).write_text("earlier\n")
    with mounted(folder / "out.jsonl", folder / "elsewhere"):
        result = plumbob("score", folder / "bundle", "--in", requests, "--out", folder / "out.jsonl")
        assert_one_error(
            result, f"{folder / 'out.jsonl'} is a mount point, which no file can replace. Mount its directory"
        )
    assert (folder / "out.jsonl").read_text() == "earlier\n"


def call(text):
    return [{"id": "c1", "type": "function", "function": {"name": "lookup", "arguments": text}}]


LOOKED_UP = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "look "}, {"type": "text", "text": "it up"}]},
    {"role": "assistant", "content": None, "tool_calls": call('{"q": "weather"}')},
    {"role": "tool", "tool_call_id": "c1", "content": "It is warm."},
    {"role": "assistant", "content": "It is warm in the house."},
]
TOOLS = [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}]
TRAFFIC = {
    "a byte order mark": b'\xef\xbb\xbf{"id": 1, "prompt": "hi"}\n',
    "a blank last line": b'{"id": 1, "prompt": "hi"}\n\n',
    "tools": json.dumps({"id": 1, "messages": LOOKED_UP, "tools": TOOLS}).encode(),
    "a batch": json.dumps(
        {
            "custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": LOOKED_UP[:2], "tools": TOOLS, "max_tokens": 5},
        }
    ).encode(),
    "a missing content": json.dumps({"id": 1, "messages": [{"role": "user"}, *LOOKED_UP[2:]]}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("shape", TRAFFIC)
def test_files_of_real_traffic_are_read(plumbob, folder, shape):
    (folder / "in.jsonl").write_bytes(TRAFFIC[shape])
    result = plumbob(*score(folder))
    assert result.code == 0, result.err
    (written,) = [json.loads(text) for text in (folder / "out.jsonl").read_text().splitlines()]
    assert str(written["id"]) == "1" and written["verdicts"]["either"]["tokens"] > 0


def test_tools_are_part_of_what_is_scored(plumbob, folder, model, tmp_path):
    """They are in the prompt of the server, and so in that of the file."""
    served = shutil.copytree(model, tmp_path / "served")
    (served / "chat_template.jinja").write_text(SHOWS_TOOLS)
    shutil.rmtree(folder / "bundle")
    bundle_for(served, folder / "bundle", threshold=5.0)
    asked = {"messages": [{"role": "user", "content": "Is it warm?"}]}
    write(folder / "in.jsonl", [{"id": "without", **asked}, {"id": "with", **asked, "tools": TOOLS}])
    assert plumbob(*score(folder)).code == 0
    without, including = [json.loads(text) for text in (folder / "out.jsonl").read_text().splitlines()]
    assert without["verdicts"]["asked"]["tokens"] + 10 < including["verdicts"]["asked"]["tokens"]


def test_bad_lines_are_skipped_and_told(plumbob, folder):
    image = [{"type": "image_url", "image_url": {"url": "data:,x"}}]
    bad = [
        "nope",
        '{"id": 7, "prompt": "\\ud800"}',
        {"id": 8, "messages": [{"role": "user", "content": image}]},
        {"id": 9, "messages": [{"role": "user", "content": None}]},
    ]
    requests = write(folder / "in.jsonl", [line(0), *bad, line(1)])
    assert_one_error(plumbob(*score(folder)), f"{requests}, line 2: not JSON", "--skip-invalid")
    result = plumbob(*score(folder, "--skip-invalid"))
    assert result.code == 0 and "2 requests scored" in result.out
    told = result.err[result.err.index("4 requests skipped, which cannot be read; the first for these reasons:\n") :]
    assert told.splitlines()[1:4] == [
        f"  {requests}, line 2: not JSON (Expecting value at character 1).",
        f"  {requests}, line 3: prompt has \\ud800 without its other half, which is no character: "
        "the server cannot read it either.",
        f"  {requests}, line 4: messages[0].content[0] is of type 'image_url', and only text is read.",
    ]
    written = [json.loads(text)["id"] for text in (folder / "out.jsonl").read_text().splitlines()]
    assert written == [0, 1]
    write(requests, bad)
    assert_one_error(plumbob(*score(folder, "--skip-invalid")), "has no line that can be read. The first: ")


def test_what_the_template_refuses_is_skipped_too(plumbob, folder, model, tmp_path):
    served = shutil.copytree(model, tmp_path / "served")
    refusing = (
        "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('No tools') }}{% endif %}"
    )
    (served / "chat_template.jinja").write_text(refusing + SHOWS_TOOLS.replace("{% for message in messages %}", "", 1))
    shutil.rmtree(folder / "bundle")
    bundle_for(served, folder / "bundle", threshold=5.0)
    refused = {"id": "t", "messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}]}
    write(folder / "in.jsonl", [line(0), refused])
    result = plumbob(*score(folder))
    assert result.code == 2 and result.err.count("error: ") == 1
    assert "error: Request 't' cannot be encoded for the model: No tools. " in result.err and "--skip-inv" in result.err
    result = plumbob(*score(folder, "--skip-invalid"))
    assert result.code == 0, result.err
    assert "1 requests skipped" in result.err and "1 requests scored" in result.out
    write(folder / "in.jsonl", [refused])
    result = plumbob(*score(folder, "--skip-invalid"))
    assert result.code == 2 and "error: No request can be read. The first: Request 't' cannot" in result.err


@pytest.mark.parametrize("size", [0, 300, 20_000], ids=["at once", "in the first lines", "late"])
def test_a_full_disk_is_one_line_and_leaves_nothing(plumbob, folder, size):
    """Nothing of this file; an earlier one is still there."""
    write(folder / "in.jsonl", map(line, range(70)))
    (folder / "out.jsonl").write_text("earlier\n")
    with room(size):
        result = plumbob(*score(folder))
    errors = [text for text in result.err.splitlines() if text.startswith("error: ")]
    assert (result.code, errors) == (
        2,
        [
            f"error: {folder / 'out.jsonl'} cannot be written: File too large. Nothing was kept. "
            "Free space, or change --out."
        ],
    )
    assert "Traceback" not in result.err
    assert files(folder) == ["bundle", "in.jsonl", "out.jsonl"]
    assert (folder / "out.jsonl").read_text() == "earlier\n"


def test_the_disk_of_that_test_would_be_large_enough_empty(plumbob, folder):
    write(folder / "in.jsonl", map(line, range(70)))
    with room(100_000):
        assert plumbob(*score(folder)).code == 0
    assert (folder / "out.jsonl").stat().st_size > 20_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing(plumbob, folder, monkeypatch, number):
    write(folder / "in.jsonl", map(line, range(70)))
    describe, seen = Scorer.describe, []

    def interrupted(*arguments, **options):
        seen.append(files(folder))
        if len(seen) == 40:
            os.kill(os.getpid(), number)
        return describe(*arguments, **options)

    monkeypatch.setattr(Scorer, "describe", interrupted)
    assert plumbob(*score(folder)).code == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert len(seen[-1]) == 3, "it was being written"
    assert files(folder) == ["bundle", "in.jsonl"]


def benign(folder, count=120):
    sources = ("docs", "chat", "code")
    return write(
        folder / "benign.jsonl",
        [
            line(index, source=sources[index % 3 if index % 4 else 0], slices={"even": index % 2 == 0})
            for index in range(count)
        ],
    )


def test_thresholds_are_set_on_traffic(plumbob, folder, fitted):
    rows = read_requests(benign(folder))
    before = load_bundle(folder / "bundle")
    result = plumbob(
        "calibrate", folder / "bundle", "--benign", folder / "benign.jsonl", "--fpr", "0.05", "--out", folder / "new"
    )
    assert result.code == 0, result.err
    made = load_bundle(folder / "new")
    assert load_bundle(folder / "bundle").digest == before.digest, "the bundle itself is as it was"
    assert np.array_equal(made.weight, before.weight) and np.array_equal(made.bias, before.bias)
    assert made.manifest.model == before.manifest.model and made.manifest.markers == before.manifest.markers
    assert [msgspec.structs.replace(probe, threshold=5.0, calibration=None) for probe in made.probes] == [
        msgspec.structs.replace(probe, calibration=None) for probe in before.probes
    ]

    scores = score_requests(open_scorer(fitted), rows)
    for column, probe in enumerate(made.probes):
        read = scores.tokens[:, column] > 0
        found = {part.name: part for part in probe.calibration.slices}
        assert probe.calibration.false_positive_rate == 0.05
        assert probe.calibration.benign == read.sum() == (40 if probe.name == "said" else 120)
        assert probe.calibration.fired == (scores.peak[:, column] >= probe.threshold).sum()
        pooled = calibrate(scores.peak[read, column], 0.05)[0]
        certified = [part.threshold for part in found.values() if part.certified and part.name.startswith("source=")]
        assert probe.threshold == max([pooled, *certified])
        assert sum(part.benign for part in found.values() if part.name.startswith("length=")) == read.sum()
        assert sum(part.benign for part in found.values() if part.name.startswith("source=")) == read.sum()
        for name, part in found.items():
            if part.certified and name.startswith("source="):
                assert part.fired <= 0.05 * part.benign
        even = [row.slices["even"] == "true" for row in rows]
        assert found["even=true"].benign == (read & even).sum()
    docs = next(part for part in made.probes[0].calibration.slices if part.name == "source=docs")
    assert docs.certified and not made.probes[1].calibration.slices[0].certified
    assert "source=docs" in result.out and "even=false" in result.out
    assert f"{made.probes[0].threshold:.2f} (was 5.00)" in result.out


def test_a_bundle_is_calibrated_in_place_and_what_cannot_be_is_kept(plumbob, folder):
    """Traffic without answers says nothing of a probe of answers."""
    write(folder / "benign.jsonl", [line(index) for index in range(120) if index % 3 != 1])
    result = plumbob("calibrate", folder / "bundle", "--benign", folder / "benign.jsonl", "--fpr", "0.05")
    assert result.code == 0, result.err
    made = {probe.name: probe for probe in load_bundle(folder / "bundle").probes}
    assert made["asked"].threshold != 5.0 and made["asked"].calibration.benign == 80
    assert made["said"].threshold == 5.0 and made["said"].calibration.benign == 100
    assert "said keeps its threshold. Of 80 requests, 0 have tokens that it reads." in result.err
    assert "5.00 (kept)" in result.out
    assert files(folder) == ["benign.jsonl", "bundle"]


def test_worker_probes_are_scored_and_calibrated_with_the_others(plumbob, folder, fitted):
    """What reads the states stays as it was; so it does where a bundle is signed."""
    both = with_workers(fitted, folder / "bundle")
    write(folder / "in.jsonl", map(line, range(9)))
    assert plumbob(*score(folder)).code == 0
    (scored,) = {tuple(json.loads(text)["verdicts"]) for text in (folder / "out.jsonl").read_text().splitlines()}
    assert scored == tuple(probe.name for probe in both.all_probes) and "either at length" in scored
    result = plumbob("calibrate", folder / "bundle", "--benign", benign(folder), "--fpr", "0.05")
    assert result.code == 0, result.err
    key = folder / "key"
    assert plumbob("keygen", "--out", key).code == plumbob("sign", folder / "bundle", "--key", key).code == 0
    made = load_bundle(folder / "bundle")
    for old, new in zip(both.worker_probes, made.worker_probes, strict=True):
        assert new.probe.threshold != old.probe.threshold and new.probe.calibration.false_positive_rate == 0.05
        assert all(np.array_equal(tensor, new.reader.tensors()[name]) for name, tensor in old.reader.tensors().items())
    rows = read_requests(folder / "benign.jsonl")
    scores = score_requests(open_scorer(made), rows)
    fired = (scores.peak >= [probe.threshold for probe in made.all_probes]).sum(axis=0)
    assert fired.tolist() == [probe.calibration.fired for probe in made.all_probes]


def test_what_vouches_for_the_earlier_thresholds_is_left_out(plumbob, folder, fitted):
    def save(path, **more):
        manifest = fitted.manifest
        return save_bundle(
            path,
            version="0",
            created="2026-01-01T00:00:00Z",
            model=manifest.model,
            markers=manifest.markers,
            probes=list(zip(fitted.probes, fitted.weight, fitted.bias.tolist(), strict=True)),
            vectors=[],
            **more,
        )

    provenance = {"asked": [Provenance("shipped", "Apache-2.0", {}, 3)]}
    bundle = save(folder / "bundle", files={"report.json": b"{}"}, provenance=provenance)
    (bundle.path / SIGNATURE).write_text("{}")
    result = plumbob("calibrate", bundle.path, "--benign", benign(folder), "--fpr", "0.05")
    assert result.code == 0, result.err
    assert "left out, since of the earlier thresholds: report.json, signature.json. Evaluate and sign" in result.err
    made = load_bundle(bundle.path)
    assert sorted(entry.name for entry in made.path.iterdir()) == [MANIFEST, TENSORS]
    assert made.manifest.provenance == provenance


def test_traffic_too_small_for_the_rate_is_refused_before_any_work(plumbob, folder, no_model):
    result = plumbob("calibrate", folder / "bundle", "--benign", benign(folder, 60))
    assert_one_error(result, "rate of 0.01 cannot be set on 60 benign requests. It takes 99;")


def test_traffic_that_is_labelled_as_harmful_is_refused_before_any_work(plumbob, folder, no_model):
    write(folder / "benign.jsonl", [line(0, labels={"said": 0}), line(1, labels={"asked": 0, "said": 1})])
    result = plumbob("calibrate", folder / "bundle", "--benign", folder / "benign.jsonl", "--fpr", "0.5")
    assert_one_error(result, "benign.jsonl: request 1 is labelled as said, which is not benign")


def test_a_slice_for_each_request_is_refused_before_any_work(plumbob, folder, no_model):
    write(folder / "benign.jsonl", [line(index, slices={"user": str(index)}) for index in range(300)])
    result = plumbob("calibrate", folder / "bundle", "--benign", folder / "benign.jsonl")
    assert_one_error(result, "The requests have 301 sources and slices; a calibration holds 256.")


def test_where_no_threshold_can_be_set_nothing_is_written(plumbob, folder):
    """No probe reads a system message."""
    rows = [{"id": index, "messages": [{"role": "system", "content": "You answer."}]} for index in range(30)]
    write(folder / "benign.jsonl", rows)
    result = plumbob(
        "calibrate", folder / "bundle", "--benign", folder / "benign.jsonl", "--fpr", "0.1", "--out", folder / "new"
    )
    assert result.code == 2 and "error: No threshold can be set on" in result.err
    assert "Of 30 requests, 0 have tokens that it reads." in result.err
    assert files(folder) == ["benign.jsonl", "bundle"]


# plumbob eval.


def labelled(folder, count=120, **more):
    """Requests that are labelled for ``asked`` by their number, and for ``said`` where they have an answer."""
    rows = []
    for index in range(count):
        labels = {"asked": int(index % 4 == 0)} | ({"said": int(index % 2)} if index % 3 == 1 else {})
        rows.append(line(index, labels=labels, source=("x", "y")[index % 2], group=index // 2, model="any", **more))
    return write(folder / "data.jsonl", rows)


def evaluate(folder, *options):
    return ["eval", folder / "bundle", "--data", folder / "data.jsonl", *options]


def test_a_bundle_is_judged_on_labelled_requests(plumbob, folder, fitted):
    pytest.importorskip("matplotlib")
    rows = read_requests(labelled(folder, slices={"kind": "all alike"}))
    before = load_bundle(folder / "bundle").digest
    result = plumbob(*evaluate(folder, "--out", folder / "new" / "report"))
    assert result.code == 0, result.err
    report = read(folder / "new" / "report")
    assert (folder / "new" / "report" / HTML).read_text().startswith("<!DOCTYPE html>")
    assert load_bundle(folder / "bundle").digest == before, "the bundle is as it was"
    assert [probe.name for probe in report.probes] == ["asked", "said"]
    assert (
        report.command == f"plumbob eval {folder / 'bundle'} --data {folder / 'data.jsonl'} --out {folder}/new/report"
    )

    scores = score_requests(open_scorer(fitted), rows)
    for column, probe in enumerate(report.probes):
        mine = [at for at, row in enumerate(rows) if probe.name in row.labels]
        label = np.array([rows[at].labels[probe.name] for at in mine])
        fired = scores.peak[mine, column] >= 5.0
        whole, rate = probe.given[0], probe.false_positives[0]
        assert (
            (whole.n_positive, whole.n_negative)
            == (label.sum(), (~label).sum())
            == (len(mine) - rate.requests, rate.requests)
        )
        assert whole.recall.point == pytest.approx(fired[label].mean())
        assert (rate.source, rate.fired) == ("all", fired[~label].sum())
        assert probe.threshold == 5.0 and probe.heatmaps == []
        row = next(text for text in result.out.splitlines() if text.startswith(f"│ {probe.name} "))
        assert [cell.strip() for cell in row.strip("│").split("│")][:3] == [probe.name, "all", str(label.sum())]
        assert f"{probe.name}: {probe.verdict_says[0]}" in result.out
    # Of x, every second is positive; of y, none; and only 40 requests have an answer.
    assert [part.name for part in report.probes[0].given] == ["all", "source=x"]
    assert report.probes[0].given[0].text is not None and report.probes[1].given[0].text is None
    assert "said: No baseline was made of words and length: 40 labelled requests, and it takes 50." in result.out
    truncated = sum(one.truncated for one in open_scorer(fitted).encode(rows))
    assert truncated and f"{truncated} of 120 requests exceed the model's context: the probes read only" in result.out
    assert "No request is labelled for: either." in result.out
    assert result.out.endswith(f"report {folder / 'new' / 'report' / HTML}\n")


def test_no_text_of_a_request_is_in_a_report_unless_it_is_asked_for(plumbob, folder):
    pytest.importorskip("matplotlib")
    labelled(folder)
    text = {}
    for name, options in (("plain", []), ("shown", ["--heatmaps"])):
        assert plumbob(*evaluate(folder, "--out", folder / name, *options)).code == 0
        text[name] = [(folder / name / file).read_text() for file in (JSON, HTML)]
    # Words of every request; a token each, or more.
    assert not any("warm" in page or "nectar" in page for page in text["plain"])
    shown = ["".join(heat.tokens) for probe in read(folder / "shown").probes for heat in probe.heatmaps]
    assert 2 <= len(shown) <= 6 and all("Is it warm in" in conversation for conversation in shown)


def test_without_a_directory_nothing_is_written(plumbob, folder, monkeypatch):
    monkeypatch.setattr("probes.report.templating.importlib.util.find_spec", lambda name: None)
    labelled(folder)
    result = plumbob(*evaluate(folder))
    assert result.code == 0, result.err
    assert "recall at the threshold" in result.out and "report" not in result.out
    assert files(folder) == ["bundle", "data.jsonl"]


def test_what_is_wrong_with_an_evaluation_is_found_before_the_model_is_touched(plumbob, folder, no_model, monkeypatch):
    assert_one_error(plumbob(*evaluate(folder)), "data.jsonl cannot be read")
    write(folder / "data.jsonl", map(line, range(9)))
    assert_one_error(plumbob(*evaluate(folder)), "data.jsonl has no labels.", '"labels": {"toxicity": 1')
    write(
        folder / "data.jsonl", [line(index, labels={"asked": 1}, slices={"user": str(index)}) for index in range(300)]
    )
    assert_one_error(plumbob(*evaluate(folder)), "The requests have 301 sources and slices")
    labelled(folder)
    assert_one_error(plumbob(*evaluate(folder, "--heatmaps")), "no report is asked for", "Add --out DIR.")
    assert_one_error(plumbob(*evaluate(folder, "--out", folder / "bundle")), "is a bundle, which vouches for each of")
    assert_one_error(
        plumbob(*evaluate(folder, "--out", folder / "data.jsonl")), "is not a directory that you may write"
    )
    assert_one_error(
        plumbob(*evaluate(folder, "--out", folder / "data.jsonl" / "new")), "is not a directory that you may"
    )
    monkeypatch.setattr("probes.report.templating.importlib.util.find_spec", lambda name: None)
    assert_one_error(plumbob(*evaluate(folder, "--out", folder / "new")), "needs matplotlib")
    assert files(folder) == ["bundle", "data.jsonl"]


def test_a_full_disk_leaves_no_half_report_and_what_was_measured_is_still_told(plumbob, folder):
    require_renderer()
    labelled(folder, 60)
    with room(1000):
        result = plumbob(*evaluate(folder, "--out", folder / "new"))
    assert (
        result.code == 2 and "error: The report cannot be written to" in result.err and "File too large" in result.err
    )
    assert "recall at the threshold" in result.out and "report " not in result.out
    assert list((folder / "new").iterdir()) == []


@pytest.mark.parametrize("command", ["score", "calibrate", "eval"])
def test_only_a_bundle_signed_by_a_trusted_key_is_used(plumbob, folder, no_model, command):
    for name in ("key", "other"):
        generate_key(folder / name)
    labelled(folder)
    write(folder / "in.jsonl", map(line, range(120)))
    commands = {
        "score": score(folder),
        "calibrate": ["calibrate", folder / "bundle", "--benign", folder / "in.jsonl", "--out", folder / "new"],
        "eval": evaluate(folder),
    }
    assert_one_error(
        plumbob(*commands[command], "--trust", folder / "key.pub"), "is not signed: it has no signature.json"
    )
    sign_bundle(load_bundle(folder / "bundle"), load_private_key(folder / "key", lambda: b""))
    assert_one_error(plumbob(*commands[command], "--trust", folder / "other.pub"), "which is none of the 1 trusted")
    with pytest.raises(AssertionError, match="the model was touched"):
        plumbob(*commands[command], "--trust", folder / "other.pub", "--trust", folder / "key.pub")


@pytest.mark.parametrize("command", ["score", "calibrate", "eval"])
def test_the_help_says_what_a_line_is(plumbob, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "400")
    help_text = plumbob(command, "--help").out
    assert '{"id", "messages": [{"role", "content"}, …]} or {"id", "prompt"}' in help_text
    assert ('"labels": {probe: 0 or 1}' in help_text) is (command == "eval")
