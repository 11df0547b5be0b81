"""The library's folder: records, compressed placements, and the instances that records describe."""

from __future__ import annotations

import hashlib
import lzma
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_placer.errors import InputError, Mistake
from moe_placer.files import read_bounded, write_atomically
from moe_placer.instance import Instance, load_instance, make_instance
from moe_placer.instance.yaml_reader import read_yaml
from moe_placer.library.record import Record, read_record
from moe_placer.placement import MAX_BYTES, Placement, parse_placement
from moe_placer.traffic.readers import read_array

__all__ = ["Library", "open_library", "placement_sha256"]

_XZ_BYTES = 100_000_000  # of memory for unpacking; the strongest preset takes two thirds of it


def open_library(folder: str | Path) -> Library:
    """Open a library, with all of its records.

    Raises
    ------
    InputError
        The folder has no records, or one of them is wrong.
    """
    folder = Path(folder)
    records = {path.stem: read_record(path) for path in (folder / "records").glob("*.yaml")}
    if not records:
        expected = "a folder with records/*.yaml, such as `library` of a checkout (--library DIR)"
        raise InputError(Mistake("no library", expected, file=folder))
    return Library(folder, dict(sorted(records.items())))


@dataclass(frozen=True)
class Library:
    """Records by name, and the files that belong to them.

    Attributes
    ----------
    folder : Path
    records : mapping of str to Record
    """

    folder: Path
    records: Mapping[str, Record]

    def record(self, name: str) -> Record:
        """Return a record.

        Raises
        ------
        InputError
            There is none of that name.
        """
        if name not in self.records:
            raise InputError(Mistake(f"no instance {name!r}", "a name that `moe-placer library list` prints"))
        return self.records[name]

    def record_path(self, name: str) -> Path:
        """Return the path of a record."""
        return self.folder / "records" / f"{name}.yaml"

    def placement_path(self, sha256: str, name: str) -> Path:
        """Return where a placement of an instance lies, compressed."""
        return self.folder / "placements" / f"{name}.{sha256[:12]}.json.xz"

    def content(self, record: Record) -> dict[str, Any]:
        """Return the instance as a file has it: the one that the record names, with its changes."""
        base = read_yaml(self.folder / "records" / record.instance).data
        return {**_merged(base, record.changes), "name": record.name}

    def without_recordings(self, record: Record) -> Instance:
        """Return the instance, which may name no recordings yet."""
        path = self.folder / "records" / record.instance
        return make_instance(**self.content(record)) if record.changes else load_instance(path)

    def instance(self, record: Record, recordings: Path | None = None) -> Instance:
        """Return the instance, with its recordings.

        Parameters
        ----------
        recordings : Path, optional
            Folder of the recordings that it needs.

        Raises
        ------
        FileNotFoundError
            A recording is missing, or is another one.
        InputError
            A recording is damaged.
        """
        files = []
        for needed in record.recordings:
            file = None if recordings is None else recordings / needed.file
            how = f"({needed.source}; `moe-placer library show {record.name}` says how to make it)"
            if file is None or not file.is_file():
                raise FileNotFoundError(f"needs {needed.file} {how}")
            choices = read_array(file, "topk").astype("<u2")
            if hashlib.sha256(choices.tobytes()).hexdigest() != needed.topk_sha256:
                raise FileNotFoundError(f"{needed.file} has other choices than the record's {how}")
            files.append(file)
        instance = self.without_recordings(record)
        return instance.with_traces(files) if files else instance

    def placement(self, record: Record, sha256: str) -> Placement:
        """Return a placement of an instance, as it was submitted.

        Raises
        ------
        InputError
            It is missing, damaged or another one.
        """
        path = self.placement_path(sha256, record.name)
        raw = _decompressed(read_bounded(path, MAX_BYTES, "a compressed placement file"), path)
        if hashlib.sha256(raw).hexdigest() != sha256:
            raise InputError(Mistake("another placement", f"the one of SHA-256 {sha256}", file=path))
        return parse_placement(raw, path)

    def keep(self, record: Record, placement: Placement) -> None:
        """Write a placement of a record, compressed."""
        path = self.placement_path(placement_sha256(placement), record.name)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lzma.compress(placement.to_json().encode(), preset=9))

    def keep_only(self, record: Record) -> None:
        """Remove all placements of a record that it does not name, those of a submission that was cut off too."""
        named = {self.placement_path(sha256, record.name) for sha256 in record.placements}
        of_record = re.compile(re.escape(record.name) + r"\.[0-9a-f]{12}\.json\.xz")
        for path in (self.folder / "placements").iterdir():
            if of_record.fullmatch(path.name) and path not in named:
                path.unlink(missing_ok=True)


def placement_sha256(placement: Placement) -> str:
    """Return the SHA-256 of a placement file's text."""
    return hashlib.sha256(placement.to_json().encode()).hexdigest()


def _decompressed(packed: bytes, path: Path) -> bytes:
    """Return what an xz file holds, unpacked no further than a placement file may be long."""
    expected = "a placement file, compressed by xz"
    reader = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_BYTES)
    try:
        raw = reader.decompress(packed, max_length=MAX_BYTES + 1)
    except lzma.LZMAError:
        raise InputError(Mistake("a damaged file", expected, file=path)) from None
    if len(raw) > MAX_BYTES:
        raise InputError(Mistake(f"more than {MAX_BYTES / 1e6:g} MB, unpacked", expected, file=path))
    if not reader.eof or reader.unused_data:
        raise InputError(Mistake("a damaged file", expected, file=path))
    return raw


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base with the changes in it, section by section; a change to None takes the field out."""
    merged = dict(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged
