"""Descriptions of a cluster's network: what an instance can hold is read, and what it cannot is said."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_placer.engines.topology import Choice, Topology, expand, read_topologies
from moe_placer.engines.topology.hostlist import compress
from moe_placer.errors import InputError, Mistake

# --- host lists ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", ["a"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("node[01-03,7]b", ["node01b", "node02b", "node03b", "node7b"]),
        ("a[1-2]-[08-10]", ["a1-08", "a1-09", "a1-10", "a2-08", "a2-09", "a2-10"]),
        ("a1, b[2]", ["a1", "b2"]),
        ("n[099-101]", ["n099", "n100", "n101"]),
    ],
)
def test_host_lists(text: str, hosts: list[str]) -> None:
    assert expand(text) == hosts


WRONG_LISTS = ("", "a,", "a[1-", "a]1[", "a[[1]]", "a[]", "a[x]", "a[3-1]", "a[1-999999999]", "a b", "a[1-2-3]")


@pytest.mark.parametrize("text", [*WRONG_LISTS, "a[1-999]b[1-999]"])
def test_wrong_host_lists(text: str) -> None:
    with pytest.raises(ValueError, match=r"brackets|empty|range|hosts|blanks"):
        expand(text)


@given(
    st.lists(
        st.tuples(st.sampled_from(["n", "gpu-", "x1y"]), st.integers(0, 300), st.integers(0, 4)).map(
            lambda parts: parts[0] + str(parts[1]).zfill(parts[2])
        )
        | st.sampled_from(["login", "a.b"]),
        min_size=1,
        max_size=20,
    )
)
def test_host_lists_round_trip(hosts: list[str]) -> None:
    assert expand(compress(hosts)) == hosts


def test_ranges_are_short() -> None:
    assert compress([f"node{i:02d}" for i in range(1, 17)]) == "node[01-16]"


# --- files ---------------------------------------------------------------------------------------------------------

TREE = """
# switch.2.1=a spine
SwitchName=core Switches=leaf[1-2]
switchname=leaf1 nodes=srv[1101-1104] LinkSpeed=400
SwitchName=leaf2 Nodes=srv[1201-1203],srv1300   # the last one moved
"""
DEEP = """
SwitchName=core Switches=pod[1-2]
SwitchName=pod1 Switches=leaf[1-2]
SwitchName=pod2 Switches=leaf[3-4]
SwitchName=leaf1 Nodes=a[1-2]
SwitchName=leaf2 Nodes=a[3-4]
SwitchName=leaf3 Nodes=b[1-2]
SwitchName=leaf4 Nodes=b[3-4]
"""
BLOCKS = "# rack1=nvl-1-1\nBlockName=rack1 Nodes=srv[1-4]\nBlockName=rack2 Nodes=srv[5-8]\nBlockSizes=4,8\n"
YAML = """
- topology: topo-switch
  cluster_default: true
  tree:
    switches:
    - {switch: root, children: "s[1-2]"}
    - {switch: s1, nodes: "node[1-2]"}
    - {switch: s2, nodes: "node[3-4]"}
- topology: topo-block
  block: {block_sizes: [2, 4], blocks: [{block: b1, nodes: "node[1-2]"}, {block: b2, nodes: "node[3-4]"}]}
- topology: topo-flat
  flat: true
