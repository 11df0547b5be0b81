"""What is estimated of a solve before it starts, against what it then takes; what is too large is refused at once."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from builders import DRAGONFLY, MESH, ONE_LAYER, RAILS, THREE_LEVELS, tiny_instance, tiny_traffic
from command_line import run

from moe_placer import Limits, load_instance, solve
from moe_placer.cli.describe import describe
from moe_placer.errors import NothingFoundError, UsageError
from moe_placer.fabric import build_fabric, compile_routes
from moe_placer.problem.compile import compile_problem
from moe_placer.solve.estimate import Estimate, _fabric, demand_bytes, estimate, refuse_too_large, useful_workers
from moe_placer.verifier.loads import read_network

MODULE = sys.modules["moe_placer.solve.estimate"]  # the package's function hides it
REPO = Path(__file__).parents[2]
NODES_1000 = Path(__file__).parents[1] / "cases" / "nodes-1000.yaml"
FABRICS: dict[str, dict[str, Any]] = {
    "fat tree": {"nodes": 24, "fabric": {"nodes_per_leaf": 4, "spines": 3}},
    "uneven leaves": {"nodes": 22, "fabric": {"nodes_per_leaf": 4, "spines": 3}},
    "one leaf": {"nodes": 12, "fabric": {"nodes_per_leaf": 12}},
    "mesh": {"nodes": 12, "fabric": MESH},
    "three levels": {"nodes": 22, "fabric": {**THREE_LEVELS, "nodes_per_leaf": 3, "cores": 2}},
    "one pod": {"nodes": 6, "fabric": {**THREE_LEVELS, "nodes_per_leaf": 3}},
    "leaf of three levels": {"nodes": 3, "fabric": {**THREE_LEVELS, "nodes_per_leaf": 3}},
    "rails": {"nodes": 22, "fabric": {**RAILS, "nodes_per_pod": 4, "rails": 3}},
    "one pod of rails": {"nodes": 4, "fabric": {**RAILS, "nodes_per_pod": 4}},
    "dragonfly": {"nodes": 24, "fabric": {**DRAGONFLY, "nodes_per_router": 2, "routers_per_group": 3}},
    "parallel": {"nodes": 24, "fabric": {**DRAGONFLY, "routers_per_group": 4, "global_links": 2}},
    "two nodes": {"nodes": 2},
}


@pytest.mark.parametrize("name", FABRICS)
def test_sizes_of_a_fabric_are_those_that_it_has(name: str) -> None:
    instance = tiny_instance(cluster=FABRICS[name], parallelism={"dp": 1})
    told, nodes = _fabric(instance), instance.cluster.nodes
    routes = compile_routes(build_fabric(instance), nodes)
    problem = compile_problem(instance, tiny_traffic(instance))
    assert told.links == len(routes.links)
    assert told.shares >= routes.kinds.nnz >= told.shares / 2
    assert told.shares >= len(read_network(instance).link) >= told.shares / 2
    assert told.distinct >= len(problem.links) >= told.distinct / 2
    assert told.affected >= problem.affected.shape[1] >= told.affected / 2


def test_a_budget_of_replicas_and_a_joint_objective_count() -> None:
    plain = tiny_instance()
    more = tiny_instance(placement={"replica_routing": "even", "replicas": {"redundant_slots": 1000}})
    joint = tiny_instance(objective={"minimise": "aggregate"})
    assert estimate(more).memory_bytes["search"] > estimate(plain).memory_bytes["search"]
    assert estimate(joint).memory_bytes["search"] > estimate(plain).memory_bytes["search"]


def test_workers_and_drawings_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "usable_cores", lambda: 8)
    instance = tiny_instance()  # two MoE layers: no more workers than these start
    assert estimate(instance, workers=4).workers == 2
    assert estimate(instance, workers=4, searches=False).workers == estimate(instance).workers == 0
    assert estimate(instance, workers=2).peak_bytes > 2 * estimate(instance).peak_bytes
    assert "DAGs" not in estimate(instance).seconds
    assert estimate(instance, dags=True).seconds["DAGs"] > 0


def test_small_instances_get_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "usable_cores", lambda: 6)
    assert useful_workers(tiny_instance()) == 1
    assert useful_workers(load_instance(REPO / "instances" / "h100-128.yaml")) == 6
    sizes = {"layers": 11, "dense_layers": [0], "experts": 250}
    just = tiny_instance(model=sizes, cluster={"nodes": 4, "gpus_per_node": 63}, parallelism={"dp": 1})
    assert (len(just.moe_layers) * just.replicas_per_layer * just.cluster.nodes, useful_workers(just)) == (10_000, 1)


def test_recorded_traffic_is_told_by_its_files_and_not_here() -> None:
    assert estimate(tiny_instance()).memory_bytes["traffic"] < 120e6
    synthetic = tiny_instance(traffic={"kind": "synthetic"}, model={"experts": 4096, **ONE_LAYER})
    assert estimate(synthetic).memory_bytes["traffic"] > 110e6 + 24 * 4096 * 8
    assert demand_bytes(synthetic) >= 24 * 4096 * 8


# The peak of this program: ru_maxrss would be the test run's own where that is larger, since a child starts with it.
MEASURE = """
import re, sys, moe_placer, moe_placer.solve.solve, networkx, scipy.optimize
def peak(): return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
moe_placer.solve(moe_placer.load_instance(sys.argv[1]), solver="greedy")
print(before, peak())
"""


def large(folder: Path, nodes: int, experts: int, fabric: str) -> Path:
    text = (
        NODES_1000.read_text()
        .replace("nodes: 1000", f"nodes: {nodes}")
        .replace("experts: 4\n", f"experts: {experts}\n")
    )
    lines = [line for line in text.splitlines() if "gpu_memory_gb" not in line]
    lines = [f"  fabric: {fabric}" if line.strip().startswith("fabric:") and fabric else line for line in lines]
    file = folder / "large.yaml"
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize(
    ("nodes", "experts", "fabric"),
    [
        (320, 4, ""),
        pytest.param(1000, 4, "", marks=pytest.mark.slow),
        pytest.param(64, 256, "{kind: full-mesh, node_gb_per_s: 100}", marks=pytest.mark.slow),
        pytest.param(64, 256, "{kind: dragonfly, nodes_per_router: 1, routers_per_group: 4}", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_memory_is_what_was_estimated(tmp_path: Path, nodes: int, experts: int, fabric: str) -> None:
    """Above what the program itself takes, within a factor of two either way."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell the peak memory of a program (Linux does)")
    file = large(tmp_path, nodes, experts, fabric)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(file)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    own, all_told = map(float, done.stdout.split())
    more = estimate(load_instance(file), searches=False).peak_bytes - 110e6
    assert own < 150e6
    assert (all_told - own) / 2 < more < 2 * (all_told - own)


