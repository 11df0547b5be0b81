"""Sections of a plan's page about simulated steps: overlap, targets, conditions, other plans, failures, kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_placer.experiments.plan.blocks import Block, Heading, Table, Text
from moe_placer.experiments.plan.figures import Curve, Figures, State, cross, percent
from moe_placer.experiments.plan.statements import STATEMENTS

__all__ = ["conditions", "kernels", "other_plans", "steps", "targets", "troubles"]

Row = Mapping[str, Any]
_SHARES = ("computation", "communication", "synchronization", "overhead")
_CONDITIONS = (34, 35, 36, 37)
_SWEEPS = (
    ("Batches, prefill", "tokens_per_gpu"),
    ("Batches, decode", "tokens_per_gpu"),
    ("Oversubscription", "oversubscription"),
    ("Contexts", "context"),
)


def _named(row: Row) -> str:
    batches = "one micro-batch" if row["micro_batches"] == 1 else f"{row['micro_batches']} micro-batches"
    return f"{row['phase']}, {row['tokens_per_gpu']:,g} tokens per GPU, context {row['context']:,g}, {batches}"


def steps(f: Figures) -> list[Block]:
    """Return the simulated steps of the plan."""
    head = (
        *("phase", "tokens per GPU", "context", "micro-batches", "ms", "tokens/s per GPU", "MFU"),
        *(*_SHARES, "busiest link", "memory, GB"),
    )
    rows = tuple(_step_cells(row) for row in f.steps if row["plan"] == "plan")
    said = (
        "With two micro-batches one half of the tokens communicates while the other computes; one micro-batch is the "
        "step without overlap. Shares are of a mean GPU's time, communication only where nothing hides it; the busiest "
        "link is of what `link_utilization` leaves."
    )
    return [Heading("Steps, with and without overlap"), Text(said), Table(head, rows, 1)]


def _step_cells(row: Row) -> tuple[str, ...]:
    return (
        row["phase"],
        f"{row['tokens_per_gpu']:,g}",
        f"{row['context']:,g}",
        str(row["micro_batches"]),
        f"{row['latency_us'] / 1e3:,.1f}",
        f"{row['tokens_per_s_per_gpu']:,.0f}",
        percent(row["mfu"]),
        *(percent(row["shares"][name]) for name in _SHARES),
        percent(row["link_utilization"][0]),
        f"{row['high_water_gb']:,.1f}" + ("" if row["fits"] else " (does not fit)"),
    )


def targets(f: Figures) -> list[Block]:
    """Return what was asked of each step, what came out, and what limits it."""
    rows = []
    for name in ("mfu", "bandwidth", "links", "shares", "memory"):
        for row in f.steps:
            if row["plan"] == "plan" and (row["phase"] == "prefill" or name == "memory"):
                rows += [_target_cells(row, one) for one in row["targets"] if one["name"] == name]
    head = ("target", "step", "asked", "got", "", "limited by")
    return [Heading("Targets: asked, got, limited by"), Table(head, tuple(rows), len(head))]


def _target_cells(row: Row, one: Row) -> tuple[str, ...]:
    asked, got = ("/".join(percent(v).removesuffix("%") for v in one[key]) + "%" for key in ("asked", "got"))
    return one["name"], _named(row), asked, got, "**holds**" if one["ok"] else "**fails**", one["limiter"]


def conditions(judged: list[tuple[int, str, str]]) -> list[Block]:
    """Return the conditions under which the plan is said to be best, with their verdicts."""
    by_number = {number: (verdict, sentence) for number, verdict, sentence in judged}
    texts = {statement.number: statement.text for statement in STATEMENTS}
    rows = tuple((texts[n].removeprefix("and "), f"**{by_number[n][0]}**", by_number[n][1]) for n in _CONDITIONS)
    said = "Under these the plan is said to be best, each with the range in which that was computed."
    return [Heading("The four conditions"), Text(said), Table(("condition", "", "computed"), rows, 3)]


def other_plans(f: Figures) -> list[Block]:
    """Return swept points of two plans side by side, and sizes."""
    blocks: list[Block] = []
    for sweep, axis in _SWEEPS:
        points = f.swept(sweep)
        plans = list(dict.fromkeys(row["plan"] for row in points))
        if len(plans) == 2:
            of = {(row["plan"], float(row[axis])): row for row in points}
            values = sorted({x for _, x in of})
            rows = tuple(_pair_cells(x, [of[plan, x] for plan in plans]) for x in values)
            head = (axis.replace("_", " ").replace("gpu", "GPU"), *(f"{plan}, ms" for plan in plans), "first to second")
            blocks += [Heading(points[0]["sweep"], 3), Table(head, rows, 1)]
    sizes = {row["gpus"]: row for row in f.swept("Sizes")}
    if sizes:
        sizes[f.plan["gpus"]] = f.step()
        rows = tuple(_size_cells(gpus, row) for gpus, row in sorted(sizes.items()))
        blocks += [Heading("Sizes", 3), Table(("GPUs", "ms", "tokens/s per GPU", "MFU"), rows, 1)]
    blocks += [*_third_plans(f), *_crossings(f)]
    if not blocks:
        return []
    by = " and ".join(dict.fromkeys(row["placed_by"] for row in f.points))
    words = f"All are placed by {by}; steps within 2% count as equally long."
    return [Heading("Other degrees of expert parallelism, other sizes"), Text(words), *blocks]


def _third_plans(f: Figures) -> list[Block]:
    """Return swept steps of plans other than these two, beside this plan's at the same batch."""
    rows = []
    for row in f.third_plans():
        mine = f.at_batch(float(row["tokens_per_gpu"]))
        margin = f"{100 * (mine / row['latency_us'] - 1):+.1f}%" if mine else "-"
        most = row["most_tokens_per_gpu"]
        held = f"{row['high_water_bytes'] / 1e9:,.1f} of {row['memory_bytes'] / 1e9:,.0f}"
        rows.append(
            (
                row["plan"],
                f"{row['tokens_per_gpu']:,g}",
                f"{row['latency_us'] / 1e3:,.1f}" + ("" if row["fits"] else " (does not fit)"),
                margin,
                f"{row['weights_bytes'] / 1e9:,.1f}",
                held,
                "any" if most is None else f"{most:,.0f}",
            )
        )
    if not rows:
        return []
    head = (
        *("plan", "tokens per GPU", "ms", "this plan to it", "weights, GB"),
        *("memory of the fullest GPU, GB", "tokens per GPU that fit"),
    )
    said = (
        "In two micro-batches, beside this plan at the same batch. Where GPUs of several nodes share attention, every "
        "node's results go to the others' GPUs before they are summed, and the step of such a plan has that in it."
    )
    return [Heading("Further plans, prefill", 3), Text(said), Table(head, tuple(rows), 1)]