"""
GRAPH = {
    "instances": [
        {
            "id": f"I{i}",
            "network_layers": [f"leaf-{i // 2}", "spine"],
            "labels": {"accelerator.topograph.run/domain": "nvl-1"},
        }
        for i in range(4)
    ]
}


def kubernetes(labels: Callable[[int], dict[str, str]], count: int = 4, gpus: str | None = "8") -> dict[str, Any]:
    """Build what kubectl prints of nodes node-0, node-1, ..., and of one without GPUs."""
    items = [
        {
            "metadata": {"name": f"node-{i}", "labels": labels(i)},
            "status": {"allocatable": {"nvidia.com/gpu": gpus} if gpus else {}},
        }
        for i in range(count)
    ]
    control = {"metadata": {"name": "control", "labels": {}}, "status": {"allocatable": {"cpu": "8"}}}
    return {"apiVersion": "v1", "kind": "List", "items": [*items, control] if gpus else items}


def tier_labels(i: int) -> dict[str, str]:
    return {"fabric.topograph.run/tier-0": f"leaf-{i // 2}", "fabric.topograph.run/tier-1": "spine"}


def ibnet(hcas: dict[tuple[str, str], tuple[str, str]], trunks: list[tuple[str, str, int]]) -> str:
    """Write ibnetdiscover's output: (node, HCA) to (leaf, speed); trunks are pairs of switches with so many cables."""
    switches = dict.fromkeys([leaf for leaf, _ in hcas.values()] + [switch for trunk in trunks for switch in trunk[:2]])
    ids = {name: f"S-{i:016x}" for i, name in enumerate(switches, 10)}
    about = "\nvendid=0x2c9\ndevid=0xd2f2\nsysimgguid=0x1\n"
    parts = ["#\n# Topology file: generated on Wed Aug  6 16:11:23 2025\n#\n"]
    ports: dict[str, list[str]] = {name: [] for name in ids}
    for i, ((node, hca), (leaf, speed)) in enumerate(hcas.items()):
        ports[leaf].append(f'"H-{i:016x}"[1]({i:x}) \t\t# "{node} {hca}" lid {i} {speed}')
    for a, b, cables in trunks:
        for _ in range(cables):
            for here, other in ((a, b), (b, a)):
                ports[here].append(f'"{ids[other]}"[3]\t\t# "MF0;{other}:MQM9701/U1" lid 7 4xNDR')
    for name, own in ports.items():
        parts.append(f'{about}switchguid=0x1(1)\nSwitch\t65 "{ids[name]}"\t\t')
        parts.append(f'# "MF0;{name}:MQM9701/U1" enhanced port 0 lid 7 lmc 0\n')
        parts += [f"[{number}]\t{port}\n" for number, port in enumerate(own, 1)]
        parts.append('[65]\t"H-ff"[1](ff) \t\t# "Mellanox Technologies Aggregation Node" lid 9 4xNDR\n')
    for i, (node, hca) in enumerate(hcas):
        parts.append(f'{about}caguid=0x1\nCa\t1 "H-{i:016x}"\t\t# "{node} {hca}"\n')
        parts.append(f'[1]({i:x}) \t"{ids[hcas[node, hca][0]]}"[17]\t\t# lid 6 lmc 0 "MF0;x" lid 7 4xNDR\n')
    return "".join(parts)


def two_leaves(speed: str = "4xNDR", hcas: int = 2) -> dict[tuple[str, str], tuple[str, str]]:
    return {(f"n{i}", f"mlx5_{h}"): (f"leaf{i // 2}", speed) for i in range(4) for h in range(hcas)}


IBNET = ibnet(
    two_leaves(), [("leaf0", "spine0", 1), ("leaf0", "spine1", 1), ("leaf1", "spine0", 1), ("leaf1", "spine1", 1)]
)
NCCL = """<system version="1">
  <cpu host_hash="0x1" numaid="0" affinity="ff" arch="x86_64">
    <pci busid="0000:16:00.0" class="0x060400" link_speed="32.0 GT/s PCIe" link_width="16">
      <pci busid="0000:18:00.0" class="0x030200"><gpu dev="0" sm="90" rank="0" gdr="1">
        <nvlink target="0000:07:00.0" count="18" tclass="0x068000"/></gpu></pci>
      <pci busid="0000:19:00.0" class="0x020000"><nic>
        <net name="mlx5_0" dev="0" speed="400000" port="1" guid="0x1" maxconn="131072" gdr="1"/></nic></pci>
    </pci>
    <pci busid="0000:26:00.0" class="0x060400" link_speed="" link_width="16">
      <pci busid="0000:28:00.0" class="0x030200"><gpu dev="1" sm="90" rank="1" gdr="1">
        <nvlink target="fffffff:ff:ff.0" count="18"/><c2c bw="400" count="1"/></gpu></pci>
      <pci busid="0000:29:00.0" class="0x020000"><nic>
        <net name="mlx5_1" dev="1" speed="200000" port="1" guid="0x2" maxconn="131072" gdr="1"/></nic></pci>
    </pci>
  </cpu>
</system>
"""


def write(folder: Path, name: str, content: Any) -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def read(file: Path, **choice: Any) -> Topology:
    return read_topologies([file], Choice(**choice))


def mistake_of(*files: Path, **choice: Any) -> Mistake:
    with pytest.raises(InputError) as caught:
        read_topologies(files, Choice(**choice))
    mistake = caught.value.mistakes[0]
    assert "\n" not in str(mistake)
    assert len(str(mistake)) < 1000
    return mistake


