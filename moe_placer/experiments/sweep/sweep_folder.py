"""Writes a sweep's folder: results.jsonl, environment.json, and the page and pictures made from these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe_placer.errors import InputError, Mistake
from moe_placer.experiments.report.report_files import require_libraries
from moe_placer.experiments.row_files import ENVIRONMENT_FILE, ROWS_FILE
from moe_placer.experiments.sweep.sweep import ROW
from moe_placer.files import parse_json, read_bounded, refuse_hidden_characters, write_atomically

__all__ = ["write_page"]

_MOST_BYTES = 100_000_000


def write_page(folder: Path, title: str, command: str = "") -> list[Path]:
    """Make README.md and its pictures from the rows that are there, and return their files; ``command`` made the rows.

    Raises
    ------
    UsageError
        The libraries of the extra `report` are not installed.
    InputError
        Rows or environment are missing or damaged.
    """
    require_libraries()
    from moe_placer.experiments.sweep.sweep_page import build_page

    rows = [_row(line, number, folder / ROWS_FILE) for number, line in enumerate(_lines(folder / ROWS_FILE), 1)]
    try:
        kind, file = "the environment of a sweep", folder / ENVIRONMENT_FILE
        environment = parse_json(read_bounded(file, _MOST_BYTES, kind), kind, file)
        contents = build_page(rows, environment, title, command)
    except (ValueError, KeyError, TypeError) as error:
        found = f"what is no sweep ({type(error).__name__}: {error})"
        raise InputError(Mistake(found, "rows and an environment of `moe-placer sweep`", file=folder)) from None
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def _lines(file: Path) -> list[bytes]:
    lines = read_bounded(file, _MOST_BYTES, "rows of a sweep").splitlines()
    if not lines:
        raise InputError(Mistake("no row", "rows of a sweep", file=file))
    return lines


def _row(line: bytes, number: int, file: Path) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(line)
        refuse_hidden_characters(line.decode(), row, "a row of a sweep", file, number)
        if row["schema"] == ROW:
            return row
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(Mistake("what is no row", f"a row of {ROW}", file=file, line=number))
