"""Holds a placement against the best known, and enters what is better."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moe_placer.errors import VerificationError
from moe_placer.instance import Instance
from moe_placer.library.catalog import Library, placement_sha256
from moe_placer.library.recheck import judge_placement
from moe_placer.library.record import BoundKnown, Known, Record, status_of, write_record
from moe_placer.placement import Placement
from moe_placer.traffic import load_traffic

__all__ = ["Submission", "submit_placement"]

_SLACK = 1e-9  # relative; smaller differences are rounding


@dataclass(frozen=True)
class Submission:
    """What a placement changes in the library.

    Attributes
    ----------
    before, after : Record
        Equal where nothing is better.
    value, bound : float
        Of the placement that was submitted, as recomputed.
    files : tuple of Path
        What was written.
    """

    before: Record
    after: Record
    value: float
    bound: float
    files: tuple[Path, ...]


def submit_placement(
    library: Library, record: Record, instance: Instance, placement: Placement, date: str
) -> Submission:
    """Verify a placement, and enter its value and its bound where they are better than those known.

    Parameters
    ----------
    library : Library
        Where it is entered.
    record : Record
        Of the instance that the placement is for.
    instance : Instance
        As `Library.instance` gives it.
    placement : Placement
        From any solver or tool.
    date : str
        Of the submission, as 2026-11-27.

    Raises
    ------
    VerificationError
        The placement breaks a rule; nothing is written.
    """
    traffic = load_traffic(instance)
    found = judge_placement(library, record, instance, traffic, placement)
    if found.problems:
        rules = [violation.rule for violation in found.problems]
        raise VerificationError(f"not submitted, since it breaks a rule: {found.problems[0]}", rules)
    value, bound = found.value, found.bound
    solver = placement.solver
    by = {"solver": solver.name, "version": solver.version, "date": date}
    best, known = record.best, record.bound
    better = best is None or value < best.value * (1 - _SLACK)
    proves = bound > 0 or value == 0
    tighter = proves and (known is None or bound > known.value * (1 + _SLACK))
    if not better and not tighter:
        return Submission(record, record, value, bound, ())
    sha256 = placement_sha256(placement)
    if better:
        best = Known(value=value, placement=sha256, **by)
    if tighter:
        known = BoundKnown(value=bound, placement=sha256, proof=found.proof, **by)
    status = status_of(best.value, known.value) if best and known else "open"
    hashes = {"instance_sha256": instance.sha256, "traffic_sha256": traffic.sha256}
    after = record.model_copy(update={**hashes, "status": status, "best": best, "bound": known})
    # The record last: until it is there, the library is what it was, but for a file that the next `keep_only` removes.
    try:
        library.keep(record, placement)
        write_record(after, library.record_path(record.name))
    except BaseException:
        library.keep_only(record)
        raise
    library.keep_only(after)
    files = [library.record_path(record.name), library.placement_path(sha256, record.name)]
    return Submission(record, after, value, bound, tuple(files))
