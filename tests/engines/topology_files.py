"""Descriptions of networks, and how tests write and read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_placer.engines.topology import Choice, Topology, read_topologies
from moe_placer.errors import InputError, Mistake

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
