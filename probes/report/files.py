"""``report.json`` and ``report.html`` on disk, whole or not at all."""

import math
import os
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from probes.errors import PlumbobError, reason
from probes.evaluation.conclusions import concluded
from probes.evaluation.results import FORMAT, Report
from probes.report.page import render

JSON: Final = "report.json"
HTML: Final = "report.html"
_AGAIN: Final = "Make it again with: plumbob eval"


class ReportError(PlumbobError):
    """A report that is damaged, of an unknown format, or that cannot be written."""


def write(report: Report, directory: Path) -> None:
    """Write both files; earlier ones are replaced once both are on the disk.

    Args:
        report: ``verdict_says`` of its probes is filled from their numbers.
        directory: Made where it is missing.

    Raises:
        ReportError: A number is NaN or infinite, a text is no Unicode, or the directory cannot be written.
        PlumbobError: matplotlib is missing.
    """
    encoded = encode(concluded(report))
    # What cannot be read back does not replace what can; the page shows what the file holds, no more digits.
    page = render(decode(encoded, "The report")).encode()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _replace(directory, {JSON: encoded, HTML: page})
    except OSError as error:
        raise ReportError(
            f"The report cannot be written to {directory}: {error.strerror}.", "Name another directory with --out."
        ) from error


def read(path: Path) -> Report:
    """Read and check a report.

    Args:
        path: ``report.json``, or its directory.

    Raises:
        ReportError: Missing, damaged, or of an unknown format.
    """
    path = path / JSON if path.is_dir() else path
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}.", _AGAIN) from error
    return decode(encoded, str(path))


def encode(report: msgspec.Struct) -> bytes:
    """The JSON, indented, the same bytes for the same report.

    Raises:
        ReportError: A number is NaN or infinite, which JSON does not have, or a text is no Unicode.
    """
    try:
        plain = msgspec.to_builtins(report, enc_hook=_plain)
        if odd := _not_finite(plain, "report"):
            raise ReportError(f"{odd} is no finite number.", "Leave out what was not measured.")
        return msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n"
    except (UnicodeEncodeError, TypeError) as error:
        raise ReportError(f"The report cannot be encoded: {reason(error)}.") from error


def decode(encoded: bytes, name: str) -> Report:
    """The report that was encoded.

    Raises:
        ReportError: It is none, or of an unknown format; the message begins with ``name``.
    """
    try:
        if (found := msgspec.json.decode(encoded, type=_Versioned).format) != FORMAT:
            raise ReportError(f"{name} has format {found}; this plumbob reads format {FORMAT}.", _AGAIN)
        return msgspec.json.decode(encoded, type=Report)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ReportError(f"{name} is no report: {reason(error)}.", _AGAIN) from error


class _Versioned(msgspec.Struct):
    format: int


def _replace(directory: Path, files: dict[str, bytes]) -> None:
    temporaries: dict[str, Path] = {}
    try:
        for name, content in files.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
            temporaries[name] = Path(temporary)
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            temporaries[name].chmod(0o644)
        for name, temporary in temporaries.items():
            temporary.replace(directory / name)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """Numbers of numpy, which come of measuring."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a report")


def _not_finite(value: Any, path: str) -> str:
    """Where the first number is that JSON cannot hold; empty if there is none."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else path
    if isinstance(value, dict):
        children = ((item, f"{path}.{name}") for name, item in value.items())
    elif isinstance(value, list | tuple):
        children = ((item, f"{path}[{index}]") for index, item in enumerate(value))
    else:
        return ""
    return next((found for child, where in children if (found := _not_finite(child, where))), "")
