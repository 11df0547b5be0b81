"""Parts of a sweep that were simulated apart, as files beside each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_placer.errors import InputError, Mistake
from moe_placer.experiments.sweep.sweep import Plan, Point
from moe_placer.files import write_atomically

__all__ = ["read_shards", "write_shard"]

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


def _hash(plans: Sequence[Plan], points: Sequence[Point]) -> str:
    named = [
        [plan.label, plan.program.instance.sha256, plan.placed_by, plan.total_z, plan.dispatch_us] for plan in plans
    ]
    return hashlib.sha256(json.dumps([named, [repr(point) for point in points]]).encode()).hexdigest()
