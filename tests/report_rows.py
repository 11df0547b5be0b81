"""Report folders with rows of real solves, as `moe-placer compare` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from builders import DRAGONFLY, tiny_instance, tiny_traffic

from moe_placer.experiments.report.report_files import draw_report
from moe_placer.fabric import build_fabric
from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import compile_problem
from moe_placer.solve.solve import Solution, solve
from moe_placer.traffic import Traffic
from moe_placer.verifier import verify

EVIL = "<script>alert(1)</script> [x](javascript:alert(1)) | `"
Rows = list[dict[str, Any]]
ENVIRONMENT = {
    "date": "2026-11-24",
    "commit": None,
    "cpu": "a test's",
    "cores": 2,
    "memory_gb": 25.3,
    "system": "Linux x86_64",
    "python": "3.11.7",
    "versions": {"moe-placer": "0.1.0", "numpy": "2.4.6"},
}


def rounded(table: Any) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in row] for row in np.asarray(table)]


def instance_row(instance: Instance, traffic: Traffic, held_out: bool) -> dict[str, Any]:
    cluster = instance.cluster
    graph = build_fabric(instance)
    return {
        "schema": "moe-placer/row/1",
        "kind": "instance",
        "name": instance.name,
        "sha256": instance.sha256,
        "traffic_sha256": traffic.sha256,
        "held_out_sha256": "1f" * 32 if held_out else None,
        "layers": len(instance.moe_layers),
        "experts": instance.model.experts,
        "replicas": instance.replicas_per_layer,
        "nodes": cluster.nodes,
        "gpus": cluster.nodes * cluster.gpus_per_node,
        "gpus_per_node": cluster.gpus_per_node,
        "slots_per_gpu": instance.placement.slots_per_gpu,
        "fabric": {"kind": cluster.fabric.kind},
        "dispatch": "per-expert",
        "replica_routing": instance.placement.replica_routing,
        "bytes_per_token": 7168,
        "node_bandwidth": 400.0,
        "recordings": [recording.name for recording in traffic.recordings],
        "held_out": ["seen-by-none"] if held_out else [],
        "layer_index": list(instance.moe_layers),
        "gpu_node": [gpu // cluster.gpus_per_node for gpu in range(cluster.nodes * cluster.gpus_per_node)],
        "links": [
            {"name": f"{source}->{target}", "source": source, "target": target, "bandwidth": data["bandwidth"]}
            for source, target, data in graph.edges(data=True)
        ],
    }


def metrics(instance: Instance, placement: Placement, traffic: Traffic) -> dict[str, Any]:
    key = placement.instance.model_copy(update={"traffic_sha256": traffic.sha256})
    stated = placement.model_copy(update={"instance": key})
    checked = verify(instance, stated, traffic)
    demand = compile_problem(instance, traffic).demand.load
    gpus = instance.cluster.nodes * instance.cluster.gpus_per_node
    load = np.zeros((len(demand), gpus))
    for layer, experts in enumerate(placement.gpu):
        for expert, replicas in enumerate(experts):
            for gpu in replicas:
                load[layer, gpu] += demand[layer, expert] / len(replicas)
    z = checked.cost.max(axis=1)
    node = load.reshape(len(load), instance.cluster.nodes, -1).sum(axis=2)
    return {
        "z_total": float(z.sum()),
        "z_largest": float(z.max()),
        "z": z.tolist(),
        "worst_link": [check.worst_link for check in checked.layers],
        "pair_total": float(checked.worst_pair.sum()),
        "pair_largest": float(checked.worst_pair.max()),
        "inter_node_tokens": float(checked.load[:, : 2 * instance.cluster.nodes].sum() / 2),
        "token_hops": float(checked.load.sum()),
        "gpu_balancedness": float((load.mean(axis=1) / load.max(axis=1)).mean()),
        "node_balancedness": float((node.mean(axis=1) / node.max(axis=1)).mean()),
        "busiest_gpu_tokens": float(load.max(axis=1).sum()),
        "busiest_node_tokens": float(node.max(axis=1).sum()),
        "communication_us": float(z.sum()) * 0.02,
        "step_us": None,
        "link_cost": rounded(checked.cost),
        "gpu_load": rounded(load),
    }


def run_row(
    instance: Instance, solution: Solution, solver: str, seed: int, traffics: tuple[Traffic, Traffic | None]
) -> dict[str, Any]:
    gaps = solution.gaps
    records = solution.placement.layers
    seen = metrics(instance, solution.placement, traffics[0])
    bound = [check.bound for check in solution.verification.layers]
    return {
        "schema": "moe-placer/row/1",
        "kind": "run",
        "key": f"{instance.name}-{solver}-{seed}",
        "instance": instance.name,
        "instance_sha256": instance.sha256,
        "solver": solver,
        "version": "0.1.0",
        "parameters": {"gap": 0.001, "time_limit_s": 5.0, "workers": 1},
        "seed": seed,
        "status": "ok",
        "reason": None,
        "seconds": {"total": 1.25, "first": 0.2, "within_1_percent": None, "final": 1.0},
        "peak_bytes": 150_000_000,
        "z": seen["z"],
        "bound": bound,
        "proof": [record.proof for record in records],
        "recheckable": [True] * len(records),
        "covers_copies": True,
        "gap_median": float(np.median(gaps)) if np.isfinite(gaps).all() else None,
        "gap_largest": float(gaps.max()) if np.isfinite(gaps).all() else None,
        "stop": {"proved": len(records)},
        "moves": 0 if solver == "contiguous" else 3,
        "memory_bytes": {"smallest": 50_000_000_000, "largest": 60_000_000_000},
        "traffic": {
            "solved_for": seen,
            "held_out": metrics(instance, solution.placement, traffics[1]) if traffics[1] else None,
        },
        "gpu": solution.placement.gpu,
        "trajectory": [[0.2, seen["z_total"] * 1.2, sum(bound) * 0.9], [1.0, seen["z_total"], sum(bound)]],
    }


def failed_row(instance: Instance, solver: str, status: str, reason: str) -> dict[str, Any]:
    return {
        "schema": "moe-placer/row/1",
        "kind": "run",
        "key": f"{instance.name}-{solver}-failed",
        "instance": instance.name,
        "instance_sha256": instance.sha256,
        "solver": solver,
        "version": "0.1.0",
        "parameters": {},
        "seed": 0,
        "status": status,
        "reason": reason,
        "seconds": {"total": 5.0, "first": None, "within_1_percent": None, "final": None},
        "peak_bytes": None,
    }


def solved_rows(
    instance: Instance,
    traffic: Traffic,
    held_out: Traffic | None,
    solvers: tuple[str, ...],
    time_s: float = 2.0,
) -> list[dict[str, Any]]:
    """Solve, and return the instance's row and one per solver."""
    rows = [instance_row(instance, traffic, held_out is not None)]
    for solver in solvers:
        solution = solve(instance, traffic, solver=solver, limits=Limits(time_s=time_s, workers=1), seed=0)
        rows.append(run_row(instance, solution, solver, 0, (traffic, held_out)))
    return rows