def test_what_does_not_fit_is_refused_at_once() -> None:
    begun = time.process_time()
    with pytest.raises(NothingFoundError) as caught:
        solve(load_instance(NODES_1000), limits=Limits(memory_bytes=0.4e9, workers=1))
    assert time.process_time() - begun < 1.0
    assert "takes about 0.5 GB of memory, most for verification;" in str(caught.value)
    assert "0.4 GB are allowed" in str(caught.value)
    assert "limits.memory_bytes" in str(caught.value)
    assert caught.value.exit_code == 4


def test_what_the_machine_has_left_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = tiny_instance()
    monkeypatch.setattr(MODULE, "available_memory", lambda: 50e6)
    with pytest.raises(NothingFoundError, match=r"but 0\.1 GB are left on this machine"):
        solve(instance, tiny_traffic(instance), solver="greedy")
    limits = Limits(memory_bytes=math.inf)
    assert solve(instance, tiny_traffic(instance), solver="greedy", limits=limits).verification.ok


def test_a_limit_of_no_memory_is_no_limit() -> None:
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="memory limit"):
            Limits(memory_bytes=value)


def test_fewer_workers_are_advised_where_there_are_some() -> None:
    told = Estimate(3, {"search": 9e9}, {"start": 12.0, "verification": 1.0})
    with pytest.raises(NothingFoundError) as caught:
        refuse_too_large("big", told, 1e9, "--no-dag, ")
    assert str(caught.value) == (
        "solving big takes about 9.0 GB of memory with 3 workers, most for search; beside the search about 13 s "
        "(start 12 s, verification 1.0 s), but 1.0 GB are allowed. Use fewer workers (3 now), --no-dag, a smaller "
        "instance or a larger machine, or allow more (--memory GB, limits.memory_bytes)."
    )


def test_the_commands_tell_and_refuse(tmp_path: Path) -> None:
    told = run("inspect", NODES_1000)
    assert told.returncode == 0
    assert "Estimate of a solve: about 1.4 GB of memory" in told.stdout
    assert "most for DAGs; beside the search about" in told.stdout
    refused = run("solve", NODES_1000, "-o", tmp_path / "out", "--memory", 1.2)
    assert refused.returncode == 4
    assert refused.stdout == ""
    assert "--no-dag" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert list(tmp_path.iterdir()) == []
    tiny = REPO / "instances" / "tiny.yaml"
    done = run("solve", tiny, "--solver", "greedy", "-o", tmp_path / "tiny", "--no-dag", "--memory", "inf")
    assert done.returncode == 0
    assert done.stderr.startswith("tiny: about 0.1 GB of memory")
    quiet = run("solve", tiny, "--solver", "greedy", "-o", tmp_path / "tiny", "--no-dag", "--json")
    assert quiet.stderr == ""
    assert json.loads(quiet.stdout)["estimate"]["memory_bytes"] > 1e8


def test_inspect_exits_with_3_where_no_placement_can_exist(tmp_path: Path) -> None:
    file = tmp_path / "full.yaml"
    file.write_text((REPO / "instances" / "tiny.yaml").read_text().replace("experts: 4\n", "experts: 99\n"))
    for options in ([], ["--json"]):
        done = run("inspect", file, *options)
        assert done.returncode == 3
        assert "99 expert replicas" in done.stdout
        assert done.stderr == ""


def test_demand_that_does_not_fit_is_not_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = load_instance(NODES_1000)
    told = describe(instance, None)
    assert "Demand: not worked out, since it takes more memory than is left here." in told.to_text()
    recorded = tiny_instance(traffic={"kind": "trace"})
    assert "Demand: unknown until traces are given" in describe(recorded, None).to_text()
