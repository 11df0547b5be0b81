"""The tables of a report, the same for HTML and Markdown: each cell as text, and as a number to sort by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moe_placer.report.figures import BASE, Standing

__all__ = ["NOT_KNOWN", "TABLES", "Cell", "Column", "cells_of"]

NOT_KNOWN = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """A cell's text, and its number (None sorts last)."""

    text: str
    number: float | None


@dataclass(frozen=True)
class Column:
    """A column: its heading, what it says in a sentence, and how its cells are found and written."""

    title: str
    meaning: str
    number: Callable[[Standing], float | None]
    form: str
    scale: float = 1.0

    def cell(self, standing: Standing) -> Cell:
        """Return the cell of one solver."""
        number = self.number(standing)
        return Cell(NOT_KNOWN if number is None else format(number * self.scale, self.form), number)


def cells_of(columns: tuple[Column, ...], standing: Standing) -> list[Cell]:
    """Return a solver's row."""
    return [column.cell(standing) for column in columns]


def _held_out(standing: Standing) -> float | None:
    traffic = standing.run.traffic
    return traffic.held_out.z_total if traffic and traffic.held_out else None


def _bound(standing: Standing) -> float | None:
    bounds = [bound for bound in standing.run.bound if bound is not None]
    return sum(bounds) if len(bounds) == len(standing.run.bound) else None


def _memory(which: str) -> Callable[[Standing], float | None]:
    return lambda standing: getattr(standing.run.memory_bytes, which) if standing.run.memory_bytes else None


_QUALITY = (
    Column(
        "worst links, tokens",
        "Sum over layers of the cost of the worst link, per step at node-link speed; less is better.",
        lambda s: s.run.solved_for.z_total,
        ",.0f",
    ),
    Column(f"to {BASE}", f"The same over {BASE}'s.", lambda s: s.to_base, ".3f"),
    Column("to best", "The same over the best solver's.", lambda s: s.to_best, ".3f"),
    Column("bound, tokens", "Sum of the lower bounds: no placement is below it.", _bound, ",.0f"),
    Column("gap, median", "How far z is above its bound, in the median layer.", lambda s: s.run.gap_median, ".2%"),
    Column("gap, largest", "The same in the worst layer.", lambda s: s.run.gap_largest, ".2%"),
    Column("largest z, tokens", "The worst link of the worst layer.", lambda s: s.run.solved_for.z_largest, ",.0f"),
    Column("held out, tokens", "Sum of worst links on traffic that was not solved for.", _held_out, ",.0f"),
    Column(f"held out to {BASE}", f"The same over {BASE}'s.", lambda s: s.held_out_to_base, ".3f"),
)
_OTHER = (
    Column(
        "worst pairs, tokens",
        "Sum over layers of the most tokens between two nodes.",
        lambda s: s.run.solved_for.pair_total,
        ",.0f",
    ),
    Column(
        "inter-node tokens",
        "Tokens sent from node to node, per step.",
        lambda s: s.run.solved_for.inter_node_tokens,
        ",.0f",
    ),
    Column("token-hops", "Tokens times links crossed, per step.", lambda s: s.run.solved_for.token_hops, ",.0f"),
    Column(
        "GPU balance",
        "Mean load of a GPU over the largest, mean over layers; 1 is even.",
        lambda s: s.run.solved_for.gpu_balancedness,
        ".3f",
    ),
    Column("node balance", "The same of nodes.", lambda s: s.run.solved_for.node_balancedness, ".3f"),
    Column(
        "communication, ms",
        "Predicted time of dispatch and combine, per step.",
        lambda s: s.run.solved_for.communication_us,
        ",.2f",
        1e-3,
    ),
    Column(
        "step, ms",
        "Predicted time of a step, where the instance tells enough.",
        lambda s: s.run.solved_for.step_us,
        ",.2f",
        1e-3,
    ),
    Column("moves", "Replicas that are elsewhere than in the contiguous plan.", lambda s: s.run.moves, ",.0f"),
    Column("least memory, GB", "On the emptiest GPU.", _memory("smallest"), ",.2f", 1e-9),
    Column("most memory, GB", "On the fullest GPU.", _memory("largest"), ",.2f", 1e-9),
)
_TIME = (
    Column("first, s", "Until every layer had a placement.", lambda s: s.run.seconds.first, ",.2f"),
    Column(
        "within 1%, s",
        "Until every layer was within 1% of its bound.",
        lambda s: s.run.seconds.within_1_percent,
        ",.2f",
    ),
    Column("final, s", "Until the placement was the final one.", lambda s: s.run.seconds.final, ",.2f"),
    Column("total, s", "From start to verified end.", lambda s: s.run.seconds.total, ",.2f"),
    Column("peak memory, MB", "Of the solver's processes.", lambda s: s.run.peak_bytes, ",.0f", 1e-6),
    Column("seeds", "Runs that gave a placement; the one of median z is shown.", lambda s: s.seeds, ".0f"),
    Column("lowest, tokens", "Least sum of worst links over the seeds.", lambda s: s.lowest, ",.0f"),
    Column("highest, tokens", "Largest.", lambda s: s.highest, ",.0f"),
)
TABLES: dict[str, tuple[Column, ...]] = {
    "Worst links, bounds, held-out traffic": _QUALITY,
    "Other figures of the placements": _OTHER,
    "Time and memory of the runs": _TIME,
}