def test_a_slurm_tree(tmp_path: Path) -> None:
    topology = read(write(tmp_path, "topology.conf", TREE))
    assert topology.nodes == ("srv1101", "srv1102", "srv1103", "srv1104", "srv1201", "srv1202", "srv1203", "srv1300")
    assert topology.nodes_per_leaf == 4
    assert (topology.spines, topology.oversubscription, topology.node_gb_per_s) == (None, None, None)
    assert topology.host_list == "srv[1101-1104,1201-1203,1300]"


def test_hosts_are_chosen_and_keep_to_their_leaves(tmp_path: Path) -> None:
    file = write(tmp_path, "topology.conf", TREE)
    topology = read(file, hosts=["srv1201", "srv1101", "srv1202", "srv1102"])
    assert topology.nodes == ("srv1201", "srv1202", "srv1101", "srv1102")
    assert topology.nodes_per_leaf == 2
    alone = read(file, hosts=["srv1102", "srv1101"])
    assert (alone.nodes, alone.nodes_per_leaf, alone.spines) == (("srv1102", "srv1101"), 2, 1)
    assert mistake_of(file, hosts=["srv1101", "x", "y"]).found == "no node x and 1 more"
    uneven = read(file, hosts=["srv1101", "srv1201", "srv1202", "srv1203", "srv1102"])
    assert uneven.nodes == ("srv1201", "srv1202", "srv1203", "srv1101", "srv1102")
    assert uneven.nodes_per_leaf == 3


def test_one_leaf_may_be_smaller_and_is_the_last(tmp_path: Path) -> None:
    file = write(
        tmp_path, "topology.conf", "SwitchName=a Nodes=a[1-2]\nSwitchName=b Nodes=b[1-3]\nSwitchName=s Switches=a,b\n"
    )
    assert read(file).nodes == ("b1", "b2", "b3", "a1", "a2")
    file = write(
        tmp_path,
        "topology.conf",
        "SwitchName=a Nodes=a1\nSwitchName=b Nodes=b[1-2]\nSwitchName=c Nodes=c[1-3]\nSwitchName=s Switches=a,b,c\n",
    )
    assert mistake_of(file).found == "leaves of different sizes (a 1, b 2, c 3)"


def test_three_levels_need_a_choice(tmp_path: Path) -> None:
    file = write(tmp_path, "topology.conf", DEEP)
    mistake = mistake_of(file)
    assert mistake.found == "3 levels of switches (4, 2, 1 from the nodes up)"
    assert "--leaf-level 1 takes the 4 of level 1 as leaves; --leaf-level 2 takes the 2 of level 2" in mistake.expected
    assert read(file, leaf_level=1).nodes_per_leaf == 2
    assert read(file, leaf_level=2).nodes_per_leaf == 4
    assert "level 2 of 3" in read(file, leaf_level=2).notes[0]
    assert mistake_of(file, leaf_level=4).found == "4"
    # Within one pod, nothing reaches the core: two levels are left.
    assert read(file, hosts=["a1", "a2", "a3", "a4"]).nodes_per_leaf == 2


def test_blocks_count_as_leaves(tmp_path: Path) -> None:
    topology = read(write(tmp_path, "topology.conf", BLOCKS))
    assert topology.nodes_per_leaf == 4
    assert "blocks count as leaf switches" in topology.notes[0]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("SwitchName=a Nodes=a[1-2", 1, "brackets that do not match"),
        ("\nSwitchName=a", 2, "a with both or neither"),
        ("SwitchName=a Nodes=b Switches=c", 1, "a with both or neither"),
        ("SwitchName=a Nodes=b\nSwitchName=a Nodes=c", 2, "a a second time"),
        ("SwitchName=a Nodes=b\nSwitchName=c Nodes=b", 2, "b below c"),
        ("SwitchName=a Switches=b", 1, "the switch b"),
        ("SwitchName=a Nodes=ALL", 1, "Nodes=ALL"),
        ("SwitchName=a Nodes=b\nBlockName=c Nodes=d", 2, "both SwitchName and BlockName"),
        ("BlockName=a Nodes=b\nBlockName=c Nodes=b", 2, "b in c"),
        ("BlockName=a", 1, "a block without nodes"),
        ("SwitchName=a Speed=3", 1, "'Speed=3'"),
        ("SwitchName=a nonsense", 1, "'nonsense'"),
        ("SwitchName=a SwitchName=b", 1, "'SwitchName=b'"),
        ("# SwitchName=a", None, "no nodes"),
        ("SwitchName=a Nodes=x\nSwitchName=b Switches=c\nSwitchName=c Switches=b,a", 1, "in a circle"),
        ("SwitchName=a Nodes=x\nSwitchName=b Nodes=y\nSwitchName=c Switches=a", None, "1 switches above y"),
        ("BlockSizes=2", None, "no nodes"),
    ],
)
def test_wrong_slurm_files(tmp_path: Path, text: str, line: int | None, says: str) -> None:
    mistake = mistake_of(write(tmp_path, "topology.conf", text))
    assert says in mistake.found
    assert mistake.line == line


