"""The summary of a report: which solver is best, by how much, and where it is not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from moe_placer.experiments.report.rows import Comparison, InstanceRow, Metrics, ratio
from moe_placer.experiments.report.standings import BASE, Standing, standings

__all__ = ["summary"]

_TIE = 1e-3  # relative; nearer sums of z count as equal
_WORTH_SAYING = 0.01  # relative; where another is better at what is not the objective
_FASTER = 0.5  # of the winner's time
_FEW = 3  # instances whose sums a sentence can hold
_LEVEL = "level with"
_Field = list[tuple[InstanceRow, list[Standing]]]

# What a placement may be chosen for instead: how it is called, and how much of it is bad.
_OTHER_AIMS: tuple[tuple[str, Callable[[Metrics], float]], ...] = (
    ("token-hops", lambda found: found.token_hops),
    ("the worst pair of nodes", lambda found: found.pair_total),
    ("the busiest GPU", lambda found: found.busiest_gpu_tokens),
    ("the busiest node", lambda found: found.busiest_node_tokens),
)


def summary(comparison: Comparison) -> str:
    """Return two sentences: the solver that is least most often with its margin, and where it is not."""
    field = [(row, standings(comparison, row)) for row in comparison.instances]
    field = [(row, table) for row, table in field if table]
    if not field:
        return "No run gave a placement. The reasons stand below."
    winner = _winner(field)
    return f"{_wins(winner, field)} {_when_not(winner, field, len(comparison.instances))}"


def _winner(field: _Field) -> str:
    """Return the solver that served most instances least, ties by the smaller median distance from the best."""
    above: dict[str, list[float]] = {}
    for _, table in field:
        for standing in table:
            above.setdefault(standing.run.solver, []).append(standing.above_best)
    return min(
        above,
        key=lambda solver: (-sum(it <= _TIE for it in above[solver]), statistics.median(above[solver]), solver),
    )


def _wins(winner: str, field: _Field) -> str:
    least = [row for row, table in field if (own := _of(winner, table)) and own.above_best <= _TIE]
    next_best = _next_best(winner, field)
    shares = []
    for name in dict.fromkeys((BASE, next_best)):
        margins = [margin for _, table in field if (margin := _margin(winner, name, table)) is not None]
        if name and name != winner and margins:
            spread = _spread(margins)
            best = "the next best, " if name == next_best and spread != _LEVEL else ""
            shares.append(f"{spread} {best}{name}")
    over = f", {' and '.join(shares)}" if shares else ""
    unseen = [1 - own.held_out_to_base for _, table in field if (own := _of(winner, table)) and own.held_out_to_base]
    later = f" ({_spread(unseen)} {BASE} on held-out traffic)" if unseen and winner != BASE else ""
    return f"{winner} has the least sum of busiest links {_where(least, field)}{_totals(winner, field)}{over}{later}."


def _totals(winner: str, field: _Field) -> str:
    """Return the winner's sums, where they compare few instances."""
    sums = [(row.name, own.run.solved_for.z_total) for row, table in field if (own := _of(winner, table))]
    if not 1 < len(sums) <= _FEW:
        return ""
    return f" ({_list([f'cost {total:,.0f} on {name}' for name, total in sums])})"


def _when_not(winner: str, field: _Field, instances: int) -> str:
    beaten = [
        *_beaten("", winner, field, lambda standing: standing.above_best),
        *_beaten("held-out traffic of ", winner, field, _above_best_later),
        *_cooler_layers(winner, field),
        *_better_at_other_things(winner, field),
        *_faster(winner, field),
    ]
    if len(field) < instances:
        beaten.append(f"{instances - len(field)} of {instances} instances got no placement from any solver")
    if not beaten:
        return "No other solver of this comparison does as well at anything that is measured here, or is faster."
    return f"When not: {'; '.join(beaten)}."


def _above_best_later(standing: Standing) -> float | None:
    return None if standing.held_out_to_best is None else standing.held_out_to_best - 1


def _beaten(on: str, winner: str, field: _Field, above: Callable[[Standing], float | None]) -> list[str]:
    """Say where the winner is not the least, or not alone."""
    said: dict[str, list[str]] = {}
    for row, table in field:
        far = {s.run.solver: value for s in table if (value := above(s)) is not None}
        own = far.get(winner)
        if own is None:
            text = "" if on and not far else "it gave no placement"
        elif own > _TIE:
            text = f"{min(far, key=lambda name: far[name])} is better (it is {own:.1%} above)"
        else:
            level = [name for name, value in far.items() if name != winner and value <= _TIE]
            text = f"{_list(level)} {'does' if len(level) == 1 else 'do'} as well, within {_TIE:.1%}" if level else ""
        if text:
            said.setdefault(text, []).append(row.name)
    return [f"on {on}{_list(names)} {text}" for text, names in said.items()]


