"""Host lists, and Slurm's topology files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from topology_files import (
    BLOCKS,
    DEEP,
    TREE,
    YAML,
    mistake_of,
    read,
    write,
)

from moe_placer.engines.topology import expand
from moe_placer.engines.topology.hostlist import compress

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


def test_three_levels_are_pods_or_what_is_chosen(tmp_path: Path) -> None:
    file = write(tmp_path, "topology.conf", DEEP)
    tree = read(file)
    assert (tree.nodes_per_leaf, tree.leaves_per_pod, len(tree.nodes)) == (2, 2, 8)
    assert (tree.cores, tree.pod_oversubscription) == (None, None)  # such a file has no cables
    few = read(file, hosts=["a1", "b1", "b2", "b3", "b4"])
    assert (few.nodes[:4], few.nodes_per_leaf, few.leaves_per_pod) == (("b1", "b2", "b3", "b4"), 2, 2)
    mistake = mistake_of(file, hosts=["a1", "a2", "a3", "b1", "b2", "b3"])
    assert mistake.found.startswith("leaves or pods of different sizes (nodes on leaves: ")
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
