"""Rows of a release: what each planner needed, and what its placement costs by this checkout's verifier and step."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml

import moe_placer
from benchmarks.checkouts import Checkout
from benchmarks.kept_runs import Row
from moe_placer.engines.plans.plan import Plan, read_deployment
from moe_placer.engines.plans.to_placement import placement_from_plan
from moe_placer.problem.compile import compile_problem

__all__ = ["ENGINE_SOURCES", "engine_row", "solved_rows"]

ENGINE_SOURCES = "sglang-0.5.23"


def solved_rows(checkout: Checkout, files: Sequence[Path], repeat: int, scratch: Path) -> Iterator[Row]:
    """Yield a row for every instance and repetition; of equal placements the step is simulated once."""
    for file in files:
        instance = moe_placer.load_instance(file)
        traffic = moe_placer.load_traffic(instance)
        known: dict[bytes, Row] = {}
        for run in range(repeat):
            solved = checkout.solve(_placed_alone(file, scratch), scratch / f"{checkout.commit}-{file.stem}-{run}")
            row = {"instance": instance.name, "by": "auto", "commit": checkout.commit, "cpu_s": round(solved.cpu_s, 3)}
            if solved.placement is None:
                yield {**row, "error": solved.error.replace(f"{scratch}/", "")}
                continue
            raw = solved.placement.read_bytes()
            if raw not in known:
                known[raw] = _measured(instance, traffic, moe_placer.load_placement(solved.placement))
            yield {**row, **known[raw]}


def _placed_alone(file: Path, scratch: Path) -> Path:
    """Leave out of an instance what says nothing of where experts go: earlier releases do not know it."""
    content = yaml.safe_load(file.read_text("utf-8"))
    for section in ("schedule", "engine"):
        content.pop(section, None)
    alone = scratch / file.name
    alone.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return alone


def engine_row(file: Path, engines: Path, scratch: Path) -> Row | None:
    """Return what SGLang's own EPLB does; None where the instance does not choose replicas in every layer.

    Parameters
    ----------
    file : Path
        Of the instance.
    engines : Path
        The environment that `make engines` sets up.
    scratch : Path
        A folder for what goes back and forth.
    """
    instance = moe_placer.load_instance(file)
    replicas = getattr(instance.placement.replicas, "redundant_slots", None)
    if replicas is None:
        return None
    # The original leaves some replicas of an expert on one GPU; the rule against it is not the engine's.
    given = instance.placement.model_copy(update={"replicas_apart": "none"})
    instance = instance.model_copy(update={"placement": given})
    traffic = moe_placer.load_traffic(instance)
    load, out = scratch / f"{file.stem}.load.npy", scratch / f"{file.stem}.slots.npy"
    np.save(load, compile_problem(instance, traffic).demand.load)
    sizes = (instance.model.experts + replicas, instance.cluster.nodes, instance.gpus)
    script = Path(__file__).with_name("engine_eplb.py")
    command = [engines / "bin" / "python", script, engines / "sources" / ENGINE_SOURCES, load, out, *sizes]
    done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)  # noqa: S603
    slots = np.load(out).reshape(len(instance.moe_layers), instance.gpus, -1).tolist()
    plan = Plan(instance.model.experts, tuple(tuple(map(tuple, layer)) for layer in slots))
    raw = out.read_bytes()
    placement, _ = placement_from_plan(instance, traffic, plan, read_deployment(instance), "sglang", raw)
    head = {"instance": instance.name, "by": f"{ENGINE_SOURCES} EPLB", "commit": ""}
    return {**head, **json.loads(done.stdout), **_measured(instance, traffic, placement)}


def _measured(instance: moe_placer.Instance, traffic: moe_placer.Traffic, placement: moe_placer.Placement) -> Row:
    found = moe_placer.verify(instance, placement, traffic)
    if not found.ok:
        return {"error": str(found.violations[0])[:300]}
    step = moe_placer.simulate(instance, placement, traffic)
    return {
        "busiest_links": found.total_z,
        "bound": found.total_bound,
        "busiest_gpus": float(found.busiest_gpu.sum()),
        "step_us": step.latency_us,
    }