def _crossings(f: Figures) -> list[Block]:
    """Return from which batch on the other plan is faster, by context, network and kernel."""
    curves = f.curves()
    if len(curves) < 2:
        return []
    own = f.own_state
    order = sorted(curves, key=lambda state: (*_differs(state, own), state.oversubscription or 0, state.context))
    rows = tuple((*_state_cells(state), *_curve_cells(curves[state])) for state in order)
    sums = [f.plan["total_z"], *(curve.total_z for curve in curves.values())]
    said = (
        "Up to this batch this plan's step is the shorter one, from there on the other's (prefill, two micro-batches), "
        "interpolated on logarithmic axes between the batches beside it. The first row is the instance's own network "
        "and kernel. A row is of one placement for the instance's own kernel, told by the sum of its busiest links; "
        f"this page's is of {f.plan['total_z']:,.0f} tokens, and all are within "
        f"{percent(max(sums) / min(sums) - 1, 3)}."
    )
    head = (
        *("context", "oversubscription", "a token is sent", "received at"),
        *("equal at, tokens per GPU", "first to second", "busiest links, tokens"),
    )
    return [Heading("Where the two plans are equal", 3), Text(said), Table(head, rows, 6)]


def _differs(state: State, own: State) -> tuple[bool, bool, bool, bool]:
    """Say in what a state differs from the instance's own: kernel, NIC, network, context."""
    return (
        state.dispatch != own.dispatch,
        state.receive != own.receive,
        state.oversubscription != own.oversubscription,
        state.context != own.context,
    )


