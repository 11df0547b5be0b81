"""The best objective and bound ever seen of each instance, and who found them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from moe_placer.errors import InputError, Mistake
from moe_placer.files import write_atomically

__all__ = ["read_best_known", "update_best_known"]

_HEAD = """\
# The best objective (sum over layers of the worst link, tokens per step at node-link speed) and the best re-checkable
# bound ever seen of each instance. `moe-placer bench --update-best-known` keeps it; tests compare it with every report.
"""
_SLACK = 1e-9  # relative; smaller differences are rounding

Entry = dict[str, Any]


def read_best_known(path: Path) -> list[Entry]:
    """Return the entries of a file; none where it does not exist.

    Raises
    ------
    InputError
        It cannot be read.
    """
    if not path.exists():
        return []
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return list(content["entries"] or [])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise InputError(Mistake(f"what cannot be read ({error})", "a list of `entries`", file=path)) from None


def update_best_known(
    path: Path, rows: Iterable[Mapping[str, Any]], environment: Mapping[str, Any], report: str
) -> None:
    """Enter what beats the best known.

    Parameters
    ----------
    rows : iterable of mapping
        Of a benchmark; rows that failed do not count.
    environment : mapping
        Of the same benchmark, for its date.
    report : str
        Name of the benchmark's folder.
    """
    entries = {_key(entry): entry for entry in read_best_known(path)}
    for row in rows:
        if row["failed"] is None and row["verified"]:
            entry = entries.setdefault(_key(row), _new(row))
            _improve(entry, row, {"date": environment["date"], "report": report})
    ordered = sorted(entries.values(), key=lambda entry: (entry["instance"], entry["traffic_sha256"]))
    text = yaml.safe_dump({"entries": ordered}, sort_keys=False, allow_unicode=True, width=110)
    write_atomically(path, _HEAD + text)


def _key(record: Mapping[str, Any]) -> tuple[str, str]:
    return record["instance_sha256"], record["traffic_sha256"]


def _new(row: Mapping[str, Any]) -> Entry:
    fields = ("instance", "instance_sha256", "traffic_sha256", "recordings")
    return {**{field: row[field] for field in fields}, "objective": None, "bound": None}


def _improve(entry: Entry, row: Mapping[str, Any], origin: Mapping[str, str]) -> None:
    by = {"solver": row["solver"], "version": row["version"], **origin}
    objective, bound = entry["objective"], entry["bound"]
    if objective is None or row["z"] < objective["value"] * (1 - _SLACK):
        entry["objective"] = {"value": row["z"], **by, "checked": "recomputed by the verifier"}
    # A bound for one choice of copies says nothing of another.
    if row["bound_holds_for_any_copies"] and (bound is None or row["bound"] > bound["value"] * (1 + _SLACK)):
        proofs = ", ".join(f"{proof} in {count} layers" for proof, count in sorted(row["proofs"].items()))
        entry["bound"] = {"value": row["bound"], **by, "proved": f"{proofs}; derived anew by the verifier"}