def _cooler_layers(winner: str, field: _Field) -> list[str]:
    """Say in how many layers another solver's busiest link is cooler, though its sum is not."""
    cooler = layers = 0
    for _, table in field:
        own = _of(winner, table)
        if own is not None:
            rivals = [standing.run.solved_for.z for standing in table if standing is not own]
            least = [min(values) for values in zip(*rivals, strict=True)]
            cooler += sum(z > other * (1 + _TIE) for z, other in zip(own.run.solved_for.z, least, strict=False))
            layers += len(own.run.solved_for.z)
    return [f"in {cooler} of {layers} layers another's busiest link is cooler"] if cooler else []


def _better_at_other_things(winner: str, field: _Field) -> list[str]:
    """Name who is best at what the busiest link does not see, where that is not the winner."""
    parts = []
    for what, amount in _OTHER_AIMS:
        names, gains = [], []
        for _, table in field:
            own = _of(winner, table)
            best = min(table, key=lambda standing: amount(standing.run.solved_for))
            if own is not None and amount(own.run.solved_for) > 0:
                gain = 1 - amount(best.run.solved_for) / amount(own.run.solved_for)
                if gain > _WORTH_SAYING:
                    names.append(best.run.solver)
                    gains.append(gain)
        if gains:
            low, high = f"{min(gains):.1%}", f"{max(gains):.1%}"
            spread = low if low == high else f"{low} to {high}"
            place = "" if len(gains) == len(field) else f" on {len(gains)} of {len(field)} instances"
            parts.append(f"{what} ({_list(list(dict.fromkeys(names)), 'or')}, {spread} less{place})")
    return [f"others are better at {_list(parts)}"] if parts else []


def _faster(winner: str, field: _Field) -> list[str]:
    """Say who answers sooner, and what that costs: the best of those that end in less than half its time."""
    times: list[float] = []
    rivals: dict[str, list[float]] = {}
    for _, table in field:
        own = _of(winner, table)
        mine = own.run.seconds.total if own else None
        if own is None or not mine:
            continue
        faster = [s for s in table if s.run.seconds.total and s.run.seconds.total < _FASTER * mine]
        if faster:
            times.append(mine)
        for standing in faster:
            rivals.setdefault(standing.run.solver, []).append(_above(standing, own))
    if not rivals:
        return []
    nearest = min(rivals, key=lambda name: (-len(rivals[name]), statistics.median(rivals[name]), name))
    low, high = f"{min(times):.1f}", f"{max(times):.1f}"
    seconds = f"{low} s" if low == high else f"{low} to {high} s"
    who = f"{nearest} ends" if len(rivals) == 1 else f"{len(rivals)} others end"
    best = "" if len(rivals) == 1 else f", of which {nearest} is the best"
    finite = [-above for above in rivals[nearest] if math.isfinite(above)]
    above = f", {_spread(finite)} it" if finite else ""
    seconds += "" if len(times) == len(field) else f" on {len(times)} of {len(field)} instances"
    return [f"{who} in less than half its {seconds}{best}{above}"]


def _above(standing: Standing, other: Standing) -> float:
    """How far a sum of z is above another; infinite where only the other is 0."""
    found = ratio(standing.run.solved_for.z_total, other.run.solved_for.z_total)
    return math.inf if found is None else found - 1


def _of(solver: str, table: Sequence[Standing]) -> Standing | None:
    return next((standing for standing in table if standing.run.solver == solver), None)


def _next_best(winner: str, field: _Field) -> str:
    """Return the other solver whose median distance from the best is least, of those that served most."""
    above: dict[str, list[float]] = {}
    for _, table in field:
        for standing in table:
            if standing.run.solver != winner:
                above.setdefault(standing.run.solver, []).append(standing.above_best)
    return min(above, key=lambda solver: (-len(above[solver]), statistics.median(above[solver]), solver), default="")


def _margin(solver: str, other: str, table: Sequence[Standing]) -> float | None:
    """How far a solver's sum of z is below another's; None where one has none, or the other's is 0."""
    own, rival = _of(solver, table), _of(other, table)
    if own is None or rival is None or rival.run.solved_for.z_total == 0:
        return None
    return 1 - own.run.solved_for.z_total / rival.run.solved_for.z_total


def _spread(margins: Iterable[float]) -> str:
    """Write how far below something is, over instances."""
    least, most = min(margins := list(margins)), max(margins)
    if max(map(abs, margins)) <= _TIE:
        return _LEVEL
    low, high = f"{abs(least):.1%}", f"{abs(most):.1%}"
    if least >= 0:
        return f"{low if low == high else f'{low} to {high}'} below"
    if most <= 0:
        return f"{low if low == high else f'{high} to {low}'} above"
    return f"from {low} above to {high} below"


def _where(least: Sequence[InstanceRow], field: _Field) -> str:
    if len(field) == 1:
        return f"on {field[0][0].name}"
    if len(least) == len(field):
        return "on both instances" if len(field) == 2 else f"on all {len(field)} instances"
    return f"on {len(least)} of {len(field)} instances"


def _list(names: Sequence[str], word: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
