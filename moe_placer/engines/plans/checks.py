"""What every engine's file must hold, whatever its syntax: whole numbers, experts that exist, none missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moe_placer.engines.layouts import EngineRules
from moe_placer.engines.plans.plan import Deployment, Plan
from moe_placer.errors import InputError, Mistake

__all__ = ["Fault", "Row", "build_plan", "check_row_count", "refuse"]

Fault = Literal["rows", "kind", "range", "slots", "missing", "twice"]


@dataclass(frozen=True)
class Row:
    """The slots that a file lists for one layer.

    Attributes
    ----------
    path : str
        Where it stands in the file.
    layer : int
        The layer as the file counts it.
    slots : list
        What stands in the slots, rank after rank; not checked yet.
    """

    path: str
    layer: int
    slots: list[Any]


@dataclass(frozen=True)
class _Wrong:
    fault: Fault
    found: str
    expected: str
    path: str


def build_plan(
    rows: Sequence[Row],
    deployment: Deployment | None,
    rules: EngineRules,
    file: Path,
    consequences: Mapping[Fault, str],
    moe: Sequence[int] | None = None,
    ranks: int | None = None,
) -> Plan:
    """Check the layers of a file, and return them as a plan.

    Parameters
    ----------
    rows : sequence of Row
        In the order of layers.
    deployment : Deployment or None
        What the plan is for; without it experts are taken to be 0 to the largest id, and ranks are not known.
    rules : EngineRules
        Of the engine that the file is for.
    file : Path
        For messages.
    consequences : mapping
        What the engine does with a file of such a fault, as far as it is known.
    moe : sequence of int, optional
        Positions in ``rows`` of the MoE layers; absent: all.
    ranks : int, optional
        Ranks that the file itself shows.

    Raises
    ------
    InputError
        One message for each kind of fault, with the first place and the number of layers.
    """
    experts = deployment.experts if deployment else _largest(rows) + 1
    count = ranks or (deployment.ranks if deployment else None)
    wrong = []
    for index, row in enumerate(rows):
        slots = _slots_of(index, rows, moe, deployment)
        found = _first_fault(row, experts, slots, count, rules)
        if found is not None:
            wrong.append(found)
    if wrong:
        raise InputError(_by_kind(wrong, rules, file, consequences))
    chosen = [rows[index].slots for index in (range(len(rows)) if moe is None else moe)]
    return Plan(experts, tuple(_by_rank(slots, count or 1) for slots in chosen))


def _largest(rows: Sequence[Row]) -> int:
    return max((entry for row in rows for entry in row.slots if type(entry) is int), default=-1)


def _slots_of(
    index: int, rows: Sequence[Row], moe: Sequence[int] | None, deployment: Deployment | None
) -> tuple[int, str]:
    """How many slots a layer should have, and who says so."""
    if deployment is not None and deployment.slots_by_layer is not None:
        # Dense layers get as many slots as the MoE layers.
        at = index if moe is None else (list(moe).index(index) if index in moe else 0)
        at = min(at, len(deployment.slots_by_layer) - 1)
        slots = deployment.slots_by_layer[at]
        return slots, f"{slots} ({deployment.experts} experts and {slots - deployment.experts} redundant slots)"
    return len(rows[0].slots), f"{len(rows[0].slots)}, as in {rows[0].path}"


def _first_fault(
    row: Row,
    experts: int,
    slots: tuple[int, str],
    ranks: int | None,
    rules: EngineRules,
) -> _Wrong | None:
    """Return what is wrong with a layer: of several faults the one that explains the others."""
    for slot, entry in enumerate(row.slots):
        if type(entry) is not int:
            return _Wrong("kind", _shown(entry), "an expert id, a whole number", f"{row.path}[{slot}]")
    for slot, entry in enumerate(row.slots):
        if not 0 <= entry < experts:
            found = str(entry) if abs(entry) < 10**18 else "a number of more than 18 digits"
            return _Wrong("range", found, f"an expert id from 0 to {experts - 1}", f"{row.path}[{slot}]")
    required, reason = slots
    if len(row.slots) != required:
        return _Wrong("slots", f"{len(row.slots)} slots", reason, row.path)
    if ranks and rules.equal_slots and len(row.slots) % ranks:
        expected = f"a multiple of {ranks}, the {rules.ranks_word}"
        return _Wrong("slots", f"{len(row.slots)} slots", expected, row.path)
    missing = sorted(set(range(experts)) - set(row.slots))
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        word = "expert" if len(missing) == 1 else "experts"
        return _Wrong("missing", f"no slot with {word} {shown}", f"all {experts} experts", row.path)
    if ranks and not rules.twice_on_a_gpu:
        return _find_repeat(row, ranks)
    return None


def _find_repeat(row: Row, ranks: int) -> _Wrong | None:
    for rank, held in enumerate(_by_rank(row.slots, ranks)):
        repeated = [expert for expert in held if held.count(expert) > 1]
        if repeated:
            found = f"expert {repeated[0]} twice on rank {rank}"
            return _Wrong("twice", found, "at most one replica of an expert on a rank", row.path)
    return None


def _by_rank(slots: Sequence[int], ranks: int) -> tuple[tuple[int, ...], ...]:
    each = len(slots) // ranks
    return tuple(tuple(slots[rank * each : (rank + 1) * each]) for rank in range(ranks))


def _shown(entry: object) -> str:
    text = "null" if entry is None else str(entry)
    text = text if len(text) <= 40 else text[:37] + "..."
    kinds = {float: "a fraction", bool: "a truth value", str: "text", list: "a list", dict: "an object"}
    return f"{text} ({kinds[type(entry)]})" if type(entry) in kinds else text


def _by_kind(
    wrong: Sequence[_Wrong], rules: EngineRules, file: Path, consequences: Mapping[Fault, str]
) -> list[Mistake]:
    """Say each kind of fault once, however many layers have it."""
    kinds: dict[Fault, list[_Wrong]] = {}
    for one in wrong:
        kinds.setdefault(one.fault, []).append(one)
    mistakes = []
    for fault, cases in kinds.items():
        more = f" (and the like in {len(cases) - 1} more layers)" if len(cases) > 1 else ""
        expected = f"{cases[0].expected}: {rules.label} {consequences.get(fault, 'needs it')}"
        mistakes.append(Mistake(cases[0].found + more, expected, cases[0].path, file))
    return mistakes


def check_row_count(
    found: int, required: int, axis: str, rules: EngineRules, path: str, file: Path, consequence: str
) -> None:
    """Refuse a file with too few or too many layers.

    Parameters
    ----------
    found, required : int
        Layers in the file, and layers that there should be.
    axis : str
        What the file's layers are: ``decoder layer, dense ones included``, ``MoE layer``.
    rules : EngineRules
    path, file
        Where, for the message.
    consequence : str
        What the engine does with such a file.

    Raises
    ------
    InputError
        The numbers differ.
    """
    if found != required:
        expected = f"{required}, one for every {axis}: {rules.label} {consequence}"
        raise InputError(Mistake(f"{found} layers", expected, path, file))


def refuse(found: str, expected: str, path: str, file: Path) -> InputError:
    """Return the error for one mistake.

    Parameters
    ----------
    found : str
        What stands there.
    expected : str
        What should stand there.
    path : str
        Path of the key in the file.
    file : Path
        Where the mistake is.
    """
    return InputError(Mistake(found, expected, path, file))
