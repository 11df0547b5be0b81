"""A benchmark's folder: raw rows, the environment, and the page made from these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe_placer.errors import InputError, Mistake, UsageError
from moe_placer.experiments.bench.page import build_page
from moe_placer.files import write_atomically

__all__ = ["Report"]


class Report:
    """Rows are written as they come; a folder that has some already is continued.

    Attributes
    ----------
    folder : Path
    environment : dict
    rows : list of dict

    Raises
    ------
    UsageError
        The folder holds rows of another machine or commit.
    """

    def __init__(self, folder: Path, environment: dict[str, Any]) -> None:
        self.folder, self.environment = folder, environment
        self.rows: list[dict[str, Any]] = []
        if not (folder / "environment.json").exists():
            return
        before, self.rows = read_report(folder)
        if {**before, "date": None} != {**environment, "date": None}:
            raise UsageError(f"{folder} holds rows of another machine, version or commit; choose another folder")
        self.environment = before

    def add(self, row: dict[str, Any]) -> None:
        """Append a row, and write everything."""
        self.rows.append(row)
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in self.rows]
        write_atomically(self.folder / "rows.jsonl", "\n".join(lines) + "\n")
        environment = json.dumps(self.environment, indent=1, ensure_ascii=False)
        write_atomically(self.folder / "environment.json", environment + "\n")
        write_atomically(self.folder / "README.md", build_page(self.rows, self.environment))


def read_report(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the environment and the rows of a benchmark's folder.

    Raises
    ------
    InputError
        They cannot be read.
    """
    try:
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
        return environment, [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise InputError(Mistake(f"what cannot be read ({error})", "a benchmark's folder", file=folder)) from None