def _state_cells(state: State) -> tuple[str, ...]:
    over = "-" if state.oversubscription is None else f"{state.oversubscription:g}:1"
    received = {"shared": "the node's NICs together", "destination-gpu": "the NIC of the expert's GPU"}
    return f"{state.context:,g}", over, state.dispatch, received.get(state.receive, state.receive)


def _curve_cells(curve: Curve) -> tuple[str, str, str]:
    return _crossing_cell(curve.ratios), _ends_cell(curve.ratios), f"{curve.total_z:,.0f}"


def _crossing_cell(curve: Mapping[float, float]) -> str:
    if found := cross(curve):
        return " and ".join(f"{one.at:,.0f} (between {one.low:,g} and {one.high:,g})" for one in found)
    batches = f"at all of {', '.join(f'{batch:,g}' for batch in curve)}"
    return f"this plan is shorter {batches}" if max(curve.values()) < 1 else f"the other is shorter {batches}"


def _ends_cell(curve: Mapping[float, float]) -> str:
    first, last = min(curve), max(curve)
    return ", ".join(f"{100 * (curve[batch] - 1):+.0f}% at {batch:,g}" for batch in (first, last))


def _pair_cells(x: float, both: list[Row]) -> tuple[str, ...]:
    cells = [f"{row['latency_us'] / 1e3:,.1f}" + ("" if row["fits"] else " (does not fit)") for row in both]
    return f"{x:,g}", *cells, f"{100 * (both[0]['latency_us'] / both[1]['latency_us'] - 1):+.1f}%"


def _size_cells(gpus: int, row: Row) -> tuple[str, ...]:
    return str(gpus), f"{row['latency_us'] / 1e3:,.1f}", f"{row['tokens_per_s_per_gpu']:,.0f}", percent(row["mfu"])


def troubles(f: Figures) -> list[Block]:
    """Return how much later a step ends with a slow and with a failed GPU."""
    rows = tuple(_trouble_cells(row) for row in f.troubles)
    head = ("plan", "trouble", "before, ms", "then, ms", "")
    return [Heading("A failed and a slow GPU"), Table(head, rows, 2)]


def _trouble_cells(row: Row) -> tuple[str, ...]:
    name = "this plan" if row["plan"] == "plan" else row["plan"]
    what = f"GPU {row['gpu']} {'takes twice as long' if row['trouble'] == 'slow' else 'fails'}"
    before = f"{row['before_us'] / 1e3:,.1f}"
    if not row["runs"]:
        return name, what, before, "cannot run", "-"
    return (
        name,
        what,
        before,
        f"{row['after_us'] / 1e3:,.1f}",
        f"{100 * (row['after_us'] / row['before_us'] - 1):+.1f}%",
    )


def kernels(f: Figures) -> list[Block]:
    """Return what the placement costs under other kernels."""
    rows = tuple(_kernel_cells(row) for row in f.kernels)
    said = (
        "The same placement under other kernels: a token sent once for every chosen expert or once per node, and "
        "copies that arrive at the NIC of the expert's GPU. It was made for the instance's own kernel; placing anew "
        "for another gains more (docs/dispatch.md, docs/nics.md)."
    )
    head = ("kernel", "dispatch, ms one way", "experts in order, ms", "busiest links to experts in order")
    return [Heading("Kernels"), Text(said), Table(head, rows, 1)]


def _kernel_cells(row: Row) -> tuple[str, ...]:
    gain = f"{100 * (row['total_z'] / row['contiguous_z'] - 1):+.1f}%" if row["contiguous_z"] else "-"
    return row["kernel"], f"{row['dispatch_us'] / 1e3:,.1f}", f"{row['contiguous_us'] / 1e3:,.1f}", gain
