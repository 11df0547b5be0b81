"""Floors of NICs: by hand, in inspect and in the summary of a solve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders import MESH, ONE_LAYER, level_traffic, merged, tiny_instance
from command_line import TINY, run

from moe_placer.bounds.nic_floors import nic_floors
from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.problem.compile import compile_problem
from moe_placer.solve.nic_words import busiest_nics, floors_of, nic_facts, nic_lines
from moe_placer.solve.solve import solve
from moe_placer.traffic.recording import Traffic


def two_nodes(receive: str = "destination-gpu", **placement: Any) -> tuple[Instance, Traffic]:
    """Two nodes of two GPUs and NICs; of a node's 200 tokens, 140, 30, 20 and 10 choose experts 0 to 3."""
    instance = tiny_instance(
        model={**ONE_LAYER, "top_k": 1},
        cluster={"nodes": 2, "fabric": MESH, "nics": {"per_node": 2, "gb_per_s": 200.0, "receive": receive}},
        parallelism={"dp": 1},
        placement=placement,
    )
    return instance, level_traffic(instance, [[70, 15, 10, 5]], 100)


def test_floors_by_hand() -> None:
    floors = nic_floors(compile_problem(*two_nodes()))
    assert floors is not None
    # The other node sends 140 tokens to the hottest expert, on a NIC of half the bandwidth.
    assert floors.hottest == pytest.approx([280])
    # Half of all 400 choices are of the other node, which makes 100 a node; two experts can stay: 30 leave at least.
    assert floors.sending == pytest.approx([100])
    # 280 / 100 asks for 3 replicas of expert 0; the others need one each.
    assert floors.redundant_slots.tolist() == [2]
    assert floors.binding == 1


def test_redundant_slots_bring_the_hottest_replica_down() -> None:
    more = {"replica_routing": "even", "replicas": {"redundant_slots": 2}, "slots_per_gpu": 2}
    floors = nic_floors(compile_problem(*two_nodes(**more)))
    assert floors is not None
    assert floors.hottest == pytest.approx([280 / 3])
    assert floors.binding == 0


def test_what_is_said_and_stated() -> None:
    instance, traffic = two_nodes()
    floors = floors_of(instance, traffic)
    text = " ".join(nic_lines(instance, floors))
    assert "2 of 200 GB/s on each node; a copy arrives at the NIC of its expert's GPU." in text
    assert "costs its NIC at least 280 in the median layer" in text
    assert "binds in 1 of 1 layers, and with 2 redundant slots" in text
    facts = nic_facts(instance, floors)
    assert facts is not None
    assert facts["floors"]["hottest_replica"] == pytest.approx([280])
    assert facts["floors"]["redundant_slots_needed"] == [2]
    rail, traffic = two_nodes("source-rail")
    assert floors_of(rail, traffic) is None
    assert "every NIC has an equal share" in nic_lines(rail, None)[0]
    assert nic_lines(two_nodes("shared")[0], None) == ["NICs: 2 of 200 GB/s on each node, one pipe."]
    assert nic_lines(tiny_instance(), None) == []
    assert nic_facts(tiny_instance(), None) is None


def test_the_busiest_nics_of_a_placement() -> None:
    instance, traffic = two_nodes()
    found = solve(instance, traffic, limits=Limits(work=0.1)).verification
    said = busiest_nics(found)
    assert said is not None
    assert "a cost of 280 over all layers" in said
    assert "the busiest link of 1 of 1 layers" in said
    plain = tiny_instance()
    load = np.ones((2, 4)).tolist()
    assert busiest_nics(solve(plain, level_traffic(plain, load, 2.0), solver="greedy").verification) is None


def test_inspect_and_solve_print_them(tmp_path: Path) -> None:
    content = yaml.safe_load(TINY.read_text())
    cluster = content["cluster"]
    each = cluster["fabric"]["node_gb_per_s"] / cluster["gpus_per_node"]
    nics = {"per_node": cluster["gpus_per_node"], "gb_per_s": each, "receive": "destination-gpu"}
    file = tmp_path / "nics.yaml"
    file.write_text(yaml.safe_dump(merged(content, {"cluster": {"nics": nics}})))
    quick = ("--no-dag", "--solver", "greedy", "--no-bound", "-o", tmp_path / "out")
    for command in (("inspect", file), ("solve", file, *quick)):
        done = run(*command)
        assert done.returncode == 0, done.stderr
        assert "NIC floors: the hottest replica costs its NIC at least" in done.stdout
    assert "Busiest NICs: a cost of" in done.stdout
    assert run("verify", file, tmp_path / "out" / "placement.json").returncode == 0
