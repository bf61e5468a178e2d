"""The plugin, as the process that starts vLLM's server will find it; found without importing vLLM."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from monitor.errors import PrerequisiteError

NAME: Final = "plumbob"
"""Of the entry point in ``vllm.general_plugins``."""
SAFE_PATH: Final = {"PYTHONSAFEPATH": "1"}
"""Environment of every Python that is started: a ``monitor.py`` in the working directory is not ours."""
_SECONDS: Final = 120.0
_LOOK: Final = f"""
import importlib.metadata, json, sys
said = {{}}
for point in importlib.metadata.entry_points(group="vllm.general_plugins", name="{NAME}"):
    try:
        said["file"] = sys.modules[point.load().__module__].__file__
    except BaseException as error:
        said["error"] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps(said))
"""
"""Loads the entry point as vLLM does, but for calling it."""


class _Said(msgspec.Struct, frozen=True):
    """The plugin in another process; all is missing where there is no entry point."""

    file: str | None = None
    error: str | None = None


def require_plugin(environment: Mapping[str, str] | None = None) -> Path:
    """Check that a vLLM started with this interpreter will load this very plugin.

    Args:
        environment: All of its environment; ``None``: this process's.

    Returns:
        The file that it is loaded from.

    Raises:
        PrerequisiteError: ``VLLM_PLUGINS`` leaves it out, it is not installed there, it cannot be loaded, or it is of
            another installation.
    """
    given = os.environ if environment is None else environment
    allowed = given.get("VLLM_PLUGINS")
    if allowed is not None and NAME not in allowed.split(","):
        raise PrerequisiteError(
            f"VLLM_PLUGINS is {allowed!r} and leaves {NAME} out.", "Add plumbob to it, or unset it."
        )
    said = _look(given)
    if said.error is not None:
        raise PrerequisiteError(
            f"vLLM's plugin cannot be loaded: {said.error}.", "Install plumbob again, into vLLM's environment."
        )
    if said.file is None:
        raise PrerequisiteError("vLLM does not see the plugin.", "Run: pip install plumbob (into vLLM's environment)")
    ours = Path(__file__).with_name("plugin.py").resolve()
    if (theirs := Path(said.file).resolve()) != ours:
        raise PrerequisiteError(
            f"vLLM would load the plugin from {theirs}, and this is {ours.parents[3]}.",
            "Uninstall one of the two, or start the plumbob that is beside vLLM.",
        )
    return theirs


def _look(environment: Mapping[str, str]) -> _Said:
    try:
        looked = subprocess.run(
            [sys.executable, "-c", _LOOK],
            env={**environment, **SAFE_PATH},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return _Said(error=f"that takes more than {_SECONDS:.0f} s")
    lines = looked.stdout.strip().splitlines()
    try:
        return msgspec.json.decode(lines[-1] if lines else "", type=_Said)
    except msgspec.DecodeError:
        last = (looked.stderr.strip().splitlines() or [f"exit code {looked.returncode}"])[-1]
        return _Said(error=last.removesuffix("."))
