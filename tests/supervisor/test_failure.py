"""The reason for a process's end, out of what real ones have written."""

import pytest

from monitor.supervisor.failure import reason_in

MEMORY = (
    "Available memory on node 0 (9.31/23.42 GiB) on startup is less than desired CPU memory utilization (0.92, "
    "21.55 GiB). On the CPU backend, the `--gpu-memory-utilization` flag controls the fraction of CPU memory reserved"
)
ENGINE = f"""\
(APIServer pid=101) INFO 11-28 04:05:03 [api_server.py:1216] vLLM API server version 0.32.0
(EngineCore pid=202) ERROR 11-28 04:05:03 [core.py:1110] EngineCore failed to start.
(EngineCore pid=202) ERROR 11-28 04:05:03 [core.py:1110] Traceback (most recent call last):
(EngineCore pid=202) ERROR 11-28 04:05:03 [core.py:1110]   File "/x/core.py", line 1, in run
(EngineCore pid=202) ERROR 11-28 04:05:03 [core.py:1110]     raise ValueError(
(EngineCore pid=202) ERROR 11-28 04:05:03 [core.py:1110] ValueError: {MEMORY}.
(EngineCore pid=202) Process EngineCore:
(EngineCore pid=202) Traceback (most recent call last):
(EngineCore pid=202)   File "/x/core.py", line 1, in run
(EngineCore pid=202) ValueError: {MEMORY}.
(APIServer pid=101) Traceback (most recent call last):
(APIServer pid=101)   File "<frozen runpy>", line 198, in _run_module_as_main
(APIServer pid=101) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
"""

OUTPUTS = {
    "the engine, and not the server that waited for it": (ENGINE, f"ValueError: {MEMORY}"),
    "a tap that refuses": (
        'Traceback (most recent call last):\n  File "x", line 1, in y\n'
        "monitor.errors.EngineError: Plumbob cannot tap an engine with pooling models yet. Serve a generative model.\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n",
        "Plumbob cannot tap an engine with pooling models yet. Serve a generative model",
    ),
    "an option that is none": (
        "usage: api_server.py [-h] [--headless]\napi_server.py: error: unrecognized arguments: --max-modl-len 7\n",
        "unrecognized arguments: --max-modl-len 7",
    ),
    "a configuration that pydantic refuses": (
        "(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "(APIServer pid=1)   Value error, max_model_len (9999) is greater than 2048. [type=value_error]\n"
        "(APIServer pid=1)     For further information visit https://errors.pydantic.dev/2/v/value_error\n",
        "ValidationError: 1 validation error for ModelConfig Value error, max_model_len (9999) is greater than 2048. "
        "[type=value_error]",
    ),
    "the monitor": (
        "INFO x\nerror: Bundle b is not a bundle: it has no bundle.json.\n",
        "Bundle b is not a bundle: it has no bundle.json",
    ),
    "an error in colours": ("\x1b[1;31merror: \x1b[0mport in use.\n", "port in use"),
    "an exception without words": (
        "Traceback (most recent call last):\n  File x\nKeyboardInterrupt\n",
        "KeyboardInterrupt",
    ),
    "no error": ("loading\nhalf way there\n\n", "half way there"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize("what", OUTPUTS)
def test_the_reason_is_what_the_process_itself_said_last(what):
    output, reason = OUTPUTS[what]
    assert reason_in(output) == reason


def test_a_reason_is_bounded():
    assert len(reason_in(f"ValueError: {'x' * 5000}")) < 700
