"""Real packets in the fidelity report, from their rows alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from moe_placer.experiments.markdown_table import markdown_table

__all__ = ["RANK", "RATIO", "Agreement", "agreements", "packets_section", "packets_summary"]

Row = dict[str, Any]

RATIO = (0.90, 1.05)  # predicted over measured, in the median of a set-up
RANK = 0.9  # Spearman's correlation of predicted and measured

_INTRO = """
All-to-alls of real bytes over TCP between Linux network namespaces, whose links token bucket filters shape. *Tree*: 8
nodes with one link each, leaves of 4, 2:1 oversubscribed over 2 spines; sprayed: a pair of nodes has a connection over
every spine, which take its bytes as each has room; hashed: 8 flows from node to node, each on the spine that the
kernel's hash gives it, drawn anew in every run. *NICs*: 4 nodes of 8 GPUs, each GPU with a NIC of its own, on one
switch that never blocks. *Both ways*: a dispatch and a combine start together. Tokens are those of DeepSeek-V2-Lite's
real traces; measured is the median of the runs, from the first byte to the last; predicted is the end in the
simulator's network at 1,448 of 1,514 bytes per frame. Queues hold what windows allow, so nothing is dropped, as on
fabrics with credits; windows (4 kB a connection) were chosen while looking at these ratios, so that links stay full."""


@dataclass(frozen=True)
class Agreement:
    """How well one set-up is predicted.

    Attributes
    ----------
    setup : str
    ratios : tuple of float
        Predicted over measured, sorted.
    rank : float
        Spearman's correlation of predicted and measured.
    """

    setup: str
    ratios: tuple[float, ...]
    rank: float

    @property
    def ratio(self) -> float:
        """Median of predicted over measured seconds."""
        return median(self.ratios)

    @property
    def holds(self) -> bool:
        """Whether the median ratio and the rank correlation are within their limits."""
        return RATIO[0] <= self.ratio <= RATIO[1] and self.rank >= RANK


def agreements(rows: Sequence[Row], predicted: str = "predicted") -> list[Agreement]:
    """Return one for each set-up; ``predicted`` names the column that is held to what was measured."""
    from scipy.stats import spearmanr  # here, for it takes a second to import

    found = []
    for setup in dict.fromkeys(row["setup"] for row in rows):
        some = [row for row in rows if row["setup"] == setup]
        theirs, ours = [row["measured"] for row in some], [row[predicted] for row in some]
        ratios = tuple(sorted(our / their for our, their in zip(ours, theirs, strict=True)))
        found.append(Agreement(setup, ratios, float(spearmanr(ours, theirs).statistic)))
    return found


def packets_summary(rows: Sequence[Row]) -> list[str] | None:
    """Return the line of the summary; None without rows."""
    found = agreements(rows)
    if not found:
        return None
    low, high = min(one.ratio for one in found), max(one.ratio for one in found)
    limits = f"median {RATIO[0]:.2f} to {RATIO[1]:.2f}, Spearman at least {RANK}, each"
    reached = f"medians {low:.2f} to {high:.2f}, Spearman {min(one.rank for one in found):.3f} and more"
    return [f"real packets, {len(found)} set-ups", limits, reached]


def packets_section(rows: Sequence[Row]) -> Iterator[str]:
    """Write the section."""
    yield "\n## Real packets"
    if not rows:
        yield "\nNot measured: needs Linux, root and the real traces."
        return
    yield _INTRO + "\n"
    found = agreements(rows)
    shared = {one.setup: one for one in agreements(rows, "busiest_shared_link_s")}
    bound = {one.setup: one for one in agreements(rows, "busiest_link_s")}
    table = [
        [
            one.setup, f"{one.ratios[0]:.2f}", f"**{one.ratio:.3f}**", f"{one.ratios[-1]:.2f}", f"**{one.rank:.3f}**",
            f"{bound[one.setup].rank:.3f}", f"{shared[one.setup].ratio:.2f}", f"{shared[one.setup].rank:.2f}",
        ]
        for one in found
    ]  # fmt: skip
    head = ["predicted / measured", "least", "median", "largest", "Spearman", "that of the busiest link"]
    yield markdown_table([*head, "node links alone: median", "Spearman"], table, 1)
    yield "\n*Busiest link*: the time that it needs for its bytes (z), as what is placed for. *Node links alone*: the"
    yield "same with a node's NICs as one pipe.\n"
    yield markdown_table(
        ["what was sent", "placements x layers", "runs of each", "link, Mbit/s", "measured, s", "one flow alone"],
        [_sent(one.setup, [row for row in rows if row["setup"] == one.setup]) for one in found],
        1,
    )
    yield "\n*One flow alone*: how fast it was over what its link is shaped to, before and after; within 2%, or the run"
    yield f"is refused. Source: {rows[0]['source']} ({rows[0]['sure']}).\n"
    if all("waited" in row for row in rows):
        most = max(row["waited"] for row in rows)
        yield f"The process that sends and receives was without a core for at most {most:.1%} of an exchange.\n"
    beyond = [one.setup for one in found if not one.holds]
    yield f"Beyond a limit: {'; '.join(beyond)}." if beyond else "Every set-up is within both limits."


def _sent(setup: str, rows: Sequence[Row]) -> list[str]:
    """Return the line of a set-up: what was sent how often, and over which links."""
    placements, times = {(row["solver"], row["seed"]) for row in rows}, [row["measured"] for row in rows]
    before, after = rows[0]["single_flow"]
    return [
        setup, f"{len(placements)} x {len(rows) // len(placements)}", str(len(rows[0]["runs"])), f"{rows[0]['mbit']:g}",
        f"{min(times):.2f} to {max(times):.2f}", f"{before:.3f}, {after:.3f}",
    ]  # fmt: skip
