"""Rows and the environment that gave them, as files of one folder: what pages are made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_placer.files import write_atomically

__all__ = ["ENVIRONMENT_FILE", "ROWS_FILE", "write_rows"]

ROWS_FILE, ENVIRONMENT_FILE = "results.jsonl", "environment.json"


def write_rows(folder: Path, rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> list[Path]:
    """Write rows and environment, and return their files.

    Raises
    ------
    InputError
        The folder cannot be written to.
    """
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for row in rows]
    write_atomically(folder / ROWS_FILE, "".join(line + "\n" for line in lines))
    write_atomically(folder / ENVIRONMENT_FILE, json.dumps(environment, indent=1, ensure_ascii=False) + "\n")
    return [folder / ROWS_FILE, folder / ENVIRONMENT_FILE]
