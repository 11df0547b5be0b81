"""What a watcher did and why, one JSON object a line; a line counts once its end is on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_placer.errors import InputError, Mistake
from moe_placer.files import unwritable

__all__ = ["Journal"]


class Journal:
    """A file to which lines are added, each of them whole or not at all.

    A process that is killed while it writes leaves a part of a line without its end: that part is cut off when the
    journal is opened again. Whatever else is damaged is an error, for it was not made by a watcher that was killed.

    Attributes
    ----------
    entries : list of dict
        All lines so far.

    Raises
    ------
    InputError
        It cannot be read or written, or a whole line is not what a watcher writes.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.entries = path, list[dict[str, Any]]()
        try:
            raw = path.read_bytes() if path.exists() else b""
            whole = raw[: raw.rfind(b"\n") + 1]
            if len(whole) < len(raw):
                with path.open("r+b") as stream:
                    stream.truncate(len(whole))
                    os.fsync(stream.fileno())
        except OSError as error:
            raise unwritable(path, error) from None
        for number, line in enumerate(whole.splitlines(), 1):
            self.entries.append(self._parsed(number, line))

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line, and wait until it is on disk."""
        line = json.dumps(entry, allow_nan=False) + "\n"
        try:
            with self.path.open("ab") as stream:
                stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from None
        self.entries.append(dict(entry))

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not isinstance(entry.get("event"), str):
            mistake = Mistake(
                line[:60].decode(errors="replace"), "a line of a watcher's journal", "", self.path, number
            )
            raise InputError(mistake)
        return entry
