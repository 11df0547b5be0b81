"""The best objective and bound ever seen of each instance, and who found them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from moe_placer.errors import InputError, Mistake
from moe_placer.files import write_atomically

__all__ = ["proved_total", "read_best_known", "update_best_known"]

_HEAD = """\
# The best objective (sum over layers of the busiest link, tokens per step at node-link speed) and the best re-checkable
# bound in any report, of each instance. Reports keep no certificates: what files alone prove is in records/.
# `moe-placer compare --update-best-known` keeps it; tests compare it with reports.
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
    path : Path
        Such as library/reported.yaml.
    rows : iterable of mapping
        Of a comparison (`results.jsonl`); runs without a verified placement do not count.
    environment : mapping
        Of the same comparison, for its date.
    report : str
        Name of the comparison's folder.
    """
    entries = {_key(entry): entry for entry in read_best_known(path)}
    known: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["kind"] == "instance":
            known[row["sha256"]] = row
        elif row["status"] == "ok":
            instance = known[row["instance_sha256"]]
            key = {"instance_sha256": instance["sha256"], "traffic_sha256": instance["traffic_sha256"]}
            first = {"instance": instance["name"], **key, "recordings": instance["recordings"]}
            entry = entries.setdefault(_key(key), {**first, "objective": None, "bound": None})
            _improve(entry, row, {"date": environment["date"], "report": report})
    ordered = sorted(entries.values(), key=lambda entry: (entry["instance"], entry["traffic_sha256"]))
    text = yaml.safe_dump({"entries": ordered}, sort_keys=False, allow_unicode=True, width=110)
    write_atomically(path, _HEAD + text)


def _key(record: Mapping[str, Any]) -> tuple[str, str]:
    return record["instance_sha256"], record["traffic_sha256"]


def _improve(entry: Entry, row: Mapping[str, Any], origin: Mapping[str, str]) -> None:
    by = {"solver": row["solver"], "version": row["version"], **origin}
    objective, bound = entry["objective"], entry["bound"]
    z, proved = row["traffic"]["solved_for"]["z_total"], proved_total(row)
    if objective is None or z < objective["value"] * (1 - _SLACK):
        entry["objective"] = {"value": z, **by, "checked": "recomputed by the verifier"}
    # A bound for one choice of replicas says nothing of another.
    if row["covers_copies"] and (bound is None or proved > bound["value"] * (1 + _SLACK)):
        counts = sorted(Counter(row["proof"]).items())
        proofs = ", ".join(f"{proof} in {count} layers" for proof, count in counts)
        entry["bound"] = {"value": proved, **by, "proved": f"{proofs}; derived anew by the verifier"}


def proved_total(row: Mapping[str, Any]) -> float:
    """Return the sum over layers of the bounds of a run that were derived anew; a solver's word counts as 0."""
    total = sum(bound for bound, checked in zip(row["bound"], row["recheckable"], strict=True) if checked)
    return max(float(total), float(row.get("memory_bound") or 0.0))