def test_slurm_yaml(tmp_path: Path) -> None:
    assert read(write(tmp_path, "topology.yaml", YAML)).nodes_per_leaf == 2
    other = YAML.replace("  cluster_default: true\n", "").replace(
        "topo-block\n", "topo-block\n  cluster_default: true\n"
    )
    topology = read(write(tmp_path, "topology.yaml", other))
    assert topology.format == "Slurm's topology.yaml, blocks"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (YAML.replace("  cluster_default: true\n", ""), 2, "3 topologies, 0 with cluster_default: true"),
        ("- {topology: a, flat: true}", 1, "a flat topology"),
        ("- {topology: a}", 1, "none of tree, block and flat"),
        ("- {topology: a, flat: true, tree: {}}", 1, ""),
        ("- {topology: a, tree: {switches: {}}}", 1, "no list"),
        ("- {topology: a, tree: 3}", 1, "no list"),
        ("- {topology: a, tree: {switches: [{nodes: b}]}}", 1, "an entry without a name"),
        ("- topology: a\n  tree:\n    switches:\n    - {switch: s, nodes: 'b['}", 4, "brackets that do not match"),
        ("- {topology: a, tree: {switches: [{switch: s, nodes: [b]}]}}", 1, "['b'], which is no text"),
        ("- {topology: a, block: {blocks: [{block: s, children: b}]}}", 1, "both or neither"),
        ("topology: a", 1, "no list of topologies"),
        ("- 3", 1, "no list of topologies"),
        ("- {topology: a, topology: b}", 1, "the key a second time"),
        ("- [", 2, "not YAML"),
        ("", None, "an empty file"),
    ],
)
def test_wrong_slurm_yaml(tmp_path: Path, text: str, line: int | None, says: str) -> None:
    mistake = mistake_of(write(tmp_path, "topology.yaml", text))
    assert says in mistake.found
    assert mistake.line == line


def test_topographs_graph(tmp_path: Path) -> None:
    topology = read(write(tmp_path, "graph.json", GRAPH))
    assert (topology.nodes, topology.nodes_per_leaf) == (("I0", "I1", "I2", "I3"), 2)
    assert topology.notes == (
        "cluster: NVLink domains reach over up to 4 nodes; an instance has NVLink within a node only",
    )


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


def test_rails_are_refused_and_named(tmp_path: Path) -> None:
    rails = {(f"n{i}", f"mlx5_{h}"): (f"rail{h}", "4xNDR") for i in range(4) for h in range(8)}
    mistake = mistake_of(write(tmp_path, "ib.out", ibnet(rails, [])))
    shown = "mlx5_0 on MF0;rail0:MQM9701/U1, mlx5_1 on MF0;rail1:MQM9701/U1, ..."
    assert mistake.found == f"n0 with 8 HCAs on 8 leaf switches ({shown}): rails"
    assert "cannot hold rails yet" in mistake.expected


def test_uneven_uplinks_count_as_the_worst(tmp_path: Path) -> None:
    text = ibnet(two_leaves(), [("leaf0", "spine0", 4), ("leaf1", "spine0", 1)])
    topology = read(write(tmp_path, "ib.out", text))
    assert topology.oversubscription == 4.0
    assert any("differ in their uplinks" in note for note in topology.notes)


def test_three_levels_of_cables(tmp_path: Path) -> None:
    hcas = {(f"n{i}", "mlx5_0"): (f"leaf{i // 2}", "4xNDR") for i in range(8)}
    trunks = [(f"leaf{i}", f"spine{i // 2}", 1) for i in range(4)] + [(f"spine{i}", "core", 2) for i in range(2)]
    file = write(tmp_path, "ib.out", ibnet(hcas, trunks))
    assert mistake_of(file).found == "3 levels of switches (4, 2, 1 from the nodes up)"
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
