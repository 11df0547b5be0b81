"""What a watcher did and why, one JSON object a line; a line counts once its end is on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moe_placer.errors import InputError, Mistake
from moe_placer.files import unwritable

__all__ = ["Journal"]

_BEGINS = b'{"at": '  # every line of a watcher


class _Line(BaseModel):
    """The fields of a line that are read back; of a measured replan, also those for Prometheus."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    at: float
    event: Literal["plan", "kept", "refused", "superseded"]
    fingerprint: str | None = None
    moves: int = Field(default=0, ge=0)


class _Plan(_Line):
    version: int
    gpu_sha256: str


class _Measured(_Line):
    total_z: list[float] = Field(min_length=2, max_length=2)
    busiest_gpu: list[float] = Field(min_length=2, max_length=2)
    nic_z: list[float] | None = Field(default=None, min_length=2, max_length=2)
    bound: float | None
    drift: float


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
            if not whole and not raw.startswith(_BEGINS[: len(raw)]):
                raise self._damaged(raw, 1)  # of somebody else: cutting it off would empty it
            if len(whole) < len(raw):
                with path.open("r+b") as stream:
                    stream.truncate(len(whole))
                    os.fsync(stream.fileno())
        except OSError as error:
            raise unwritable(path, error) from None
        plans = 0
        for number, line in enumerate(whole.splitlines(), 1):
            self.entries.append(self._parsed(number, line, plans))
            plans += self.entries[-1]["event"] == "plan"

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

    def _parsed(self, number: int, line: bytes, plans: int) -> dict[str, Any]:
        try:
            entry = json.loads(line)
            _Line.model_validate(entry)
            if entry["event"] == "plan":
                _Plan.model_validate(entry)
            if "total_z" in entry:
                _Measured.model_validate(entry)
        except (ValueError, ValidationError, RecursionError):
            raise self._damaged(line, number) from None
        if entry["event"] == "plan" and entry["version"] != plans:  # they count from 0, without a gap
            raise self._damaged(line, number)
        return dict(entry)

    def _damaged(self, line: bytes, number: int) -> InputError:
        text = line[:60].decode(errors="replace")
        return InputError(Mistake(text, "a line of a watcher's journal", "", self.path, number))
