"""Chakra execution traces: what they send is what the placement sends, transfer by transfer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic
from command_line import TINY
from told import told

from moe_placer import Limits, solve
from moe_placer.engines.simulators import chakra
from moe_placer.engines.simulators.chakra import execution_traces, write_execution_traces
from moe_placer.errors import UsageError
from moe_placer.experiments.compare.metrics import find_flows
from moe_placer.instance import Instance
from moe_placer.instance.sizes import combine_wire, dispatch_wire, expert_us
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic

Nodes = list[list[dict[str, Any]]]
COMPUTE, SEND, RECEIVE = 4, 5, 6
CHANGES: dict[str, dict[str, Any]] = {
    "even": {"placement": {"replica_routing": "even", "dispatch_dtype": "fp8", "combine_dtype": "bf16"}},
    "group": {},
    "sharded": {"parallelism": {"dp": 1, "expert_tp": 2}},
}


def solved(changes: dict[str, Any]) -> tuple[Instance, Placement, Traffic]:
    instance = tiny_instance(**changes)
    traffic = tiny_traffic(instance)
    return instance, solve(instance, traffic, solver="greedy", limits=Limits(workers=1)).placement, traffic


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_every_transfer_has_two_ends_and_the_bytes_of_its_tokens(changes: dict[str, Any]) -> None:
    instance, placement, traffic = solved(changes)
    traces = execution_traces(instance, placement, traffic)
    ends: dict[int, Counter[tuple[int, ...]]] = {SEND: Counter(), RECEIVE: Counter()}
    for gpu, nodes in enumerate(traces):
        for node in nodes:
            if node["NodeType"] in ends:
                source, target = node["comm_src"], node["comm_dst"]
                assert gpu == (source if node["NodeType"] == SEND else target)
                assert source != target
                ends[node["NodeType"]][source, target, node["comm_tag"], node["comm_size"]] += 1
    assert ends[SEND] == ends[RECEIVE]
    assert max(ends[SEND].values()) == 1
    flows = find_flows(instance, placement, traffic)
    size, nodes_ = instance.cluster.gpus_per_node, instance.cluster.nodes
    for row, layer in enumerate(instance.moe_layers):
        for phase, wire in enumerate((dispatch_wire(instance), combine_wire(instance))):
            sent = np.zeros((nodes_, nodes_))
            for source, target, tag, amount in ends[SEND]:
                if tag == 2 * layer + phase and source // size != target // size:
                    sent[source // size, target // size] += amount
            expected = flows.between[row] * wire.token_bytes * instance.parallelism.expert_tp
            assert np.allclose(sent, expected.T if phase else expected, atol=size * size)  # bytes are rounded


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_nodes_wait_for_what_is_before_them(changes: dict[str, Any]) -> None:
    instance, placement, traffic = solved(changes)
    flows, shards = find_flows(instance, placement, traffic), instance.parallelism.expert_tp
    for gpu, nodes in enumerate(execution_traces(instance, placement, traffic)):
        assert [node["Id"] for node in nodes] == list(range(len(nodes)))
        assert all(one < node["Id"] for node in nodes for one in node["data_deps"])
        named = {node["Name"]: node for node in nodes}
        assert len(named) == len(nodes)
        for row, layer in enumerate(instance.moe_layers):
            experts, end = named[f"layer{layer}/experts"], named[f"layer{layer}/end"]
            us = expert_us(instance, flows.gpu[row, gpu] * shards)
            assert (experts["NodeType"], experts["runtime"]) == (COMPUTE, round(us))
            arrived = [node["Id"] for name, node in named.items()
                       if name.startswith(f"layer{layer}/dispatch") and node["NodeType"] == RECEIVE]  # fmt: skip
            assert set(arrived) <= set(experts["data_deps"])
            own = {node["Id"] for name, node in named.items() if name.startswith(f"layer{layer}/c")}
            assert own <= set(end["data_deps"])
            if row:
                before = named[f"layer{instance.moe_layers[row - 1]}/end"]["Id"]
                first = [node for name, node in named.items() if name.startswith(f"layer{layer}/dispatch")]
                assert all(node["data_deps"] == [before] for node in first)


def test_files_are_what_the_feeder_looks_for(tmp_path: Path) -> None:
    instance, placement, traffic = solved(CHANGES["even"])
    paths = write_execution_traces(instance, placement, traffic, tmp_path / "et", layer=2)
    assert [path.name for path in paths] == [f"step.{gpu}.json" for gpu in range(instance.gpus)]
    content = json.loads(paths[0].read_text())
    assert content["workload_graph"] == execution_traces(instance, placement, traffic, layer=2)[0]
    keys = {"Id", "Name", "NodeType", "is_cpu_op", "data_deps"}  # without which the feeder complains
    transfer = {"comm_src", "comm_dst", "comm_size", "comm_tag", "comm_type", "comm_priority", "tensor_size"}
    for node in content["workload_graph"]:
        assert node.keys() == keys | ({"runtime"} if node["NodeType"] == COMPUTE else transfer)
        assert node["Name"].startswith("layer2/")


def test_what_cannot_be_traced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    instance, placement, traffic = solved(CHANGES["even"])
    with pytest.raises(UsageError, match="layer 0 has no experts, expected one of 1 to 2"):
        execution_traces(instance, placement, traffic, layer=0)
    with pytest.raises(UsageError, match=r"placement\.dispatch is per-node"):
        execution_traces(tiny_instance(placement={"dispatch": "per-node"}), placement, traffic)
    monkeypatch.setattr(chakra, "MOST_NODES", 50)
    with pytest.raises(UsageError, match="of more than 50 nodes; --layer N writes one layer"):
        execution_traces(instance, placement, traffic)


def test_the_command_writes_them(tmp_path: Path) -> None:
    told("solve", TINY, "-o", tmp_path, "--solver", "greedy", "--no-dag", "--workers", 1, "-q")
    asked = ("schedule", TINY, tmp_path / "placement.json")
    done = told(*asked, "--chakra", tmp_path / "et")
    assert f"Written: {tmp_path / 'et'}" in done.err
    assert {path.name for path in (tmp_path / "et").iterdir()} == {f"step.{gpu}.json" for gpu in range(4)}
    assert "needs --pictures DIR or --chakra DIR" in told(*asked, "--layer", 1, code=2).err
