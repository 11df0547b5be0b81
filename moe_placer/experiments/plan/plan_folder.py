"""The folder of a plan's page: rows and environment, and what is made from them alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_placer.errors import InputError, Mistake
from moe_placer.experiments.plan.blocks import Picture, to_html, to_markdown
from moe_placer.experiments.plan.figures import read_figures
from moe_placer.experiments.plan.measure import SCHEMA
from moe_placer.experiments.plan.page import DRAWINGS, build_blocks
from moe_placer.experiments.row_files import ENVIRONMENT_FILE, ROWS_FILE
from moe_placer.experiments.sweep.sweep import ROW
from moe_placer.files import parse_json, read_bounded, refuse_hidden_characters, write_atomically

__all__ = ["build_page", "read_rows", "write_plan_page"]

_MOST = 100_000_000
Row = dict[str, Any]


def read_rows(file: Path, schemas: Sequence[str] = (SCHEMA, ROW)) -> list[Row]:
    """Read rows of plans and sweeps.

    Parameters
    ----------
    file : Path
    schemas : sequence of str
        Those that its rows may have.

    Raises
    ------
    InputError
        A line is no such row.
    """
    rows = []
    for number, line in enumerate(read_bounded(file, _MOST, "rows").splitlines(), 1):
        try:
            row = json.loads(line)
            refuse_hidden_characters(line.decode(), row, "a row", file, number)
            if row["schema"] not in schemas:
                raise ValueError(row["schema"])
        except (ValueError, KeyError, TypeError):
            raise InputError(
                Mistake("what is no row", f"a row of {' or '.join(schemas)}", file=file, line=number)
            ) from None
        rows.append(row)
    return rows


def build_page(folder: Path) -> dict[str, str]:
    """Return file names and contents, made from the rows of a folder: the same rows give the same bytes.

    DAGs whose drawings are in its folder ``dags`` are shown on the page.

    Raises
    ------
    InputError
        Rows or environment are missing or damaged.
    """
    file = folder / ENVIRONMENT_FILE
    environment = parse_json(read_bounded(file, _MOST, "an environment"), "an environment", file)
    try:
        figures = read_figures(read_rows(folder / ROWS_FILE))
        drawn = {path.name for path in (folder / DRAWINGS).glob("*.*g")}
        blocks = build_blocks(figures, environment, drawn)
    except (KeyError, ValueError, TypeError, StopIteration, IndexError) as error:
        found = f"what is no plan ({type(error).__name__}: {error})"
        raise InputError(Mistake(found, "rows and an environment of `moe-placer plan-report`", file=folder)) from None
    pictures = {block.file: block.svg for block in blocks if isinstance(block, Picture)}
    title = f"{figures.instance['name']}: the plan, computed"
    return {"index.html": to_html(blocks, title), "README.md": to_markdown(blocks), **pictures}


def write_plan_page(folder: Path) -> list[Path]:
    """Write page, Markdown and pictures from the rows that are there; nothing where one of them cannot be made."""
    contents = build_page(folder)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]
