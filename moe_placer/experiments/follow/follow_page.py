"""The page of a report on following traffic: sums, what is left of a plan's gain, every window, and two pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moe_placer.experiments.environment import environment_in_words
from moe_placer.experiments.follow.follow_chart import draw_costs, draw_moves
from moe_placer.experiments.plan.blocks import Block, Heading, Items, Picture, Table, Text
from moe_placer.experiments.report.markdown import plain
from moe_placer.replan.follow import WAYS, gain_kept

if TYPE_CHECKING:
    from moe_placer.experiments.follow.follow_rows import FollowConfig, FollowedRow

__all__ = ["build_followed"]

_COSTS = {"links": "busiest links", "gpus": "busiest GPUs", "time": "busiest links and GPUs as time"}


def build_followed(config: FollowConfig, rows: Sequence[FollowedRow], environment: Mapping[str, Any]) -> list[Block]:
    """Return the page as blocks; the same rows give the same ones.

    Parameters
    ----------
    config : FollowConfig
        What was asked.
    rows : sequence of FollowedRow
        Every way on every window.
    environment : mapping
        Machine and versions.
    """
    of_way: dict[str, list[FollowedRow]] = {}
    for row in sorted(rows, key=lambda row: row.window):
        of_way.setdefault(row.way, []).append(row)
    of_way = {way: of_way[way] for way in sorted(of_way, key=[*WAYS, *of_way].index)}
    kept = gain_kept({way: [row.value for row in own] for way, own in of_way.items()})
    blocks: list[Block] = [
        Heading(plain(config.name), 1),
        Text(_question(config, len(next(iter(of_way.values()))))),
        Heading("Sums over windows"),
        _sums(config, of_way),
        Items(tuple(f"`{way}`: {WAYS.get(way, 'a way of another version')}" for way in of_way)),
        Picture("costs.svg", "Cost of each way in every window", draw_costs(of_way)),
        Picture("moves.svg", "Moves against cost, summed over windows: down and left is better", draw_moves(of_way)),
    ]
    if kept:
        blocks += [Heading("How long a plan lasts"), Text(_KEPT), _lasting(kept)]
    said = f"{environment_in_words(environment)}, {environment['date']}."
    return [*blocks, Heading("Every window"), _windows(of_way), Heading("Set-up"), Text(said), Text(_MADE)]


_KEPT = (
    "What the plan that was made once keeps of the gain of replanning for every window (cost of `never` less that of "
    "`replan`)."
)
_MADE = (
    "Moves are replicas that a GPU must load; slots are those whose expert changes, which is more where an engine does "
    "not keep slots. `moe-placer report` on this folder makes README.md, index.html and pictures from config.json, "
    "environment.json and results.jsonl, byte for byte."
)


def _question(config: FollowConfig, windows: int) -> str:
    limits = [f"at most {config.max_moves:,} moves a window"] if config.max_moves is not None else []
    limits += [f"at most {config.max_bytes / 1e9:,.1f} GB a window"] if config.max_bytes is not None else []
    spent = f"effort {config.work:g}" if config.work is not None else f"{config.time_limit_s:g} s"
    return (
        f"{plain(config.instance)}: {config.layers} MoE layers of {config.experts} experts on {config.gpus} GPUs. "
        f"Each plan is made from the windows before and measured on the next, {windows} times; recordings: "
        f"{plain(', '.join(config.recordings))}. Replans minimise {_COSTS[config.minimise]}"
        f"{', ' if limits else ''}{', '.join(limits)}, with {spent} of search each, seed {config.seed}."
    )


def _sums(config: FollowConfig, of_way: Mapping[str, Sequence[FollowedRow]]) -> Table:
    def total(own: Sequence[FollowedRow], field: str) -> float:
        return float(sum(getattr(row, field) for row in own))

    base = {field: total(of_way["never"], field) if "never" in of_way else 0.0 for field in _COST_FIELDS}
    rows = []
    for way, own in of_way.items():
        changes = [f"{total(own, field) / base[field] - 1:+.1%}" if base[field] else "-" for field in _COST_FIELDS]
        rows.append(
            (f"`{way}`", f"{total(own, 'moves'):,.0f}", f"{total(own, 'slots'):,.0f}",
             f"{total(own, 'bytes') / 1e9:,.1f}", f"{total(own, 'transfers_us') / 1e3:,.1f}",
             f"{total(own, 'total_z'):,.0f}", changes[0], f"{total(own, 'busiest_gpu'):,.0f}", changes[1], changes[2])
        )  # fmt: skip
    head = ("way", "moves", "slots written", "GB", "transfers, ms", "busiest links, cost", "to never",
            "busiest GPUs, tokens", "to never", f"{_COSTS[config.minimise]}, to never")  # fmt: skip
    return Table(head, tuple(rows))


_COST_FIELDS = ("total_z", "busiest_gpu", "value")


def _lasting(kept: Mapping[int, float | None]) -> Table:
    cells = ["nothing was gained" if share is None else f"{share:.0%}" for share in kept.values()]
    return Table(("", *(f"after {after} window{'s' * (after > 1)}" for after in kept)), (("gain kept", *cells),))


def _windows(of_way: Mapping[str, Sequence[FollowedRow]]) -> Table:
    rows = [
        (f"`{row.way}`", str(row.window), f"{row.moves:,}", f"{row.slots:,}", f"{row.transfers_us / 1e3:,.1f}",
         f"{row.total_z:,.0f}", f"{row.busiest_gpu:,.0f}", f"{row.value:,.0f}")
        for own in of_way.values()
        for row in own
    ]  # fmt: skip
    head = ("way", "window", "moves", "slots written", "transfers, ms", "busiest links, cost", "busiest GPUs, tokens",
            "cost")  # fmt: skip
    return Table(head, tuple(rows))
