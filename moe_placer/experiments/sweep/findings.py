"""What a sweep shows, in sentences: who has the shorter step where, which batches fit, what is best of those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moe_placer.experiments.sweep.crossing import find_crossings
from moe_placer.schedule.step import EQUAL_STEPS
from moe_placer.schedule.step_figures import SHARES, plan_holds

__all__ = ["AXES", "answers", "by", "said", "shares_in_percent", "varied"]

Row = Mapping[str, Any]
Plans = Mapping[str, Sequence[Row]]  # by batch

AXES = ("tokens_per_gpu", "context", "oversubscription")
_STATE = ("phase", "context", "oversubscription", "dispatch", "receive")  # what is the same in one curve over batches

_RECEIVED = {
    "shared": "the node's NICs together",
    "source-rail": "the NIC of the sender's rail",
    "destination-gpu": "the NIC of the expert's GPU",
}


def by(rows: Sequence[Row], *fields: str) -> dict[tuple[Any, ...], list[Row]]:
    """Group rows by the values of some fields, in order of appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(field) for field in fields), []).append(row)  # older rows state no kernel
    return found


def varied(rows: Sequence[Row], fields: Sequence[str] = ("phase", *AXES, "dispatch", "receive")) -> list[str]:
    """Name the fields that have more than one value."""
    return [field for field in fields if len(by(rows, field)) > 1]


def said(field: str, value: Any) -> str:
    """Say one value of a field, with its unit."""
    if field == "phase":
        return str(value)
    if field == "tokens_per_gpu":
        return f"{value:,.4g} tokens per GPU" if value < 1000 else f"{value:,.0f} tokens per GPU"
    if field == "context":
        return f"context {value:,.0f} tokens"
    if field == "dispatch":
        return f"dispatch {value}"
    if field == "receive":
        return f"received at {_RECEIVED.get(value, value)}"
    return "no fat tree" if value is None else f"oversubscription {value:g}:1"


def answers(rows: Sequence[Row]) -> list[str]:
    """Compare the first plan with every other one, state by state: over batches where these are swept.

    Parameters
    ----------
    rows : sequence of mapping
        Of `moe_placer.experiments.sweep.sweep.simulate_point`.
    """
    changes = varied(rows, _STATE)
    states = {}
    for key, group in by(rows, *_STATE).items():
        state = dict(zip(_STATE, key, strict=True))
        states[", ".join(said(field, state[field]) for field in changes)] = _plans_of(group)
    if len(by(rows, "tokens_per_gpu")) == 1:
        return [*_side_by_side(states), *_fitting(states)]
    lines = [_with(where, line) for where, plans in states.items() for line in _over_batches(plans)]
    return [*lines, *_fitting(states)]


def _with(where: str, line: str) -> str:
    return f"{where}: {line}" if where else line


def _plans_of(rows: Sequence[Row]) -> Plans:
    return {name: sorted(group, key=lambda row: row["tokens_per_gpu"]) for (name,), group in by(rows, "plan").items()}


def _over_batches(plans: Plans) -> Iterator[str]:
    """Compare the first plan with every other one, and name the best batch of each."""
    (first, mine), *others = plans.items()
    for second, its in others:
        yield _against(first, mine, second, its)
    yield _best_of_what_fits(plans)
    for name, rows in plans.items():
        planned = rows[0].get("planned_shares")  # rows of older versions have none
        if planned is not None:
            yield _planned_shares(name, rows, planned)


def _planned_shares(name: str, rows: Sequence[Row], planned: Mapping[str, float]) -> str:
    """Say at which batches the deployment plan's estimate of where the time goes holds."""
    estimate = f"the deployment plan's shares ({shares_in_percent(planned)} % {', '.join(SHARES)})"
    holds = [f"{row['tokens_per_gpu']:,g}" for row in rows if plan_holds(row["shares"], planned)]
    if holds:
        return f"{estimate} hold with {name} at {', '.join(holds)} tokens per GPU."
    nearest = min(rows, key=lambda row: max(abs(row["shares"][part] - share) for part, share in planned.items()))
    return (
        f"{estimate} hold with {name} at no swept batch; nearest are {shares_in_percent(nearest['shares'])} % at "
        f"{nearest['tokens_per_gpu']:,g} tokens per GPU."
    )


def shares_in_percent(shares: Mapping[str, float]) -> str:
    """Return computation/communication/synchronization/overhead in percent, as 40/35/15/10."""
    return "/".join(f"{100 * shares[part]:.0f}" for part in SHARES)


