"""Engines on Model Runner V2, whose kernels run in Triton's interpreter."""

import os
from pathlib import Path

from monitor.offline.engine_process import Arm

SHIM = Path(__file__).parent / "v2_shim"


def start(name: str, folder: Path, settings: dict[str, object]) -> Arm:
    """An engine on Model Runner V2."""
    path = os.pathsep.join(filter(None, [str(SHIM), os.environ.get("PYTHONPATH")]))
    return Arm(
        name,
        folder / f"{name}.log",
        {**settings, "async_scheduling": True},
        {"PYTHONPATH": path, "TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"},
    )
