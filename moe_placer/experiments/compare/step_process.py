"""Predicts one step's time of a run's placement in a process of its own: time and memory are not the run's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from moe_placer.errors import MoePlacerError
from moe_placer.experiments.compare.cell import Cell
from moe_placer.experiments.process import end_with_parent
from moe_placer.placement import SCHEMA, Placement
from moe_placer.schedule.step import step_time

__all__ = ["predict"]


def predict(cell: Cell, gpu: list[Any]) -> dict[str, float | None]:
    """Return µs of one step of a placement, on the traffic that it was solved for and on what is held out."""
    instance, traffic, held_out, _ = cell.open()
    placement = Placement.model_validate(
        {
            "schema": SCHEMA,
            "instance": {"name": instance.name, "sha256": instance.sha256, "traffic_sha256": traffic.sha256},
            "solver": {"name": cell.solver, "version": cell.version, "seed": cell.seed},
            "gpu": gpu,
            "layers": [],
        }
    )
    return {
        "solved_for": step_time(instance, placement, traffic).step_us,
        "held_out": step_time(instance, placement, held_out).step_us if held_out else None,
    }


def main() -> None:
    """Predict for the cell and placement on standard input; write the answer to the file named as argument."""
    end_with_parent()
    content = json.load(sys.stdin)
    lists = {field: tuple(content["cell"][field]) for field in ("traces", "held_out")}
    try:
        found = predict(Cell(**content["cell"] | lists), content["gpu"])
    except MoePlacerError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    Path(sys.argv[1]).write_text(json.dumps(found, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main()
