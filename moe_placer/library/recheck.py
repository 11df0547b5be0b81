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
from moe_placer.traffic import Traffic, load_traffic
from moe_placer.verifier import Verification, verify

__all__ = ["Recheck", "figures", "proofs_of", "recheck_record"]

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


def figures(instance: Instance, found: Verification) -> tuple[float, float]:
    """Return what a placement has of what the instance minimises, and the bound on it, both as recomputed."""
    if instance.objective.minimise == "aggregate":
        return found.aggregate, found.aggregate_bound
    if instance.objective.minimise == "layer-time":
        return found.total_layer_us, found.layer_us_bound
    return found.total_z, found.total_bound


def proofs_of(found: Verification) -> str:
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
    verified: dict[str, Verification] = {}
    value = bound = None
    if record.best is not None:
        found = _verified(library, record, record.best, (instance, traffic), verified, problems)
        value = None if found is None else figures(instance, found)[0]
        problems += _differs("value", record.best.value, value)
    if record.bound is not None:
        found = _verified(library, record, record.bound, (instance, traffic), verified, problems)
        bound = None if found is None else figures(instance, found)[1]
        problems += _differs("bound", record.bound.value, bound)
        if found is not None and proofs_of(found) != record.bound.proof:
            problems.append(f"proofs are {proofs_of(found)}, the record says {record.bound.proof}")
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
    verified: dict[str, Verification],
    problems: list[str],
) -> Verification | None:
    """Verify a placement of the record, once; None, and what is wrong, where it cannot be used."""
    if known.placement not in verified:
        try:
            placement = library.placement(record, known.placement)
        except InputError as error:
            problems.append(str(error))
            return None
        found = verify(given[0], placement, given[1])
        problems += [str(violation) for violation in found.violations]
        verified[known.placement] = found
    return verified[known.placement]


def _differs(what: str, stated: float, now: float | None) -> list[str]:
    if now is None or abs(now - stated) <= _ROUNDING * max(abs(stated), 1.0):
        return []
    return [f"the {what} is {now!r}, the record says {stated!r}"]
