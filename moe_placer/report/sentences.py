"""The summary: who wins by how much, and when not."""

from __future__ import annotations

import statistics

from moe_placer.report.figures import BASE, Standing, standings
from moe_placer.report.rows import Comparison, InstanceRow

__all__ = ["summary"]

_TIE = 1e-3  # relative; nearer sums of z count as equal
_Field = list[tuple[InstanceRow, list[Standing]]]


def summary(comparison: Comparison) -> str:
    """Return two sentences: the solver that is least most often with its margin, and where it is not."""
    field = [(row, standings(comparison, row)) for row in comparison.instances]
    field = [(row, table) for row, table in field if table]
    if not field:
        return "No run gave a placement. The reasons stand below."
    winner = _winner(field)
    return f"{_wins(winner, field)} {_when_not(winner, field, len(comparison.instances))}"


def _winner(field: _Field) -> str:
    """Return the solver that served most instances least, ties by the smaller median ratio to the best."""
    ratios: dict[str, list[float]] = {}
    for _, table in field:
        for standing in table:
            ratios.setdefault(standing.run.solver, []).append(standing.to_best or 1.0)
    return min(
        ratios,
        key=lambda solver: (
            -sum(value <= 1 + _TIE for value in ratios[solver]),
            statistics.median(ratios[solver]),
            solver,
        ),
    )


def _wins(winner: str, field: _Field) -> str:
    least = [table for _, table in field if _of(winner, table) and _is_least(winner, table)]
    shares = []
    for name in dict.fromkeys((BASE, _next_best(winner, field))):
        margins = [margin for _, table in field if (margin := _margin(winner, name, table)) is not None]
        if name and name != winner and margins:
            shares.append(f"{_spread(margins)} {name}")
    over = f", {' and '.join(shares)}" if shares else ""
    return f"{winner} has the least sum of worst links in {_count(len(least), len(field))}{over}."


def _when_not(winner: str, field: _Field, instances: int) -> str:
    beaten = []
    for row, table in field:
        own = _of(winner, table)
        if own is None:
            beaten.append(f"on {row.name} it gave no placement")
        elif not _is_least(winner, table):
            margin = (own.to_best or 1.0) - 1
            beaten.append(f"on {row.name} {table[0].run.solver} is better (it is {margin:.1%} above)")
        elif others := [s.run.solver for s in table if s.run.solver != winner and (s.to_best or 1.0) <= 1 + _TIE]:
            beaten.append(f"on {row.name} {_list(others)} {'does' if len(others) == 1 else 'do'} as well, within 0.1%")
    faster = _faster(winner, field)
    if faster:
        beaten.append(faster)
    if len(field) < instances:
        beaten.append(f"{instances - len(field)} of {instances} instances got no placement from any solver")
    if not beaten:
        return "No other solver of this comparison does as well on any instance, or is faster."
    text = "; ".join(beaten)
    return f"When not: {text}."


def _faster(winner: str, field: _Field) -> str:
    """Say who answers sooner, where nothing is paid for time."""
    sooner = set()
    for _, table in field:
        own = _of(winner, table)
        for standing in table:
            mine, other = own.run.seconds.total if own else None, standing.run.seconds.total
            if mine and other and other < mine / 2:
                sooner.add(standing.run.solver)
    return f"{_list(sorted(sooner))} took less than half its time" if sooner else ""


def _of(solver: str, table: list[Standing]) -> Standing | None:
    return next((standing for standing in table if standing.run.solver == solver), None)


def _is_least(solver: str, table: list[Standing]) -> bool:
    own = _of(solver, table)
    return own is not None and (own.to_best or 1.0) <= 1 + _TIE


def _next_best(winner: str, field: _Field) -> str:
    """Return the other solver whose median ratio to the best is least."""
    ratios: dict[str, list[float]] = {}
    for _, table in field:
        for standing in table:
            if standing.run.solver != winner:
                ratios.setdefault(standing.run.solver, []).append(standing.to_best or 1.0)
    return min(ratios, key=lambda solver: (statistics.median(ratios[solver]), solver), default="")


def _margin(winner: str, other: str, table: list[Standing]) -> float | None:
    own, rival = _of(winner, table), _of(other, table)
    if own is None or rival is None or rival.run.solved_for.z_total == 0:
        return None
    return 1 - own.run.solved_for.z_total / rival.run.solved_for.z_total


def _spread(margins: list[float]) -> str:
    if max(map(abs, margins)) <= _TIE:
        return "level with"
    low, high = f"{abs(min(margins)):.1%}", f"{abs(max(margins)):.1%}"
    if min(margins) >= 0:
        return f"{low if low == high else f'{low} to {high}'} below"
    if max(margins) <= 0:
        return f"{low if low == high else f'{high} to {low}'} above"
    return f"from {low} above to {high} below"


def _count(least: int, of: int) -> str:
    if of == 1:
        return "the one instance" if least else "none of one instance"
    if least == of == 2:
        return "both instances"
    return f"all {of} instances" if least == of else f"{least} of {of} instances"


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