def _side_by_side(states: Mapping[str, Plans]) -> Iterator[str]:
    """Compare the first plan with every other one at their only batch, all states in one sentence."""
    names = list(dict.fromkeys(name for plans in states.values() for name in plans))
    for second in names[1:]:
        found = []
        for where, plans in states.items():
            if names[0] in plans and second in plans:
                margin = plans[names[0]][0]["latency_us"] / plans[second][0]["latency_us"] - 1
                found.append(f"{where} {margin:+.1%}{' (equal)' if abs(margin) < EQUAL_STEPS else ''}".strip())
        if found:
            yield f"step of {names[0]} against {second}: {', '.join(found)}."


def _against(first: str, mine: Sequence[Row], second: str, its: Sequence[Row]) -> str:
    """Say from which batch on which of two plans has the shorter step."""
    common = sorted({row["tokens_per_gpu"] for row in mine} & {row["tokens_per_gpu"] for row in its})
    curves = [[_latency(rows, tokens) for tokens in common] for rows in (mine, its)]
    crossings = find_crossings(common, curves[0], curves[1], EQUAL_STEPS)
    margins = [a / b - 1 for a, b in zip(*curves, strict=True)]
    if not crossings:
        return _always(first, second, common, margins)
    pieces = []
    most = [rows[0]["most_tokens_per_gpu"] for rows in (mine, its)]
    for crossing in crossings:
        winner, loser = (first, second) if crossing.first_wins_after else (second, first)
        pieces.append(
            f"from about {_rounded(crossing.at)} tokens per GPU on (between the swept {crossing.low:,g} and "
            f"{crossing.high:,g}{_held(crossing.at, most)}) {winner} has the shorter step, below it {loser}"
        )
    low, high = (
        f"{margin:+.1%} at {tokens:,g}" for margin, tokens in ((margins[0], common[0]), (margins[-1], common[-1]))
    )
    return f"{'; '.join(pieces)} (step of {first} against {second}: {low}, {high})."


def _rounded(tokens: float) -> str:
    """Three digits, without an exponent."""
    return f"{float(f'{tokens:.3g}'):,.10g}"


def _held(tokens: float, most: Sequence[float]) -> str:
    """Say where memory does not hold the batch at which two plans cross."""
    if tokens <= min(most):
        return ""
    return ", more than memory holds with either" if tokens > max(most) else ", more than memory holds with one of them"


def _always(first: str, second: str, tokens: Sequence[float], margins: Sequence[float]) -> str:
    span = f"{min(margins):+.1%} to {max(margins):+.1%}" if len(margins) > 1 else f"{margins[0]:+.1%}"
    where = (
        f"at every swept batch, {tokens[0]:,g} to {tokens[-1]:,g} tokens per GPU"
        if len(tokens) > 1
        else (f"at {tokens[0]:,g} tokens per GPU")
    )
    if max(abs(margin) for margin in margins) < EQUAL_STEPS:
        return f"{first} and {second} have equally long steps {where}, within {EQUAL_STEPS:.0%} ({span})."
    winner = first if min(margins) <= -EQUAL_STEPS else second
    equal = [tokens[index] for index, margin in enumerate(margins) if abs(margin) < EQUAL_STEPS]
    but = f", but for equal ones at {', '.join(f'{one:,g}' for one in equal)}" if equal else ""
    return f"{winner} has the shorter step {where}{but} (step of {first} against {second}: {span})."


def _latency(rows: Sequence[Row], tokens: float) -> float:
    return float(next(row["latency_us"] for row in rows if row["tokens_per_gpu"] == tokens))


def _fitting(states: Mapping[str, Plans]) -> list[str]:
    """Say how many tokens each plan's memory holds: once, where it is the same in every state."""
    lines = {}
    for where, plans in states.items():
        most = {name: _floor(rows[0]["most_tokens_per_gpu"]) for name, rows in plans.items()}
        held = [f"{tokens} with {name}" for name, tokens in most.items()]
        if len(most) > 1 and len(set(most.values())) == 1:
            held = [f"{held[0].partition(' ')[0]} with every plan"]
        lines[where] = f"memory holds, in tokens per GPU, up to {', '.join(held)}."
    if len(set(lines.values())) == 1:
        return [next(iter(lines.values()))]
    return [_with(where, line) for where, line in lines.items()]


def _floor(tokens: float) -> str:
    """Round down to three digits: what is said to fit does."""
    if tokens >= 1000:
        return f"{int(tokens):,}"
    return f"{int(tokens * 100) / 100:g}"


def _best_of_what_fits(plans: Plans) -> str:
    found = []
    for name, rows in plans.items():
        fitting = [row for row in rows if row["fits"]]
        if fitting:
            best = max(fitting, key=lambda row: row["tokens_per_s_per_gpu"])
            rate, tokens = best["tokens_per_s_per_gpu"], best["tokens_per_gpu"]
            found.append(f"{name} {rate:,.0f} tokens/s per GPU at {tokens:,g} tokens per GPU")
        else:
            found.append(f"{name} none")
    return f"best throughput of the swept batches that fit: {', '.join(found)}."
