"""Re-derives what a record says, from its files alone and by the verifier alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_placer.errors import InputError
from moe_placer.instance import Instance
from moe_placer.library.catalog import Library
from moe_placer.library.record import Known, KnownStatus, Record, status_of
from moe_placer.placement import Placement
from moe_placer.traffic import Traffic, load_traffic
from moe_placer.verifier import Verification, Violation, verify
from moe_placer.verifier.replanned import count_moves

__all__ = ["Judged", "Recheck", "judge_placement", "recheck_record"]

_ROUNDING = 1e-9  # relative; the verifier adds in the same order on every machine, but not with the same instructions


@dataclass(frozen=True)
class Recheck:
    """What checking one record anew gave.

    Attributes
    ----------
    verdict : str
        `good`, `wrong`, or `skipped` where a recording is missing.
    problems : tuple of str
        What is wrong, or missing.
    value, bound : float or None
        As recomputed.
    status : str or None
        As these give it.
    """

    name: str
    verdict: Literal["good", "wrong", "skipped"]
    problems: tuple[str, ...] = ()
    value: float | None = None
    bound: float | None = None
    status: KnownStatus | None = None


@dataclass(frozen=True)
class Judged:
    """What a placement has of what its instance minimises, the bound that it carries, and what is wrong with it.

    Attributes
    ----------
    by : str
        Name and version of the solver that the placement states.
    proof : str
        The kinds of proof, and in how many layers each was derived anew; `moves` where it is of a budget of moves.
    """

    value: float
    bound: float
    by: str
    proof: str
    problems: tuple[Violation, ...] = ()


def judge_placement(
    library: Library, record: Record, instance: Instance, traffic: Traffic, placement: Placement
) -> Judged:
    """Verify a placement of a record, and its moves from the old plan where the record has one.

    Parameters
    ----------
    library : Library
        Where the old plan lies.
    record : Record
    instance, traffic
        Of the record, as `Library.instance` and `load_traffic` give them.
    placement : Placement
        That nobody vouches for.

    Raises
    ------
    InputError
        The old plan is missing, damaged or another one.
    """
    migration, by = record.migration, f"{placement.solver.name} {placement.solver.version}"
    if migration is None:
        found = verify(instance, placement, traffic)
        return Judged(*_figures(instance, found), by, _proofs(found), found.violations)
    current = library.placement(record, migration.current)
    found = verify(instance, placement, traffic, current)
    value, bound = _figures(instance, found)
    moves = count_moves(current, placement)
    problems = found.violations
    if moves > migration.max_moves:
        message = f"{moves} moves from the old plan, the record allows {migration.max_moves}"
        problems = (*problems, Violation("moves", message))
    stated = placement.replan
    # What holds within a larger budget holds within this one, but not what was proved for moves within nodes.
    wide = stated is not None and not stated.inside_nodes and (stated.max_moves or 0) >= migration.max_moves
    if wide and instance.objective.minimise == "layers" and found.budget_bound > bound:
        return Judged(value, found.budget_bound, by, "moves", problems)
    return Judged(value, bound, by, _proofs(found), problems)


def _figures(instance: Instance, found: Verification) -> tuple[float, float]:
    """Return what a placement has of what the instance minimises, and the bound on it, both as recomputed."""
    if instance.objective.minimise == "aggregate":
        return found.aggregate, found.aggregate_bound
    if instance.objective.minimise == "layer-time":
        return found.total_layer_us, found.layer_us_bound
    return found.total_z, found.total_bound


def _proofs(found: Verification) -> str:
    """Return the kinds of proof, and in how many layers each was derived anew."""
    counts = Counter(layer.proof for layer in found.layers if layer.rederived)
    return ", ".join(f"{proof} in {count} layers" for proof, count in sorted(counts.items()))


def recheck_record(library: Library, record: Record, recordings: Path | None = None) -> Recheck:
    """Check a record anew: instance, traffic, placement, value, bound, proofs and status.

    Parameters
    ----------
    recordings : Path, optional
        Folder of recordings that are not committed.
    """
    try:
        instance = library.instance(record, recordings)
        traffic = load_traffic(instance)
    except FileNotFoundError as missing:
        return Recheck(record.name, "skipped", (str(missing),))
    except InputError as error:  # of this record alone: the others are still checked
        return Recheck(record.name, "wrong", tuple(map(str, error.mistakes)))
    problems = [
        f"{name} has SHA-256 {now}, the record says {stated}"
        for name, now, stated in (
            ("the instance", instance.sha256, record.instance_sha256),
            ("its traffic", traffic.sha256, record.traffic_sha256),
        )
        if now != stated and (stated is not None or record.best is not None or record.bound is not None)
    ]
    verified: dict[str, Judged] = {}
    value = bound = None
    if record.best is not None:
        found = _verified(library, record, record.best, (instance, traffic), verified, problems)
        value = None if found is None else found.value
        problems += _differs("value", record.best.value, value)
    if record.bound is not None:
        found = _verified(library, record, record.bound, (instance, traffic), verified, problems)
        bound = None if found is None else found.bound
        problems += _differs("bound", record.bound.value, bound)
        if found is not None and found.proof != record.bound.proof:
            problems.append(f"proofs are {found.proof}, the record says {record.bound.proof}")
    status = status_of(value, bound) if value is not None and bound is not None else "open"
    if status != record.status:
        problems.append(f"the status is {status}, the record says {record.status}")
    if value is not None and bound is not None and value < bound * (1 - _ROUNDING):
        problems.append(f"the value {value} is below the bound {bound}")
    return Recheck(record.name, "wrong" if problems else "good", tuple(problems), value, bound, status)


def _verified(
    library: Library,
    record: Record,
    known: Known,
    given: tuple[Instance, Traffic],
    verified: dict[str, Judged],
    problems: list[str],
) -> Judged | None:
    """Verify a placement of the record, once; None, and what is wrong, where it cannot be used."""
    if known.placement not in verified:
        try:
            judged = judge_placement(library, record, *given, library.placement(record, known.placement))
        except InputError as error:
            problems.append(str(error))
            return None
        problems += map(str, judged.problems)
        verified[known.placement] = judged
    found, stated = verified[known.placement], f"{known.solver} {known.version}"
    if stated != found.by:
        problems.append(f"the placement is by {found.by}, the record says {stated}")
    return found


def _differs(what: str, stated: float, now: float | None) -> list[str]:
    if now is None or abs(now - stated) <= _ROUNDING * max(abs(stated), 1.0):
        return []
    return [f"the {what} is {now!r}, the record says {stated!r}"]
