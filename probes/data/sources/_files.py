"""Reading the files of public sets, keeping account of what was read."""

import csv
import gzip
import hashlib
import io
import json
import re
import unicodedata
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from probes.data.examples import Example
from probes.errors import ConceptError, reason
from probes.models.chat import Message

_LICENCE: Final = re.compile(r"^- licence:[ \t]*(\S.*?)\s*$", re.MULTILINE)
_REMEDY: Final = "Restore the file from its source, or remove its folder."
_FLAGS: Final = ("0", "1", "false", "true")
_MAX_BYTES: Final = 256 << 20
"""Bytes that one file may hold once decompressed: a hundred times the largest of these sets."""

_Row = TypeVar("_Row")


class Provenance(msgspec.Struct, frozen=True):
    """The origin of examples."""

    source: str
    """The set: the name of its folder."""
    licence: str
    """As its ``SOURCE.md`` states it."""
    files: dict[str, str]
    """Each file read, as it is named on disk, to the SHA-256 of its bytes."""
    rows: int
    """Records in these files, before any is left out."""


class Files:
    """The sets below a directory; remembers which files were read.

    A file that is not there has no rows: sets are optional.

    Args:
        data: The directory with one folder a set.

    Raises:
        ConceptError: No such directory.
    """

    def __init__(self, data: Path) -> None:
        if not data.is_dir():
            raise ConceptError(f"{data} is no directory.", "Name the one that has a folder for each data set.")
        self._data = data
        self._digests: dict[str, dict[str, str]] = {}
        self._rows: dict[str, dict[str, int]] = {}

    def table(
        self, folder: str, name: str, columns: Collection[str], flag: str = "", separator: str = ","
    ) -> list[dict[str, str]]:
        """The rows of a table with a header.

        Args:
            folder: The set.
            name: The file, without ``.gz``.
            columns: Which it must have.
            flag: One of them, that says yes or no: 1 or 0, true or false.
            separator: Between columns.

        Raises:
            ConceptError: Not a table, without one of ``columns``, or a flag that is neither.
        """
        path, text = self._text(folder, name)
        if path is None:
            return []
        # Its line_num lags behind where a row cannot be read; that of the reader within it does not.
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows: list[dict[str, str]] = []
        try:
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise ConceptError(f"{path}, line 1: there is no column {missing[0]}.", _REMEDY)
            for row in reader:
                # A row that is too long has the key None, one that is too short has the value None.
                if None in row or None in row.values():
                    raise ConceptError(f"{path}, line {reader.reader.line_num}: wrong number of columns.", _REMEDY)
                if flag and row[flag].strip().lower() not in _FLAGS:
                    raise ConceptError(
                        f"{path}, line {reader.reader.line_num}: {flag} is {row[flag]!r}, not 0 or 1.", _REMEDY
                    )
                rows.append(row)
        except csv.Error as error:
            raise ConceptError(f"{path}, line {reader.reader.line_num}: {reason(error)}.", _REMEDY) from error
        return self._read(folder, path, rows)

    def lines(self, folder: str, name: str, row_type: type[_Row]) -> list[_Row]:
        """The rows of a file of JSON lines."""
        path, text = self._text(folder, name)
        if path is None:
            return []
        rows: list[_Row] = []
        # Not splitlines: a JSON string may hold a line separator of Unicode.
        for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
            try:
                rows.append(msgspec.json.decode(line, type=row_type))
            except msgspec.MsgspecError as error:
                raise ConceptError(f"{path}, line {number}: {reason(error)}.", _REMEDY) from error
        return self._read(folder, path, rows)

    def entries(self, folder: str, name: str, row_type: type[_Row]) -> dict[str, list[_Row]]:
        """The lists of a JSON file by their keys; that of a file that is one list has the key ``""``."""
        path, text = self._text(folder, name)
        if path is None:
            return {}
        content = text.encode()
        raw = list[msgspec.Raw] if text.lstrip().startswith("[") else dict[str, list[msgspec.Raw]]
        try:
            found = msgspec.json.decode(content, type=raw)
        except msgspec.MsgspecError as error:
            raise ConceptError(f"{path}, line {_malformed_line(text)}: {reason(error)}.", _REMEDY) from error
        lists: dict[str, list[_Row]] = {}
        position = 0
        for key, values in found.items() if isinstance(found, dict) else [("", found)]:
            rows = lists.setdefault(key, [])
            for value in map(bytes, values):
                position = content.index(value, position)
                try:
                    rows.append(msgspec.json.decode(value, type=row_type))
                except msgspec.MsgspecError as error:
                    number = content.count(b"\n", 0, position) + 1
                    raise ConceptError(f"{path}, line {number}: {reason(error)}.", _REMEDY) from error
                position += len(value)
        self._read(folder, path, [row for rows in lists.values() for row in rows])
        return lists

    def provenance(self) -> list[Provenance]:
        """Files read so far, set by set."""
        return [
            Provenance(folder, self._licence(folder), digests, sum(self._rows[folder].values()))
            for folder, digests in self._digests.items()
        ]

    def _licence(self, folder: str) -> str:
        try:
            found = _LICENCE.search((self._data / folder / "SOURCE.md").read_text("utf-8"))
        except (OSError, UnicodeDecodeError):
            found = None
        return found[1] if found else "not stated"

    def _text(self, folder: str, name: str) -> tuple[Path | None, str]:
        """The file's path and text, decompressed where it is gzipped; no path where there is none."""
        for path in (self._data / folder / name, self._data / folder / f"{name}.gz"):
            if path.is_file():
                break
        else:
            return None, ""
        try:
            stored = path.read_bytes()
            content = stored
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=io.BytesIO(stored)) as packed:
                    content = packed.read(_MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ConceptError(f"{path} cannot be read: {reason(error)}.", _REMEDY) from error
        if len(content) > _MAX_BYTES:
            raise ConceptError(f"{path} holds more than {_MAX_BYTES >> 20} MiB.", _REMEDY)
        self._digests.setdefault(folder, {})[path.name] = hashlib.sha256(stored).hexdigest()
        try:
            return path, content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            number = content.count(b"\n", 0, error.start) + 1
            raise ConceptError(f"{path}, line {number}: it is not UTF-8.", _REMEDY) from error

    def _read(self, folder: str, path: Path, rows: list[_Row]) -> list[_Row]:
        self._rows.setdefault(folder, {})[path.name] = len(rows)
        return rows


def _malformed_line(text: str) -> int:
    """The line at which JSON breaks off; the first where it is no list and no object of lists."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.lineno
    return 1


def is_yes(value: str) -> bool:
    """True where a flag, checked when it was read, says yes."""
    return value.strip().lower() in ("1", "true")


def normalised(text: str) -> str:
    """A text by which two are told to be the same: lower case, without punctuation."""
    letters = unicodedata.normalize("NFKC", text).lower().replace("'", "").replace("’", "")
    return " ".join(re.sub(r"[^\w]|_", " ", letters).split())


def unique(examples: Iterable[Example]) -> list[Example]:
    """Examples whose conversation, normalised, was not there before."""
    seen: set[str] = set()
    kept: list[Example] = []
    for example in examples:
        text = " | ".join(normalised(message.content) for message in example.messages)
        if text not in seen:
            seen.add(text)
            kept.append(example)
    return kept


def user(text: str) -> list[Message]:
    """A conversation of one message, the user's."""
    return [Message("user", text)]


def exchange(request: str, answer: str) -> list[Message]:
    """A request of the user and the assistant's answer."""
    return [Message("user", request), Message("assistant", answer)]
