"""A comparison's folder: config.json and environment.json written once, rows appended as runs end."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moe_placer.errors import InputError, Mistake, UsageError
from moe_placer.files import write_atomically

__all__ = ["Folder"]

CONFIG = "moe-placer/comparison/1"
Row = dict[str, Any]


class Folder:
    """A folder of rows that survive a crash: each is on disk before the next is taken; a torn last line is dropped.

    A context manager, since only one comparison at a time may write to a folder.

    Attributes
    ----------
    path : Path
    environment : dict
    shard : tuple of int or None
        (i, n): the i-th of n parts, which has files of its own.
    rows : list of dict
        What is there already.

    Raises
    ------
    UsageError
        The folder holds another comparison, or one of another machine, version or commit, or is in use.
    InputError
        It cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        shard: tuple[int, int] | None = None,
    ) -> None:
        self.path = path
        self.shard = shard
        self._mark = f"-{shard[0]}-of-{shard[1]}" if shard else ""
        environment_file = f"environment{self._mark}.json"
        config = {"schema": CONFIG, "name": path.resolve().name, **config}
        self._check("config.json", config, "with other settings")
        self._check(environment_file, environment, "of another machine, version or commit")
        for name, content in (("config.json", config), (environment_file, environment)):
            if not (path / name).exists():
                write_atomically(path / name, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        self.environment = dict(environment)
        self.rows: list[Row] = []

    @property
    def file(self) -> Path:
        """The file of the rows."""
        return self.path / f"results{self._mark}.jsonl"

    @property
    def done(self) -> set[str]:
        """Keys of the runs that have a row."""
        return {row["key"] for row in self.rows if row["kind"] == "run"}

    def __enter__(self) -> Self:
        file = self.file
        try:
            self._stream = file.open("a+b")
        except OSError as error:
            raise InputError(Mistake(f"what cannot be written ({error.strerror})", "a file", file=file)) from None
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._stream.close()
            raise UsageError(f"another comparison is writing to {self.path}") from None
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def add(self, row: Row) -> None:
        """Append a row, and wait until it is on disk."""
        line = json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        try:
            self._stream.write(line.encode() + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            expected = "a folder with space left; give the same command again to continue"
            raise InputError(Mistake(f"what cannot be written ({error.strerror})", expected, file=self.path)) from None
        self.rows.append(row)

    def add_instance(self, row: Row) -> None:
        """Append the row of an instance, once.

        Raises
        ------
        UsageError
            The folder knows another instance or traffic by this name.
        """
        known = [old for old in self.rows if old["kind"] == "instance" and old["name"] == row["name"]]
        if not known:
            self.add(row)
        elif known[0] != row:
            differs = ", ".join(sorted(key for key in row if known[0].get(key) != row[key]))
            raise UsageError(
                f"{self.path} holds rows of another {row['name']} ({differs} differ); choose another folder"
            )

    def gather(self, keys: set[str]) -> None:
        """Take the rows that shards have written of runs with these keys, in the order of their files.

        Raises
        ------
        InputError
            A shard's file has what is no row.
        """
        for file in [] if self._mark else sorted(self.path.glob("results-*-of-*.jsonl")):
            for row in _whole_rows(file, file.read_bytes())[0]:
                if row["kind"] == "run" and row["key"] in keys - self.done:
                    self.add(row)

    def _read(self) -> None:
        """Read the rows that are there; what a killed run left of a last line is cut off."""
        self._stream.seek(0)
        rows, whole = _whole_rows(self.file, self._stream.read())
        self._stream.truncate(whole)
        self.rows += rows

    def _check(self, name: str, content: Mapping[str, Any], what: str) -> None:
        file = self.path / name
        if not file.exists():
            if name == "config.json" and (self.path / "results.jsonl").exists():
                raise UsageError(f"{self.path} has rows but no {name}; choose another folder")
            return
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            differs = sorted(
                key
                for key in {*before, *content} - {"date"}
                if before.get(key) != json.loads(json.dumps(content)).get(key)
            )
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(Mistake(f"what cannot be read ({error})", "a comparison's folder", file=file)) from None
        if differs:
            found = f"{self.path} holds a comparison {what} ({', '.join(differs)} differ)"
            raise UsageError(f"{found}; choose another folder")


def _whole_rows(file: Path, content: bytes) -> tuple[list[Row], int]:
    """Return the rows of a file, and the bytes that these take: a killed run may leave part of a last line."""
    whole, end, _ = content.rpartition(b"\n")
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            if row["kind"] == "run":
                str(row["key"])
        except (ValueError, TypeError, KeyError):
            raise InputError(Mistake("what is no row", "a row of a comparison", file=file, line=number)) from None
        rows.append(row)
    return rows, len(whole) + len(end)