def write_folder(folder: Path, rows: list[dict[str, Any]], question: str | None = None) -> Path:
    names = [row["name"] for row in rows if row["kind"] == "instance"]
    config = {
        "schema": "moe-placer/comparison/1",
        "name": "drawn",
        "question": question,
        "instances": names,
        "solvers": list(dict.fromkeys(row["solver"] for row in rows if row["kind"] == "run")),
        "seeds": [0],
        "parameters": {"time_limit_s": 5.0, "gap": 0.001, "workers": 1},
        "traces": [],
        "held_out": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    lines = (json.dumps(row, sort_keys=True, allow_nan=False) for row in rows)
    (folder / "results.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def draw_here(folder: Path) -> set[str]:
    """Write a report as `write_report` does, without a process of its own; return the files' names."""
    contents = draw_report(folder)
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    return set(contents)


def drawn_rows() -> Rows:
    """Return rows of real solves of two tiny instances, one with held-out traffic, and of a run that hung."""
    tree = tiny_instance(placement={"replica_routing": "even"})
    dragonfly = tiny_instance(name="dragonfly", cluster={"nodes": 6, "fabric": DRAGONFLY})
    traffic = tiny_traffic(tree)
    found = solved_rows(tree, traffic, tiny_traffic(tree, seed=1), ("contiguous", "eplb", "greedy"))
    found += solved_rows(dragonfly, tiny_traffic(dragonfly), None, ("contiguous", "random"))
    return [*found, failed_row(tree, "flow", "hung", "did not end within 15 s")]


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
