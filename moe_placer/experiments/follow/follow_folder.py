"""The folder of a report on following traffic: what was asked, rows and environment, and the page from these alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from moe_placer.errors import InputError, Mistake
from moe_placer.experiments.environment import describe_environment
from moe_placer.experiments.follow.follow_page import build_followed
from moe_placer.experiments.follow.follow_rows import CONFIG_FILE, ROW, FollowConfig, FollowedRow, FollowRecord
from moe_placer.experiments.plan.blocks import Picture, to_html, to_markdown
from moe_placer.experiments.plan.plan_folder import read_rows
from moe_placer.experiments.row_files import ENVIRONMENT_FILE, ROWS_FILE, write_rows
from moe_placer.files import parse_json, read_bounded, write_atomically
from moe_placer.replan.follow import Followed

__all__ = ["draw_followed", "write_followed"]

_MOST = 100_000_000


def write_followed(folder: Path, config: FollowConfig, rows: Sequence[Followed]) -> list[Path]:
    """Write what was asked, rows and environment; return their files.

    Raises
    ------
    InputError
        The folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG_FILE, json.dumps(config.model_dump(by_alias=True), indent=1) + "\n")
    plain = [{"schema": ROW, **row.plain()} for row in rows]
    return [folder / CONFIG_FILE, *write_rows(folder, plain, describe_environment())]


def draw_followed(folder: Path) -> dict[str, str]:
    """Return what the folder's page, Markdown and pictures contain, by name; the same rows give the same bytes.

    Raises
    ------
    InputError
        A file is missing or damaged; of a row, with its line.
    """
    config = _checked(FollowConfig, _object(folder / CONFIG_FILE), folder / CONFIG_FILE, None)
    file = folder / ROWS_FILE
    rows = [_checked(FollowedRow, row, file, number) for number, row in enumerate(read_rows(file, (ROW,)), 1)]
    _check_complete(rows, file)
    try:
        blocks = build_followed(config, rows, _object(folder / ENVIRONMENT_FILE))
    except (KeyError, TypeError, AttributeError) as error:
        found = f"what is no environment ({type(error).__name__}: {error})"
        raise InputError(Mistake(found, "what `moe-placer follow -o` writes", file=folder / ENVIRONMENT_FILE)) from None
    pictures = {block.file: block.svg for block in blocks if isinstance(block, Picture)}
    return {"index.html": to_html(blocks, config.name), "README.md": to_markdown(blocks), **pictures}


def _check_complete(rows: Sequence[FollowedRow], file: Path) -> None:
    """Refuse rows that are not every way on every window once."""
    ways, windows = dict.fromkeys(row.way for row in rows), sorted({row.window for row in rows})
    if not rows or sorted((row.way, row.window) for row in rows) != sorted((w, at) for w in ways for at in windows):
        found = f"{len(rows)} rows of {len(ways)} ways and {len(windows)} windows"
        raise InputError(Mistake(found, "a row for every way and window", file=file))


def _object(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = parse_json(read_bounded(file, _MOST, "a JSON object"), "a JSON object", file)
    return found


_R = TypeVar("_R", bound=FollowRecord)


def _checked(kind: type[_R], row: dict[str, Any], file: Path, line: int | None) -> _R:
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        found = "nothing" if first["type"] == "missing" else repr(first["input"])[:60]
        path = ".".join(map(str, first["loc"]))
        raise InputError(Mistake(found, first["msg"].lower(), path, file, line)) from None
