"""The drawings that can be made, each from its own cut of the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from moe_placer.dag.build import build_dag
from moe_placer.dag.canvas import Canvas
from moe_placer.dag.contract import Block, contract
from moe_placer.dag.draw_complete import draw_complete
from moe_placer.dag.draw_comprehensive import draw_comprehensive
from moe_placer.dag.draw_detailed import draw_detailed
from moe_placer.dag.draw_simplified import draw_simplified
from moe_placer.dag.flows import read_flows
from moe_placer.dag.operation import ALL_TO_ALL, Dag, Operation
from moe_placer.dag.pipeline import overlap
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic

__all__ = ["VIEWS", "View", "count_tensors", "hottest_layer", "part_of_all"]

MAX_LANES = 4  # DP replicas drawn side by side on one page; more are merged into one lane


@dataclass(frozen=True)
class View:
    """One drawing: how its graph is made, how it is drawn, and whether it gets a page to search and zoom in.

    ``whole`` says that it is made from all layers, ``merged`` that its files have far fewer operations than these.
    ``draw`` can be told to leave out what only the page needs.
    """

    name: str
    build: Callable[[Instance, Placement, Traffic], Dag]
    draw: Callable[..., Canvas]
    page: bool = True
    whole: bool = False
    merged: bool = False


def hottest_layer(instance: Instance, placement: Placement, traffic: Traffic) -> int:
    """Return the MoE layer with the costliest link; the first of several."""
    flows = read_flows(instance, placement, traffic)
    worst = [float(flows.layer(row).cost.max(initial=0.0)) for row in range(len(instance.moe_layers))]
    return instance.moe_layers[worst.index(max(worst))]


def count_tensors(instance: Instance, placement: Placement, traffic: Traffic) -> int:
    """Return about how many tensors the graph of all layers has: those of the first MoE layer, times all layers."""
    flow, per_node = read_flows(instance, placement, traffic).layer(0), instance.cluster.gpus_per_node
    home = np.array([gpus[0] // per_node for _, _, gpus in flow.replicas])
    pairs = sum(int(flow.uses[:, home == node].any(axis=1).sum()) for node in np.unique(home))
    tp_groups = -(-instance.gpus // instance.parallelism.attention_tp)
    # There and back between nodes and at every replica; about eight in and around attention and gating of a TP group.
    return (2 * (pairs + len(flow.replicas)) + 8 * tp_groups) * len(instance.moe_layers)


def part_of_all(
    instance: Instance, placement: Placement, traffic: Traffic, tensors: int, most: int
) -> tuple[View, list[int]]:
    """Return the comprehensive view of some layers, and which: those around the one with the busiest link.

    Parameters
    ----------
    instance, placement, traffic
        What is shown.
    tensors : int
        Of all layers together.
    most : int
        Tensors that the view may have, but for a single layer that has more.
    """
    layers = instance.model.layers
    count = min(layers, max(1, most * layers // tensors))
    first = min(max(0, hottest_layer(instance, placement, traffic) - count // 2), layers - count)
    shown = list(range(first, first + count))
    return View(
        "comprehensive_part_dag", partial(build_dag, layers=shown), partial(draw_comprehensive, whole=False)
    ), shown


def _simplified(instance: Instance, placement: Placement, traffic: Traffic) -> Dag:
    dense, moe = instance.model.dense_layers, instance.moe_layers
    shown = [*sorted(dense)[:1], hottest_layer(instance, placement, traffic)]
    # One page shows dense layers before the MoE layers, as models have them; others are left to the other views.
    shown = [layer for layer in shown if layer in moe or layer < shown[-1]]
    lanes = instance.parallelism.dp <= MAX_LANES

    def block(op: Operation) -> Block:
        kind = ALL_TO_ALL.get(op.kind, op.kind)
        lane = op.group if lanes and kind not in {"dispatch", "combine"} else None
        layer = None if op.layer is None else f"L{op.layer}"
        return kind, (layer, lane if lane is None else f"dp{lane}")

    def repeats(op: Operation) -> int:
        if op.layer is None:
            return 1
        return len(moe) if op.layer in moe else len(dense)

    return contract(build_dag(instance, placement, traffic, shown), block, repeats)


def _detailed(instance: Instance, placement: Placement, traffic: Traffic) -> Dag:
    layer = hottest_layer(instance, placement, traffic)
    return build_dag(instance, placement, traffic, [layer], whole=False)


def _complete(instance: Instance, placement: Placement, traffic: Traffic) -> Dag:
    """DP replicas by their groups, experts by node, one all-to-all for all, in two micro-batches."""
    per_node = instance.cluster.gpus_per_node

    def block(op: Operation) -> Block:
        kind = ALL_TO_ALL.get(op.kind, op.kind)
        layer = None if op.layer is None else f"L{op.layer}"
        if kind in {"dispatch", "combine", "input", "split", "gather", "output"}:
            return kind, (layer,)
        if kind in {"expert", "expert_reduce"}:
            return kind, (layer, f"n{op.gpus[0] // per_node}")
        return kind, (layer, f"dp{op.group}")

    return overlap(contract(build_dag(instance, placement, traffic), block))


VIEWS: dict[str, View] = {
    view.name: view
    for view in (
        View("simplified_moe_dag", _simplified, draw_simplified, page=False),
        View("detailed_expert_dag", _detailed, draw_detailed),
        View("comprehensive_moe_dag", build_dag, draw_comprehensive, whole=True),
        View("complete_deployment_dag", _complete, draw_complete, whole=True, merged=True),
    )
}
