"""What ``replan --curve`` adds: every budget's links, NICs, GPUs and step, as a table, as data and as a picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moe_placer.cli import log
from moe_placer.cli.json_text import as_json
from moe_placer.files import write_atomically

if TYPE_CHECKING:
    from moe_placer.replan.replan import Replanned

__all__ = ["CURVE", "PICTURE", "curve_points", "print_curve", "write_curve"]

CURVE, PICTURE = "curve.json", "curve.svg"
_HEADS = {  # key to heading, and what to divide by
    "moves": ("moves", 1.0),
    "bytes": ("GB", 1e9),
    "total_z": ("busiest links", 1.0),
    "nic_z": ("busiest NICs", 1.0),
    "busiest_gpu": ("busiest GPUs", 1.0),
    "layer_time_us": ("MoE layers, ms", 1e3),
    "step_us": ("step, ms", 1e3),
}


def curve_points(found: Replanned, step: bool) -> list[dict[str, Any]]:
    """Measure the placement of every point of the curve by the verifier's loads; ``step`` simulates a step of each."""
    from moe_placer.decisions.evaluate import costs_of
    from moe_placer.verifier.loads import read_network

    network, points = read_network(found.instance), []
    for figures, plan in zip(found.curve, found.build_curve(), strict=True):
        if step:
            log.info(f"simulating steps: {figures.moves:,} moves")
        costs = costs_of(found.instance, plan, found.traffic, network, sharing="fine" if step else None)
        times = {"nic_z": costs.nic_z, "layer_time_us": costs.layer_time_us, "step_us": costs.step_us}
        points.append({**vars(figures), **times})
    return points


def print_curve(points: list[dict[str, Any]]) -> None:
    """Print a table of what is known of all points."""
    shown = [key for key in _HEADS if points[0][key] is not None]
    click.echo("  " + "".join(f"{_HEADS[key][0]:>16}" for key in shown))
    for point in points:
        cells = [f"{point[key] / _HEADS[key][1]:,.{0 if key == 'moves' else 2}f}" for key in shown]
        click.echo("  " + "".join(f"{cell:>16}" for cell in cells))


def write_curve(folder: Path, found: Replanned, points: list[dict[str, Any]]) -> None:
    """Write the points, and their picture where the libraries that draw are installed."""
    content = {
        "schema": "moe-placer/replan-curve/1",
        "instance": {"name": found.instance.name, "sha256": found.instance.sha256},
        "minimise": found.minimise,
        "points": points,
    }
    write_atomically(folder / CURVE, as_json(content) + "\n")
    if find_spec("altair") is None or find_spec("vl_convert") is None:
        log.info(f"no {PICTURE}: drawing needs pip install 'moe-placer[report]'")
        return
    from moe_placer.experiments.follow.curve_chart import draw_curve

    named = {key: _HEADS[key][0].removesuffix(", ms") for key in _HEADS if key not in {"moves", "bytes"}}
    write_atomically(folder / PICTURE, draw_curve(points, named))
