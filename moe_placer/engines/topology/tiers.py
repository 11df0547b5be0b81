"""Turns nodes and the switches above them into an instance's fat tree, or says why that is impossible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_placer.engines.topology.topology import Topology
from moe_placer.errors import InputError, Mistake

__all__ = ["Choice", "choose", "topology_of_tiers"]

_JOIN = "(what joins them)"

Paths = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Choice:
    """What a user chooses of a topology.

    Attributes
    ----------
    hosts : sequence of str
        Nodes to use; empty for all.
    leaf_level : int or None
        Which level of switches counts as leaves, 1 being the closest to the nodes.
    levels : sequence of str
        Labels of Kubernetes nodes that name their switches, the closest first.
    """

    hosts: Sequence[str] = ()
    leaf_level: int | None = None
    levels: Sequence[str] = ()


def choose(file: Path, paths: Paths, choice: Choice) -> Paths:
    """Keep the chosen hosts, in the order of the choice.

    Raises
    ------
    InputError
        There is no such host, or none at all.
    """
    if not paths:
        raise InputError(Mistake("no nodes", "the nodes of a cluster", file=file))
    missing = [host for host in choice.hosts if host not in paths]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        expected = f"one of {len(paths)} nodes, such as {next(iter(paths))}"
        raise InputError(Mistake(f"no node {missing[0]}{more}", expected, "--hosts", file))
    return {host: paths[host] for host in choice.hosts} if choice.hosts else paths


def topology_of_tiers(
    title: str, file: Path, paths: Paths, choice: Choice, *, gpus_per_node: int | None = None, notes: Sequence[str] = ()
) -> Topology:
    """Return nodes ordered by leaf switch, and how many a leaf has.

    Parameters
    ----------
    title : str
        What was read.
    file : Path
    paths : mapping
        Each node's switches, the closest first; all as many.
    choice : Choice
    gpus_per_node : int, optional
    notes : sequence of str

    Raises
    ------
    InputError
        There are more levels of switches than three, or leaves or pods of different sizes: fat trees of an instance
        have neither.
    """
    chosen = choose(file, paths, choice)
    levels = _levels(file, chosen)
    depth = len(levels)
    leaf_level = choice.leaf_level
    if leaf_level is None:
        if depth > 3:
            raise InputError(_too_deep(file, levels))
        if depth == 3:
            return _three_levels(title, file, levels, gpus_per_node, notes)
        leaf_level = 1
    if not 1 <= leaf_level <= depth:
        raise InputError(Mistake(str(leaf_level), f"a level from 1 to {depth}", "--leaf-level", file))
    if leaf_level > 1 or depth > 2:
        above = f"{depth - leaf_level} above count as one" if depth > leaf_level else "nothing above"
        notes = [*notes, f"cluster.fabric: leaves are switches of level {leaf_level} of {depth}; the {above}"]
    leaves: dict[str, list[str]] = {}
    for node, leaf in levels[leaf_level - 1].items():
        leaves.setdefault(leaf, []).append(node)
    ordered = _equal_leaves(file, leaves)
    nodes = tuple(node for leaf in ordered for node in leaf)
    if len(ordered) == 1:
        return Topology(
            title, nodes, gpus_per_node, nodes_per_leaf=len(nodes), spines=1, oversubscription=1.0, notes=tuple(notes)
        )
    return Topology(title, nodes, gpus_per_node, nodes_per_leaf=len(ordered[0]), notes=tuple(notes))


def _three_levels(
    title: str, file: Path, levels: Sequence[Mapping[str, str]], gpus_per_node: int | None, notes: Sequence[str]
) -> Topology:
    """Order nodes by pod and leaf; only the last leaf, in the last pod, may be smaller, and only the last pod.

    Parameters
    ----------
    title : str
        What was read.
    file : Path
    levels : sequence of mapping
        The switch of each node, level by level.
    gpus_per_node : int or None
    notes : sequence of str
    """
    pods: dict[str, dict[str, list[str]]] = {}
    for node, leaf in levels[0].items():
        pods.setdefault(levels[1][node], {}).setdefault(leaf, []).append(node)
    ordered = [
        sorted(leaves.values(), key=len, reverse=True)
        for leaves in sorted(pods.values(), key=lambda leaves: sum(map(len, leaves.values())), reverse=True)
    ]
    sizes = [len(leaf) for leaves in ordered for leaf in leaves]
    per_pod = [len(leaves) for leaves in ordered]
    if len(set(sizes[:-1])) > 1 or len(set(per_pod[:-1])) > 1 or sizes[-1] > sizes[0] or per_pod[-1] > per_pod[0]:
        shown = "; ".join(
            f"{pod} {', '.join(str(len(leaf)) for leaf in leaves.values())}" for pod, leaves in pods.items()
        )
        expected = (
            f"as many leaves in every pod, and nodes on every leaf; --hosts chooses among them, or {_choices(levels)}"
        )
        raise InputError(Mistake(f"leaves or pods of different sizes (nodes on leaves: {shown})", expected, file=file))
    nodes = tuple(node for leaves in ordered for leaf in leaves for node in leaf)
    return Topology(title, nodes, gpus_per_node, nodes_per_leaf=sizes[0], notes=tuple(notes), leaves_per_pod=per_pod[0])


def _levels(file: Path, paths: Paths) -> list[dict[str, str]]:
    """Return the switch of each node, level by level; levels that no traffic between the nodes reaches are dropped."""
    depths = {len(path) for path in paths.values()}
    if len(depths) > 1:
        few, many = min(depths), max(depths)
        node = next(node for node, path in paths.items() if len(path) == few)
        raise InputError(Mistake(f"{few} switches above {node}", f"{many}, as above other nodes", file=file))
    (depth,) = depths
    levels = [{node: path[level] for node, path in paths.items()} for level in range(depth)]
    while len(levels) > 1 and len(set(levels[-2].values())) == 1:
        levels.pop()
    if levels and len(set(levels[-1].values())) > 1:
        levels.append(dict.fromkeys(paths, _JOIN))
    return levels or [dict.fromkeys(paths, _JOIN)]


def _too_deep(file: Path, levels: Sequence[Mapping[str, str]]) -> Mistake:
    counts = [len(set(level.values())) for level in levels]
    shown = ", ".join(map(str, counts))
    expected = f"at most three, as fat trees in an instance have ({_choices(levels)}, and all above them as spines)"
    return Mistake(f"{len(levels)} levels of switches ({shown} from the nodes up)", expected, file=file)


def _choices(levels: Sequence[Mapping[str, str]]) -> str:
    counts = [len(set(level.values())) for level in levels[:-1]]
    return "; ".join(
        f"--leaf-level {number} takes the {count} of level {number} as leaves" for number, count in enumerate(counts, 1)
    )


def _equal_leaves(file: Path, leaves: Mapping[str, Sequence[str]]) -> list[Sequence[str]]:
    """Return the leaves' nodes, the largest first; only one may have fewer."""
    ordered = sorted(leaves.values(), key=len, reverse=True)
    sizes = [len(leaf) for leaf in ordered]
    if len(set(sizes[:-1])) > 1:
        shown = ", ".join(f"{name} {len(nodes)}" for name, nodes in list(leaves.items())[:6])
        more = f" and {len(leaves) - 6} more leaves" if len(leaves) > 6 else ""
        expected = "as many nodes on every leaf, as a fat tree in an instance has; --hosts chooses among them"
        raise InputError(Mistake(f"leaves of different sizes ({shown}{more})", expected, file=file))
    return list(ordered)
