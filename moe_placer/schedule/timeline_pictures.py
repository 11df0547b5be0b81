"""Writes the pictures of a timeline."""

from __future__ import annotations

from pathlib import Path

from moe_placer.files import write_atomically
from moe_placer.schedule.draw_layer import draw_layer
from moe_placer.schedule.draw_step import draw_step
from moe_placer.schedule.simulate import Timeline

__all__ = ["write_pictures"]


def write_pictures(timeline: Timeline, placed_by: str, directory: Path, layer: int | None = None) -> tuple[Path, ...]:
    """Write ``schedule_step.svg`` and ``schedule_layer.svg``; both are drawn before either is written.

    Parameters
    ----------
    timeline : Timeline
        The simulated step.
    placed_by : str
        The solver of the placement, for the titles.
    directory : Path
        Made where it does not exist; files of these names are replaced, each whole.
    layer : int, optional
        Index in the model; by default the one that needs the busiest link longest.

    Raises
    ------
    UsageError
        There is no such layer.
    InputError
        The directory cannot be written to.
    ValueError
        What the links carried was not recorded.
    """
    drawings = {
        "schedule_step": draw_step(timeline, placed_by),
        "schedule_layer": draw_layer(timeline, placed_by, layer),
    }
    paths = []
    for name, drawing in drawings.items():
        paths.append(Path(directory) / f"{name}.svg")
        write_atomically(paths[-1], drawing)
    return tuple(paths)
