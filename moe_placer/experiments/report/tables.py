"""The tables of a report, the same for HTML and Markdown: each cell as text, and as a number to sort by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moe_placer.experiments.report.standings import BASE, Standing

__all__ = ["NOT_KNOWN", "TABLES", "Cell", "cells_of", "columns_of"]

NOT_KNOWN = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """A cell's text, and its number (None sorts last)."""

    text: str
    number: float | None


@dataclass(frozen=True)
class Column:
    """A column of numbers: its heading, what it says in a sentence, and how its cells are found and written."""

    title: str
    meaning: str
    number: Callable[[Standing], float | None]
    form: str
    scale: float = 1.0

    def cell(self, standing: Standing) -> Cell:
        """Return the cell of one solver."""
        number = self.number(standing)
        return Cell(NOT_KNOWN if number is None else format(number * self.scale, self.form), number)


@dataclass(frozen=True)
class WordColumn:
    """A column of words."""

    title: str
    meaning: str
    words: Callable[[Standing], str]

    def cell(self, standing: Standing) -> Cell:
        """Return the cell of one solver."""
        return Cell(self.words(standing) or NOT_KNOWN, None)


AnyColumn = Column | WordColumn


def columns_of(columns: Sequence[AnyColumn], table: Sequence[Standing]) -> list[AnyColumn]:
    """Return the columns in which any solver of a table has an entry."""
    return [column for column in columns if any(column.cell(standing).text != NOT_KNOWN for standing in table)]


def cells_of(columns: Sequence[AnyColumn], standing: Standing) -> list[Cell]:
    """Return a solver's row."""
    return [column.cell(standing) for column in columns]


def _bound(standing: Standing) -> float | None:
    bounds = [bound for bound in standing.run.bound if bound is not None]
    return sum(bounds) if len(bounds) == len(standing.run.bound) else None


def _proofs(standing: Standing) -> str:
    """Count layers by how their bound is proved, the most first."""
    run = standing.run
    pairs = zip(run.proof, run.recheckable, strict=True)
    counts = Counter((proof or "none") if checked else "its word" for proof, checked in pairs)
    return ", ".join(f"{proof} {layers}" for proof, layers in counts.most_common())


def _memory(which: str) -> Callable[[Standing], float | None]:
    return lambda standing: getattr(standing.run.memory_bytes, which) if standing.run.memory_bytes else None


def _on(traffic: str, metric: str) -> Callable[[Standing], float | None]:
    """Return how to find a metric on one of the two traffics."""

    def number(standing: Standing) -> float | None:
        found = getattr(standing.run.traffic, traffic, None)
        return None if found is None else getattr(found, metric)

    return number


def _of_seeds(value: Callable[[Standing], float]) -> Callable[[Standing], float | None]:
    return lambda standing: value(standing) if standing.seeds > 1 else None


def _flow_columns(traffic: str) -> tuple[Column, ...]:
    return (
        Column(
            "worst pairs, tokens",
            "Sum over layers of the most tokens that one node sends another, per step.",
            _on(traffic, "pair_total"),
            ",.0f",
        ),
        Column(
            "inter-node tokens", "Tokens that leave their node, per step.", _on(traffic, "inter_node_tokens"), ",.0f"
        ),
        Column("token-hops", "Tokens times links crossed, per step.", _on(traffic, "token_hops"), ",.0f"),
        Column(
            "busiest GPU, tokens",
            "Sum over layers of the tokens that the busiest GPU computes, per step.",
            _on(traffic, "busiest_gpu_tokens"),
            ",.0f",
        ),
        Column(
            "GPU balance",
            "Mean load of a GPU over the largest, mean over layers; 1 is even.",
            _on(traffic, "gpu_balancedness"),
            ".3f",
        ),
        Column("busiest node, tokens", "The same of the busiest node.", _on(traffic, "busiest_node_tokens"), ",.0f"),
        Column("node balance", "The same of nodes.", _on(traffic, "node_balancedness"), ".3f"),
    )


