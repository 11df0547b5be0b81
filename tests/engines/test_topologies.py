"""Descriptions of a network that are not Slurm's, and all of them alike: missing, damaged, combined."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from drafted import SMALL, recorded
from topology_files import (
    DEEP,
    GRAPH,
    IBNET,
    NCCL,
    TREE,
    YAML,
    ibnet,
    kubernetes,
    mistake_of,
    read,
    tier_labels,
    two_leaves,
    write,
)

from moe_placer.engines.init import Wishes, draft_instance, inspect_recordings, read_model_config
from moe_placer.engines.topology import Choice, read_topologies
from moe_placer.errors import InputError
from moe_placer.instance import Instance
from moe_placer.instance.schema import ThreeLevelTree


def test_topographs_graph(tmp_path: Path) -> None:
    topology = read(write(tmp_path, "graph.json", GRAPH))
    assert (topology.nodes, topology.nodes_per_leaf) == (("I0", "I1", "I2", "I3"), 2)
    assert topology.notes == ("cluster: NVLink domains reach over up to 4 nodes; see cluster.nvlink_domain_nodes",)


def test_kubernetes_nodes(tmp_path: Path) -> None:
    topology = read(write(tmp_path, "nodes.json", kubernetes(tier_labels)))
    assert (topology.nodes, topology.nodes_per_leaf, topology.gpus_per_node) == (
        tuple(f"node-{i}" for i in range(4)),
        2,
        8,
    )
    old = kubernetes(
        lambda i: {"network.topology.nvidia.com/leaf": f"l{i % 2}", "network.topology.nvidia.com/spine": "s"}
    )
    assert read(write(tmp_path, "nodes.json", old)).nodes == ("node-0", "node-2", "node-1", "node-3")
    own = write(tmp_path, "nodes.json", kubernetes(lambda i: {"rack": f"r{i // 2}", "hall": "h"}, gpus=None))
    assert read(own, levels=["rack", "hall"]).nodes_per_leaf == 2
    assert read(own, levels=["rack"]).nodes_per_leaf == 2
    assert mistake_of(own).found == "no labels of Topograph's"
    assert "below both r0 and r1" in mistake_of(own, levels=["hall", "rack"]).found
    assert mistake_of(own, levels=["row"]).found == "node-0 without it"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([], "neither instances nor items"),
        ({"items": []}, "neither instances nor items"),
        ({"items": [{}]}, "a node without a name"),
        ({"items": [3]}, "a node without a name"),
        ({"instances": []}, "no nodes"),
        ({"instances": [{"id": "a"}]}, "{'id': 'a'}"),
        ({"instances": [{"id": "a", "network_layers": [3]}]}, "{'id': 'a'"),
        ({"instances": [{"id": "a", "network_layers": ["s"]}] * 2}, "{'id': 'a'"),
        ({"instances": [{"id": "a", "network_layers": ["s"] * 21}]}, "{'id': 'a'"),
        (
            {"instances": [{"id": "a", "network_layers": ["s"]}, {"id": "b", "network_layers": ["s", "t"]}]},
            "1 switches above a",
        ),
    ],
)
def test_wrong_json(tmp_path: Path, content: Any, says: str) -> None:
    assert says in mistake_of(write(tmp_path, "nodes.json", content)).found


def test_nodes_of_different_sizes(tmp_path: Path) -> None:
    nodes = kubernetes(tier_labels)
    nodes["items"][1]["status"]["allocatable"]["nvidia.com/gpu"] = 7
    file = write(tmp_path, "nodes.json", nodes)
    assert mistake_of(file).found == "nodes of 7 and 8 GPUs"
    assert read(file, hosts=["node-2", "node-3"]).gpus_per_node == 8


def test_ibnetdiscover(tmp_path: Path) -> None:
    topology = read(write(tmp_path, "ib.out", IBNET))
    assert topology.nodes == ("n0", "n1", "n2", "n3")
    assert (topology.nodes_per_leaf, topology.spines) == (2, 2)
    assert topology.node_gb_per_s == 100.0  # two HCAs of 400 Gbit/s
    assert topology.oversubscription == 2.0  # 200 GB/s down, two cables of 50 GB/s up
    assert topology.notes == ()
    doubled = ibnet(two_leaves("4xHDR", 1), [(f"leaf{i}", f"spine{s}", 2) for i in range(2) for s in range(4)])
    topology = read(write(tmp_path, "ib.out", doubled))
    assert (topology.node_gb_per_s, topology.spines, topology.oversubscription) == (25.0, 4, 0.125)


def test_unnamed_hosts_are_counted_and_speeds_are_added(tmp_path: Path) -> None:
    text = IBNET.replace('"n3 mlx5_0"', '"MT4129 ConnectX7   Mellanox Technologies"')
    file = write(tmp_path, "ib.out", text)
    assert mistake_of(file).found == "n3 of 50 GB/s and n0 of 100 GB/s"
    topology = read(file, hosts=["n0", "n1"])
    assert (topology.nodes_per_leaf, topology.spines, topology.oversubscription) == (2, 1, 1.0)
    assert topology.notes == ("cluster: 1 ports of HCAs that name no host are left out",)


def rails(nodes: int, pods: int = 1, hcas: int = 8) -> dict[tuple[str, str], tuple[str, str]]:
    """Cable HCA h of every node to leaf h of its pod."""
    return {
        (f"n{i}", f"mlx5_{h}"): (f"pod{i * pods // nodes}-rail{h}", "4xNDR") for i in range(nodes) for h in range(hcas)
    }


def test_a_pod_of_rails_is_like_one_leaf(tmp_path: Path) -> None:
    topology = read(write(tmp_path, "ib.out", ibnet(rails(4), [])))
    assert topology.nodes == ("n0", "n1", "n2", "n3")
    assert (topology.nodes_per_leaf, topology.oversubscription) == (4, 1.0)
    assert (topology.node_gb_per_s, topology.nics) == (400.0, (8, 50.0))
    (note,) = topology.notes
    assert note.startswith("cluster.nics: 8 rails; source-rail is what kernels do")


def test_pods_of_rails_are_joined_above_their_leaves(tmp_path: Path) -> None:
    trunks = [(f"pod{pod}-rail{h}", f"spine{h}-{s}", 1) for pod in range(2) for h in range(8) for s in range(2)]
    topology = read(write(tmp_path, "ib.out", ibnet(rails(8, pods=2), trunks)), leaf_level=1)
    assert topology.nodes == tuple(f"n{i}" for i in range(8))
    assert topology.nodes_per_leaf == 4
    assert topology.oversubscription == 2.0  # a rail's leaf: 4 nodes x 50 GB/s down, 2 cables of 50 GB/s up
    assert topology.nics == (8, 50.0)


def test_an_instance_has_the_rails(tmp_path: Path) -> None:
    topology = read(write(tmp_path, "ib.out", ibnet(rails(4), [])))
    wishes = Wishes(gpus_per_node=8, slots_per_gpu=1)
    model = read_model_config(write(tmp_path, "config.json", SMALL))
    drafted = draft_instance(model, inspect_recordings([recorded(tmp_path)], model), topology, wishes, tmp_path)
    instance = Instance.model_validate(drafted.data)
    assert instance.cluster.nics is not None
    assert (instance.cluster.nics.per_node, instance.cluster.nics.gb_per_s) == (8, 50.0)
    assert instance.cluster.nics.receive == "source-rail"
    assert instance.cluster.fabric.node_gb_per_s == 400.0


def test_an_instance_has_the_three_levels(tmp_path: Path) -> None:
    topology = read(write(tmp_path, "topology.conf", DEEP))
    model = read_model_config(write(tmp_path, "config.json", SMALL))
    recording = inspect_recordings([recorded(tmp_path)], model)
    drafted = draft_instance(model, recording, topology, Wishes(gpus_per_node=8, slots_per_gpu=1), tmp_path)
    fabric = Instance.model_validate(drafted.data).cluster.fabric
    assert isinstance(fabric, ThreeLevelTree)
    assert (fabric.nodes_per_leaf, fabric.leaves_per_pod, fabric.pod_oversubscription) == (2, 2, 1.0)
    assert any("no oversubscription above pods" in line for line in drafted.assumed)
    two = draft_instance(
        model, recording, topology, Wishes(gpus_per_node=8, slots_per_gpu=1, nodes_per_leaf=4), tmp_path
    )
    assert two.data["cluster"]["fabric"]["kind"] == "fat-tree"


def test_rails_that_are_shared_in_part_or_uneven_are_refused(tmp_path: Path) -> None:
    cables = rails(4, hcas=2)
    cables["n3", "mlx5_1"] = ("pod0-other", "4xNDR")
    mistake = mistake_of(write(tmp_path, "ib.out", ibnet(cables, [])))
    assert mistake.found == "n0 and n3, which share MF0;pod0-rail0:MQM9701/U1 but not all leaves"
    cables = rails(4, hcas=2)
    for node in range(4):
        cables[f"n{node}", "mlx5_1"] = ("pod0-rail1", "4xHDR")
    mistake = mistake_of(write(tmp_path, "ib.out", ibnet(cables, [])))
    assert mistake.found.startswith("n0 with mlx5_0 50 GB/s on MF0;pod0-rail0:MQM9701/U1, mlx5_1 25 GB/s on")
    assert mistake.expected == "HCAs of one speed, as many on every rail, over which copies spread evenly"


def test_uneven_uplinks_count_as_the_worst(tmp_path: Path) -> None:
    text = ibnet(two_leaves(), [("leaf0", "spine0", 4), ("leaf1", "spine0", 1)])
    topology = read(write(tmp_path, "ib.out", text))
    assert topology.oversubscription == 4.0
    assert any("differ in their uplinks" in note for note in topology.notes)


def test_three_levels_of_cables(tmp_path: Path) -> None:
    hcas = {(f"n{i}", "mlx5_0"): (f"leaf{i // 2}", "4xNDR") for i in range(8)}
    trunks = [(f"leaf{i}", f"spine{i // 2}", 1) for i in range(4)] + [(f"spine{i}", "core", 2) for i in range(2)]
    file = write(tmp_path, "ib.out", ibnet(hcas, trunks))
    tree = read(file)
    assert tree.nodes == tuple(f"n{i}" for i in range(8))
    assert (tree.nodes_per_leaf, tree.leaves_per_pod, tree.spines, tree.cores) == (2, 2, 1, 1)
    assert (tree.oversubscription, tree.pod_oversubscription) == (2.0, 1.0)
    assert read(file, leaf_level=1).leaves_per_pod is None
    assert read(file, leaf_level=1).oversubscription == 2.0
    assert read(file, leaf_level=2).nodes_per_leaf == 4


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('[1]\t"H-0000000000000000"[1](0) \t\t# "n0 mlx5_0" lid 0 4xNDR', '[1]\t"H-0000"[1', "'[1]\\t\"H-0000\"[1'"),
        ("4xNDR", "4xWDR", "lid 0 4xWDR"),
        ("Switch\t65", "Switsch\t65", "Switsch"),
        ("vendid=0x2c9", "vendor: 9", "'vendor: 9'"),
    ],
)
def test_wrong_lines_of_ibnetdiscover(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in IBNET
    mistake = mistake_of(write(tmp_path, "ib.out", IBNET.replace(old, new, 1)))
    assert mistake.line is not None
    assert says in f"{mistake.found!r} {mistake.found}"


def test_hcas_without_a_switch(tmp_path: Path) -> None:
    alone = 'caguid=0xb8\nCa\t1 "H-b8e92403009ca838"\t\t# "dgx-gb200-n01-c1 HCA-1"\n'
    assert mistake_of(write(tmp_path, "ib.out", alone)).found == "no switch, only HCAs"


def test_nccls_topology(tmp_path: Path) -> None:
    topology = read(write(tmp_path, "node.xml", NCCL))
    assert (topology.nodes, topology.gpus_per_node, topology.node_gb_per_s) == ((), 2, 75.0)
    near = "GPU 0 (0000:18:00.0) near mlx5_0; GPU 1 (0000:28:00.0) near mlx5_1"
    assert topology.notes == (f"cluster: 2 NICs are one pipe in an instance ({near})",)


def test_a_gpu_without_nvlink_is_named(tmp_path: Path) -> None:
    broken = NCCL.replace('<nvlink target="fffffff:ff:ff.0" count="18"/>', "")
    assert read(write(tmp_path, "node.xml", broken)).notes[0].startswith("cluster: NO NVLINK at GPU 1 (0000:28:00.0)")
    none = broken.replace('<nvlink target="0000:07:00.0" count="18" tclass="0x068000"/>', "")
    assert "have no NVLink" in read(write(tmp_path, "node.xml", none)).notes[0]


def test_the_first_of_several_hosts_is_taken(tmp_path: Path) -> None:
    inside = NCCL.split(">", 1)[1].rsplit("</system>", 1)[0]
    both = f'<system version="1">{inside}{inside.replace("0x1", "0x2")}</system>'
    topology = read(write(tmp_path, "node.xml", both))
    assert topology.gpus_per_node == 2
    assert topology.notes[0] == "cluster: the file has 2 hosts; the first is taken for all"


BILLION_LAUGHS = '<!DOCTYPE s [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><system>&b;</system>'


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (BILLION_LAUGHS, 1, "a document type"),
        ('<!DOCTYPE s SYSTEM "file:///etc/passwd"><system/>', 1, "a document type"),
        ("<system>", 1, "no element found"),
        ("<graphs/>", 1, "the element graphs"),
        ("", 1, "no element found"),
        ("<system><cpu/></system>", None, "no GPU"),
        (NCCL.replace('dev="0" sm', 'dev="x" sm'), 4, "'x'"),
        (NCCL.replace('speed="400000"', 'speed=""'), 7, "''"),
        (NCCL.replace(' speed="400000"', ""), 7, "nothing"),
        (NCCL.replace('count="18" tclass', 'count="-1" tclass'), 5, "'-1'"),
        ("<system>" + "<pci>" * 100 + "</pci>" * 100 + "</system>", 1, "deeper than 64"),
        (NCCL.replace("</cpu>", ""), 16, "mismatched tag"),
    ],
)
def test_wrong_xml(tmp_path: Path, text: str, line: int | None, says: str) -> None:
    mistake = mistake_of(write(tmp_path, "node.xml", text))
    assert says in mistake.found
    assert mistake.line == line


def test_a_network_and_the_inside_of_its_nodes(tmp_path: Path) -> None:
    tree, node = write(tmp_path, "topology.conf", TREE), write(tmp_path, "node.xml", NCCL)
    both = read_topologies([tree, node], Choice())
    assert (both.nodes_per_leaf, both.gpus_per_node, both.node_gb_per_s) == (4, 2, 75.0)
    assert len(both.notes) == 1
    assert mistake_of(tree, tree).found == "a second file on the network"
    assert mistake_of(node, node).found == "a second file on the inside of a node"
    nodes = write(tmp_path, "nodes.json", kubernetes(tier_labels))
    assert mistake_of(nodes, node).found == "2 GPUs"


def test_a_network_and_a_node_of_different_bandwidths_are_refused(tmp_path: Path) -> None:
    """A file of one rail beside the topology of a node with all of its NICs."""
    fabric, node = write(tmp_path, "fabric.out", IBNET), write(tmp_path, "node.xml", NCCL)
    assert mistake_of(fabric, node).found == "NICs of 75 GB/s together, but 100 GB/s in fabric.out"
    same = write(tmp_path, "node.xml", NCCL.replace('speed="200000"', 'speed="400000"'))
    assert read_topologies([fabric, same], Choice()).node_gb_per_s == 100.0


@pytest.mark.parametrize("name", ["a.conf", "a.yaml", "a.json", "a.xml", "a.out"])
def test_missing_and_other_files(tmp_path: Path, name: str) -> None:
    assert mistake_of(tmp_path / name).found == "no such file"
    (tmp_path / name).mkdir()
    assert mistake_of(tmp_path / name).found == "a folder"
    mistake_of(write(tmp_path, f"b{name}", "some text"))
    file = tmp_path / f"c{name}"
    file.write_bytes(b"\xff\xfe\x00switchname=\xff")
    mistake_of(file)


GOOD = {
    "topology.conf": TREE,
    "t.yaml": YAML,
    "graph.json": json.dumps(GRAPH),
    "nodes.json": json.dumps(kubernetes(tier_labels)),
    "ib.out": IBNET,
    "node.xml": NCCL,
}


@pytest.mark.parametrize("name", GOOD)
def test_damaged_files_give_messages(tmp_path: Path, name: str) -> None:
    raw, chance = GOOD[name].encode(), random.Random(name)
    for trial in range(120):
        changed = bytearray(raw)
        if trial % 2:
            del changed[chance.randrange(len(raw)) :]
        else:
            for _ in range(chance.randrange(1, 5)):
                changed[chance.randrange(len(raw))] = chance.randrange(256)
        file = tmp_path / name
        file.write_bytes(changed)
        try:
            read(file)
        except InputError as found:
            assert all("\n" not in str(mistake) for mistake in found.mistakes)  # noqa: PT017
