"""Parts of a sweep: what was simulated apart, as files beside each other, and what one that was killed had done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from moe_placer.errors import InputError, Mistake
from moe_placer.experiments.sweep.sweep import Plan, Point
from moe_placer.files import write_atomically

__all__ = ["DonePoints", "read_shards", "write_shard"]

SCHEMA = "moe-placer/sweep-shard/1"
Row = dict[str, Any]


def write_shard(
    folder: Path, shard: tuple[int, int], plans: Sequence[Plan], points: Sequence[Point], rows: Mapping[int, Row]
) -> Path:
    """Write the rows of one part of a sweep, and return the file.

    Parameters
    ----------
    folder : Path
        Where the parts come together.
    shard : tuple of int
        (i, n): the i-th of n parts.
    plans : sequence of Plan
    points : sequence of Point
        Of the whole sweep.
    rows : mapping
        By the index of their points.
    """
    path = folder / f"shard-{shard[0]}-of-{shard[1]}.json"
    content = {"schema": SCHEMA, "asked_sha256": _hash(plans, points), "rows": sorted(rows.items())}
    write_atomically(path, json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read_shards(folder: Path, plans: Sequence[Plan], points: Sequence[Point]) -> dict[int, Row]:
    """Return the rows of all parts in a folder by the index of their points.

    Raises
    ------
    InputError
        A file is no part of this sweep.
    """
    found: dict[int, Row] = {}
    asked = _hash(plans, points)
    for path in sorted(folder.glob("shard-*-of-*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            same = content["schema"] == SCHEMA and content["asked_sha256"] == asked
            rows = {int(index): dict(row) for index, row in content["rows"]}
        except (OSError, ValueError, TypeError, KeyError):
            raise InputError(Mistake("what is no part of a sweep", "what --executor shard wrote", file=path)) from None
        if not same:
            raise InputError(Mistake("a part of another sweep", "plans and points as given now", file=path))
        found |= rows
    return found


class DonePoints:
    """The rows of a sweep that runs, each written when it is there: the same command goes on from them.

    Parameters
    ----------
    folder : Path
        Of the sweep; made with the first row.
    plans, points
        As of `write_shard`.
    """

    def __init__(self, folder: Path, plans: Sequence[Plan], points: Sequence[Point]) -> None:
        self._path = folder / "points-done.jsonl"
        self._asked = plans, points
        self._head = {"schema": SCHEMA, "asked_sha256": _hash(plans, points)}
        self._begun = False

    def read(self) -> dict[int, Row]:
        """Return rows by the index of their points, those of parts as well; a file of another sweep has none.

        Raises
        ------
        InputError
            As `read_shards`.
        """
        found = read_shards(self._path.parent, *self._asked)
        with suppress(OSError, ValueError, TypeError, KeyError):
            lines = self._path.read_text(encoding="utf-8").splitlines()
            if lines and json.loads(lines[0]) == self._head:
                for line in lines[1:]:  # the last one may have been cut off
                    index, row = json.loads(line)
                    found[int(index)] = dict(row)
        return found

    def add(self, rows: Mapping[int, Row]) -> None:
        """Write further rows; the first ones replace what is there."""
        lines: list[object] = [] if self._begun else [self._head]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [*lines, *rows.items()])
        if self._begun:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        else:
            write_atomically(self._path, text)
        self._begun = True

    def remove(self) -> None:
        """Remove the file, if there is one: the sweep has ended."""
        self._path.unlink(missing_ok=True)


def _hash(plans: Sequence[Plan], points: Sequence[Point]) -> str:
    named = [
        [plan.label, plan.program.instance.sha256, plan.placed_by, plan.total_z, plan.dispatch_us] for plan in plans
    ]
    return hashlib.sha256(json.dumps([named, [repr(point) for point in points]]).encode()).hexdigest()
