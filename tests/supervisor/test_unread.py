"""A real vLLM that starts, is healthy, and is read by nobody: ``plumbob serve`` stops it, with the reason."""

import pytest

from tests.harness.command_line import Running
from tests.harness.ports import free_port

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

BETWEEN = """\
import os, sys
if "vllm.entrypoints.openai.api_server" in sys.orig_argv:
    # As a wrapper around Python may: after everything was looked at, and for vLLM alone.
    os.environ["VLLM_PLUGINS"] = ""
"""


def test_a_server_without_the_plugin_is_stopped(model_path, tmp_path, monkeypatch):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(BETWEEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"), prepend=":")
    ports = zip(("--port", "--metrics-port", "--grpc-port"), (free_port() for _ in range(3)), strict=True)
    run = Running(
        *("serve", "demo", "--eager", "--max-model-len", "512", "--audit", "none", "--state", "none"),
        *("--endpoint", f"ipc://{tmp_path}/engine.sock"),
        *(part for pair in ports for part in pair),
        VLLM_CPU_KVCACHE_SPACE="1",
        # Where the model is unpacked.
        PLUMBOB_CACHE=str(model_path.parents[1]),
    )
    result = run.finish(400)
    lines = result.err.strip().splitlines()
    assert any("vLLM ready" in line for line in lines), result.err[-3000:]
    assert lines[-1].startswith("error: vLLM serves unread, and is stopped: 15 s after it was ready"), lines[-1]
    assert result.code == 2 and run.alive() == []