_QUALITY: tuple[AnyColumn, ...] = (
    Column(
        "busiest links, cost",
        "Sum over layers of the cost of the busiest link, per step; less is better. Cost: tokens at node-link speed (a "
        "token on a link of half a node's bandwidth costs 2), or plain tokens where an instance has metric: tokens.",
        _on("solved_for", "z_total"),
        ",.0f",
    ),
    Column(f"to {BASE}", f"The same over {BASE}'s.", lambda s: s.to_base, ".3f"),
    Column("to best", "The same over the best solver's.", lambda s: s.to_best, ".3f"),
    Column("largest z, cost", "The busiest link of the worst layer.", _on("solved_for", "z_largest"), ",.0f"),
    Column("bound, cost", "Sum of the lower bounds: no placement is below it.", _bound, ",.0f"),
    Column("gap, median", "How far z is above its bound, in the median layer.", lambda s: s.run.gap_median, ".2%"),
    Column("gap, largest", "The same in the worst layer.", lambda s: s.run.gap_largest, ".2%"),
    WordColumn(
        "proof, layers",
        "How many layers' bounds are proved how: dual, hot-experts, hot-replicas and threshold were derived anew; the "
        "rest is the solver's word.",
        _proofs,
    ),
)
_HELD_OUT: tuple[AnyColumn, ...] = (
    Column(
        "busiest links, cost",
        "Sum of busiest links on traffic that was not solved for.",
        _on("held_out", "z_total"),
        ",.0f",
    ),
    Column(f"to {BASE}", f"The same over {BASE}'s.", lambda s: s.held_out_to_base, ".3f"),
    Column("to best", "The same over the best solver's.", lambda s: s.held_out_to_best, ".3f"),
    Column("largest z, cost", "The busiest link of the worst layer.", _on("held_out", "z_largest"), ",.0f"),
    Column("dispatch, ms", "As below, on this traffic.", _on("held_out", "communication_us"), ",.2f", 1e-3),
)
_COSTS: tuple[AnyColumn, ...] = (
    Column(
        "busiest NICs, cost",
        "Sum over layers of the cost of the busiest NIC, where NICs are links.",
        _on("solved_for", "nic_total"),
        ",.0f",
    ),
    Column(
        "other links, cost",
        "The same of the busiest link that is no NIC.",
        _on("solved_for", "other_links_total"),
        ",.0f",
    ),
    Column(
        "dispatch, ms",
        "Predicted time of all layers' dispatch, per step: each as long as its slowest link takes. Combine is this "
        "reversed, with its own bytes per token.",
        _on("solved_for", "communication_us"),
        ",.2f",
        1e-3,
    ),
    Column(
        "step, ms",
        "Simulated time of one step: prefill of the instance's tokens per GPU in two micro-batches that overlap.",
        _on("solved_for", "step_us"),
        ",.2f",
        1e-3,
    ),
    Column(
        "moves",
        "Replicas that a GPU must load, since in the current plan (the contiguous one, unless another is named above) "
        "it has none of that expert.",
        lambda s: s.run.moves,
        ",.0f",
    ),
    Column("least memory, GB", "On the emptiest GPU that works.", _memory("smallest"), ",.2f", 1e-9),
    Column("most memory, GB", "On the fullest GPU.", _memory("largest"), ",.2f", 1e-9),
)
_TIME: tuple[AnyColumn, ...] = (
    Column("first, s", "Until every layer had a placement.", lambda s: s.run.seconds.first, ",.2f"),
    Column(
        "better, s",
        "Until the first placement with cooler busiest links than contiguous and eplb had passed the verifier.",
        lambda s: s.run.seconds.better,
        ",.2f",
    ),
    Column(
        "within 1%, s",
        "Until every layer was within 1% of its bound; a dash: never.",
        lambda s: s.run.seconds.within_1_percent,
        ",.2f",
    ),
    Column("within 0.1%, s", "The same within 0.1%.", lambda s: s.run.seconds.within_0_1_percent, ",.2f"),
    Column(
        "proved, s",
        "Until every layer was proved optimal, by its bound or by the solver's own word.",
        lambda s: s.run.seconds.proved,
        ",.2f",
    ),
    Column("final, s", "Until the placement was the final one.", lambda s: s.run.seconds.final, ",.2f"),
    Column("total, s", "From start to verified end.", lambda s: s.run.seconds.total, ",.2f"),
    Column(
        "primal integral, s",
        "Integral over the time limit of (z - final bound) / z for the sums over layers, 1 before the first placement "
        "(Berthold, 2013); less is better.",
        lambda s: s.run.speed.primal_integral,
        ",.3f",
    ),
    Column(
        "peak memory, MB",
        "Of all processes of the run together, sampled 20 times a second.",
        lambda s: s.run.peak_bytes,
        ",.0f",
        1e-6,
    ),
    Column("largest process, MB", "Peak of the largest process.", lambda s: s.run.largest_process_bytes, ",.0f", 1e-6),
    Column(
        "others, cores",
        "Cores that other work on the machine took meanwhile; where it is not near 0, times say so much less.",
        lambda s: s.run.cores_used_by_others,
        ".1f",
    ),
    Column("seeds", "Runs that gave a placement; the one of median z is shown.", _of_seeds(lambda s: s.seeds), ".0f"),
    Column("lowest, cost", "Least sum of busiest links over the seeds.", _of_seeds(lambda s: s.lowest), ",.0f"),
    Column("highest, cost", "Largest.", _of_seeds(lambda s: s.highest), ",.0f"),
)
TABLES: dict[str, tuple[AnyColumn, ...]] = {
    "Busiest links and bounds": _QUALITY,
    "On held-out traffic": _HELD_OUT,
    "Traffic and balance": _flow_columns("solved_for"),
    "Traffic and balance, held out": _flow_columns("held_out"),
    "What a placement costs": _COSTS,
    "Time and memory of the runs": _TIME,
}
