"""``plumbob doctor``: what is missing, and the exact fix."""

import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from monitor.addresses import join_address, require_free
from monitor.engine.vllm.installed import require_plugin
from monitor.errors import PrerequisiteError
from monitor.service.config import GRPC_PORT, METRICS_PORT
from monitor.service.inputs import read_policy
from monitor.supervisor.checks import require_compiler, require_vllm
from monitor.supervisor.config import API_PORT
from probes.bundle import load_bundle
from probes.bundle.shipped import shipped_bundle
from probes.errors import PlumbobError
from probes.models import identify, resolve_model

State = Literal["ok", "optional", "missing"]
"""The finding of a check.

* ``ok``: there, and fit.
* ``optional``: not there; some commands need it.
* ``missing``: not there or broken, and needed.
"""

_STYLES = {"ok": "green", "optional": "yellow", "missing": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report."""

    what: str
    state: State
    found: str
    fix: str = ""


def examine(model: str | None = None, bundle: Path | None = None, policy: Path | None = None) -> list[Finding]:
    """Run every check; none of them changes anything.

    Args:
        model: Check that it can be had.
        bundle: Check that it is whole, and fits the model.
        policy: Check that it fits the bundle.
    """
    return list(_findings(model, bundle, policy))


def table(findings: list[Finding]) -> Table:
    """The report."""
    shown = Table(box=None, pad_edge=False)
    for column in ("check", "", "found", "fix"):
        shown.add_column(column, overflow="fold")
    for finding in findings:
        state = Text(finding.state, _STYLES[finding.state])
        shown.add_row(finding.what, state, Text(finding.found), Text(finding.fix))
    return shown


def _findings(model: str | None, bundle: Path | None, policy: Path | None) -> Iterator[Finding]:
    python = platform.python_version()
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding("Python", "ok" if supported else "missing", python, "" if supported else "Use Python 3.11 to 3.13.")
    yield _check("vLLM", lambda: require_vllm(allow_untested=False), "optional")
    yield _check("plugin", _plugin)
    yield _check("torch libraries", _torch_libraries)
    yield _check("C++ compiler", _compiler, "optional")
    yield _packages("fitting", ("torch", "transformers", "scikit-learn", "accelerate", "gguf"), "plumbob[fit]")
    for what, port in (("API port", API_PORT), ("metrics port", METRICS_PORT), ("gRPC port", GRPC_PORT)):
        yield _check(what, lambda what=what, port=port: _free(what, port), "optional")
    yield from _monitor()
    if model is not None:
        yield _check("model", lambda: str(resolve_model(model)))
        bundle = bundle or shipped_bundle(model)
    if bundle is not None:
        yield _check("bundle", lambda: _bundle(bundle, model))
        yield _check("policy", lambda: _policy(policy, bundle))
        if model is not None:
            yield _check("roles", lambda: _roles(bundle, model), "optional")
    elif policy is not None:
        yield Finding("policy", "missing", f"{policy} was not checked: a policy fits a bundle", "Add --bundle BUNDLE.")


def _check(what: str, check: Callable[[], str], otherwise: State = "missing") -> Finding:
    try:
        return Finding(what, "ok", check())
    except PlumbobError as error:
        return Finding(what, otherwise, error.message, error.fix)


def _plugin() -> str:
    return str(require_plugin())


def _torch_libraries() -> str:
    """Transformers fails to import with builds of these that do not fit torch, and text models need none of them."""
    misfits = []
    for distribution in ("torchvision", "torchaudio", "torchcodec"):
        try:
            found, torch = version(distribution), version("torch")
        except PackageNotFoundError:
            continue
        if torch.endswith("+cpu") and not found.endswith("+cpu"):
            misfits.append(distribution)
    if misfits:
        raise PrerequisiteError(
            f"{', '.join(misfits)} were not built for this torch and break transformers.",
            f"Run: pip uninstall -y {' '.join(misfits)}",
        )
    return "nothing that breaks transformers"


def _compiler() -> str:
    require_compiler()
    return os.environ.get("CXX", "g++")


def _packages(what: str, distributions: tuple[str, ...], extra: str) -> Finding:
    missing = []
    for distribution in distributions:
        try:
            version(distribution)
        except PackageNotFoundError:
            missing.append(distribution)
    if missing:
        return Finding(what, "optional", f"{', '.join(missing)} not installed", f"Run: pip install '{extra}'")
    return Finding(what, "ok", ", ".join(distributions))


def _free(what: str, port: int) -> str:
    require_free(f"The {what}", "127.0.0.1", port)
    return f"{port} is free"


def _monitor() -> Iterator[Finding]:
    """Ask this machine's monitor about its engines; nothing is found where none runs."""
    import asyncio

    from monitor.api.client import ask_state, unready

    address = join_address("127.0.0.1", GRPC_PORT)
    try:
        require_free("The gRPC port", "127.0.0.1", GRPC_PORT)
    except PlumbobError:
        try:
            why = unready(state := asyncio.run(ask_state(address)))
        except PlumbobError as error:
            yield Finding("monitor", "optional", error.message, error.fix)
        else:
            fix = "Start the engine with this monitor's endpoint in --additional-config, and look into both logs."
            found = why or f"{len(state.status.engines)} engines, scored"
            yield Finding("monitor", "missing" if why else "ok", found, fix if why else "")


def _bundle(path: Path, model: str | None) -> str:
    bundle = load_bundle(path)
    if model is not None:
        bundle.require_model(identify(resolve_model(model), model))
    names = ", ".join(probe.name for probe in bundle.all_probes)
    return f"{bundle.digest[:12]} for {bundle.manifest.model.name}: {names}"


def _roles(path: Path, model: str) -> str:
    """Describe how roles are told, and refuse markers that are not those of the chat template now."""
    from transformers import AutoTokenizer

    from probes.models.markers import find_markers, roles_in_words

    markers, directory = load_bundle(path).manifest.markers, resolve_model(model)
    fast = (directory / "tokenizer.json").is_file()
    if fast and markers != find_markers(AutoTokenizer.from_pretrained(directory)):
        raise PrerequisiteError(
            "the bundle's markers are not those that are found in the chat template now: what they miss is read as the "
            "user's",
            "Run plumbob calibrate, which takes them anew, or fit the bundle again.",
        )
    return roles_in_words(directory, markers)


def _policy(path: Path | None, bundle: Path) -> str:
    read_policy(path, load_bundle(bundle))
    return str(path or "default: alert on every probe")
