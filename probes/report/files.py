"""``report.json`` and ``report.html`` on disk, whole or not at all."""

import math
import os
import tempfile
from collections.abc import Mapping
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
        PlumbobError: matplotlib or Jinja2 is missing.
    """
    encoded = encode(concluded(report))
    # What cannot be read back does not replace what can; the page shows what the file holds, no more digits.
    page = render(decode(encoded, "The report")).encode()
    replace_files(directory, {JSON: encoded, HTML: page})


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
    """Encode as indented JSON: the same bytes for the same report.

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
    """Decode a report.

    Raises:
        ReportError: It is none, or of an unknown format; the message begins with ``name``.
    """
    try:
        if (found := msgspec.json.decode(encoded, type=_Versioned).format) != FORMAT:
            raise ReportError(f"{name} has format {found}; this plumbob reads format {FORMAT}.", _AGAIN)
        return msgspec.json.decode(encoded, type=Report)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ReportError(f"{name} is no report: {reason(error)}.", _AGAIN) from error


def replace_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files, by name; earlier ones are replaced once all are on the disk.

    Raises:
        ReportError: The directory cannot be made or written.
    """
    temporaries: dict[str, Path] = {}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
            temporaries[name] = Path(temporary)
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            temporaries[name].chmod(0o644)
        for name, temporary in temporaries.items():
            temporary.replace(directory / name)
    except OSError as error:
        raise ReportError(
            f"The report cannot be written to {directory}: {error.strerror}.", "Name another directory."
        ) from error
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


class _Versioned(msgspec.Struct):
    format: int


def _plain(value: Any) -> Any:
    """Convert numbers of NumPy."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a report")


def _not_finite(value: Any, path: str) -> str:
    """Find the first number that JSON cannot hold: its path, or an empty text."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else path
    if isinstance(value, dict):
        children = ((item, f"{path}.{name}") for name, item in value.items())
    elif isinstance(value, list | tuple):
        children = ((item, f"{path}[{index}]") for index, item in enumerate(value))
    else:
        return ""
    return next((found for child, where in children if (found := _not_finite(child, where))), "")
