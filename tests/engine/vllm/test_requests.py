"""Names of requests: the user's id, the part, and the engine's own, which is short whatever the client chose."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.input_processor import InputProcessor

from monitor.engine.settings import KEY
from monitor.engine.vllm.plugin import register
from monitor.engine.vllm.requests import named
from monitor.wire.bounds import ID_CHARACTERS, bounded_id

LONG = "chatcmpl-" + "a" * 5_000_000
HEX = "0123456789abcdef"


@pytest.mark.parametrize(
    ("engine", "external", "expected"),
    [
        ("chatcmpl-x-01234567", "chatcmpl-x", ("chatcmpl-x", "")),
        ("chatcmpl-x", None, ("chatcmpl-x", "")),
        ("chatcmpl-1234-5-01234567", "chatcmpl-1234-5", ("chatcmpl-1234-5", "")),
        ("cmpl-ab-cd-12-01234567", "cmpl-ab-cd-12", ("cmpl-ab-cd", "prompt 12")),
        ("0", None, ("0", "")),
        ("7_chatcmpl-x-01234567", "chatcmpl-x", ("chatcmpl-x", "choice 7")),
        ("cmpl-x-1-01234567", "cmpl-x-1", ("cmpl-x", "prompt 1")),
        ("12_cmpl-x-1-01234567", "cmpl-x-1", ("cmpl-x", "prompt 1, choice 12")),
        (f"chatcmpl-x-{HEX}-beam-3-01234567", f"chatcmpl-x-{HEX}-beam-3", ("chatcmpl-x", "beam 3")),
        (f"chatcmpl-{HEX}_4-01234567", f"chatcmpl-{HEX}_4", (f"chatcmpl-{HEX}", "prompt 4")),
        # What a client chose itself is not taken for the server's.
        ("chatcmpl-3_x-01234567", "chatcmpl-3_x", ("chatcmpl-3_x", "")),
        ("chatcmpl-job_4-01234567", "chatcmpl-job_4", ("chatcmpl-job_4", "")),
        ("3_x-01234567", "3_x", ("3_x", "")),
        ("3_3_3-01234567", "3_3", ("3_3", "choice 3")),
        ("3_3-01234567", "3_3", ("3_3", "")),
        ("1_x", "x", ("x", "choice 1")),
    ],
)
def test_the_users_id_and_the_part(engine, external, expected):
    assert named(engine, external) == expected


def test_parts_of_a_request_with_a_long_id_share_what_stands_for_it():
    bounded = bounded_id(LONG)
    assert named(f"{bounded}-01234567", LONG) == (bounded, "")
    assert named(f"5_{bounded}-01234567", LONG) == (bounded, "choice 5")
    assert named("x-01234567", f"{LONG}-{HEX}-beam-1") == (bounded, "beam 1")
    assert named("x\ny", None)[0].isprintable()


@pytest.mark.parametrize("external", ["chatcmpl-x", LONG, "a\nb"])
@pytest.mark.parametrize("tapped", [True, False])
def test_vllm_makes_the_engines_id_of_a_short_one(external, tapped):
    register()
    additional = {KEY: {}} if tapped else {}
    processor = object.__new__(InputProcessor)
    processor.vllm_config = SimpleNamespace(additional_config=additional)
    request = EngineCoreRequest(external, [1], None, None, None, 0.0, None, None, None)
    processor.assign_request_id(request)
    # The answer has the client's own.
    assert request.external_req_id == external
    if not tapped:
        assert request.request_id.startswith(f"{external}-")
        return
    assert request.request_id.startswith(f"{bounded_id(external)}-")
    assert len(request.request_id) <= ID_CHARACTERS
    assert named(request.request_id, external) == (bounded_id(external), "")
