"""Writes graphs of operators: one layer in full with its drawing and page, and the whole model as data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from moe_placer.dag.build import build_dag
from moe_placer.dag.checked_files import put_files
from moe_placer.dag.operators.draw_operators import draw_operators
from moe_placer.dag.operators.operator_builder import Attended
from moe_placer.dag.operators.refine import refine
from moe_placer.dag.page import to_page
from moe_placer.dag.texts import to_dot, to_json
from moe_placer.dag.views import count_tensors, hottest_layer
from moe_placer.errors import UsageError
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic

__all__ = ["LAYER", "MODEL", "write_operators"]

LAYER, MODEL = "layer_operators", "model_operators"
MOST_TENSORS = 300_000  # of the coarse graph; beyond, the files of the whole model have more than `verify` reads


def write_operators(
    instance: Instance,
    placement: Placement,
    traffic: Traffic,
    directory: Path,
    attended: Attended,
    *,
    layer: int | None = None,
    wrote: Callable[[Path], None] | None = None,
    note: Callable[[str], None] | None = None,
    check: Callable[[Path], None] | None = None,
) -> tuple[Path, ...]:
    """Write ``layer_operators`` (.dot, .json, .svg, .html) and ``model_operators`` (.dot, .json).

    Parameters
    ----------
    instance : Instance
    placement : Placement
    traffic : Traffic
        Routing statistics of the instance's sources.
    directory : Path
        Made where it does not exist.
    attended : Attended
        What tokens attend to.
    layer : int, optional
        Index in the model of the layer to draw; absent: the MoE layer with the busiest link.
    wrote : callable, optional
        Told of every file as soon as it is there.
    note : callable, optional
        Told what is left out because the deployment is too large.
    check : callable, optional
        Given a folder with the files of one graph before they go to ``directory``.

    Raises
    ------
    UsageError
        The model has no such layer.
    """
    if layer is not None and not 0 <= layer < instance.model.layers:
        raise UsageError(f"there is no layer {layer}: {instance.name} has 0 to {instance.model.layers - 1}")
    shown = hottest_layer(instance, placement, traffic) if layer is None else layer
    graph = refine(build_dag(instance, placement, traffic, [shown], whole=False), instance, attended)
    drawing = draw_operators(graph)
    one = {"dot": to_dot(graph, LAYER), "json": to_json(graph, LAYER), "svg": drawing.svg()}
    one["html"] = to_page(graph, LAYER, drawing)
    written = put_files(LAYER, one.items(), directory, check=check, wrote=wrote)
    if (tensors := count_tensors(instance, placement, traffic)) > MOST_TENSORS:
        if note is not None:
            note(
                f"no {MODEL}: with {tensors:,} tensors between operations, its files would be larger than verify reads"
            )
        return tuple(written)
    graph = refine(build_dag(instance, placement, traffic), instance, attended)
    every = {"dot": to_dot(graph, MODEL), "json": to_json(graph, MODEL)}
    return (*written, *put_files(MODEL, every.items(), directory, check=check, wrote=wrote))
