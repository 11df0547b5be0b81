"""The output of ``ibnetdiscover``: every cable of an InfiniBand fabric, with its speed.

A node is the first word of a port's description and its HCA the second. HCAs that name no host, as some firmware does
(``MT4129 ConnectX7   Mellanox Technologies``), and the switches' own aggregation nodes are left out.

Rails: where the HCAs of a node are on several leaf switches, nodes with the same ones are a pod. Kernels that keep a
copy on the rail that it starts on spread copies evenly, so a pod is like one leaf switch with all rails' capacity.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moe_placer.engines.topology.tiers import Choice, choose, topology_of_tiers
from moe_placer.engines.topology.topology import Topology
from moe_placer.errors import InputError, Mistake
from moe_placer.files import read_bounded

__all__ = ["read_ibnetdiscover"]

_KIND = "the output of ibnetdiscover"
_MOST_BYTES = 200_000_000
_HEAD = re.compile(r"(Switch|Ca|Rt)\s+\d+\s+\"([SHR]-[0-9a-fA-F]+)\"\s*(?:#\s*\"([^\"]*)\".*)?$")
_PORT = re.compile(
    r"\[\d+\](?:\([0-9a-fA-F]+\))?\s+\"([SHR]-[0-9a-fA-F]+)\"\[\d+\](?:\([0-9a-fA-F]+\))?\s*#\s*(.*?)(\d+)x([A-Z0-9]+)\s*$"
)
_QUOTED = re.compile(r"\"([^\"]*)\"")
_OTHER = re.compile(r"(vendid|devid|sysimgguid|switchguid|caguid|rtguid)=\S+$")
# Gbit/s of one lane, as the rates are named.
_LANE = {"SDR": 2.5, "DDR": 5, "QDR": 10, "FDR10": 10, "FDR": 14, "EDR": 25, "HDR": 50, "NDR": 100, "XDR": 200}
_MAX_LEVELS = 8


@dataclass
class _Fabric:
    """Cables of a fabric; speeds are GB/s, one direction, parallel cables added up.

    Attributes
    ----------
    names : dict
        Description of each switch, by its id.
    hcas : dict
        Of each node, HCA and switch: GB/s.
    trunks : dict
        Of each switch and each switch next to it: GB/s.
    unnamed : int
        Ports of HCAs that name no host.
    """

    names: dict[str, str] = field(default_factory=dict)
    hcas: dict[str, dict[tuple[str, str], float]] = field(default_factory=lambda: defaultdict(dict))
    trunks: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    unnamed: int = 0


def read_ibnetdiscover(file: Path, choice: Choice) -> Topology:
    """Read nodes, leaf switches and what joins them, with their bandwidths.

    Raises
    ------
    InputError
        A line is wrong, or an instance cannot hold the fabric: rails that pods share in part or that differ in speed,
        leaves of different sizes, nodes of different bandwidth.
    """
    fabric = _parse(file)
    if not fabric.names:
        raise InputError(Mistake("no switch, only HCAs", f"{_KIND} of a whole fabric", file=file))
    paths = choose(file, dict.fromkeys(fabric.hcas, ()), choice)
    hcas = {node: fabric.hcas[node] for node in paths}
    pods = _pods(file, fabric, hcas)
    leaf_of = {node: pod for pod, nodes in pods.items() for node in nodes}
    switches = {pod: frozenset(leaf for _, leaf in hcas[nodes[0]]) for pod, nodes in pods.items()}
    speeds = {node: sum(own.values()) for node, own in hcas.items()}
    if len(set(speeds.values())) > 1:
        slow, fast = min(speeds, key=speeds.__getitem__), max(speeds, key=speeds.__getitem__)
        found = f"{slow} of {speeds[slow]:g} GB/s and {fast} of {speeds[fast]:g} GB/s"
        raise InputError(Mistake(found, "nodes of one bandwidth; --hosts chooses among them", file=file))
    notes = []
    if fabric.unnamed:
        notes.append(f"cluster: {fabric.unnamed} ports of HCAs that name no host are left out")
    levels = _levels(fabric, switches)
    named = {node: tuple(level[leaf] for level in levels) for node, leaf in leaf_of.items()}
    tree = topology_of_tiers("ibnetdiscover", file, named, choice, notes=notes)
    rails = max(map(len, switches.values()))
    nics = None
    if rails > 1:
        count = len(next(iter(hcas.values())))
        nics = (count, next(iter(speeds.values())) / count)
        notes.append(
            f"cluster.nics: {rails} rails; source-rail is what kernels do that keep a copy on the rail that it starts "
            "on; direct kernels cross rails above the leaves, which an instance does not hold"
        )
    over, spines, uneven = _uplinks(fabric, hcas, switches)
    if uneven and tree.oversubscription is None:
        notes.append("cluster.fabric: leaves differ in their uplinks; the one with least is taken for all")
    return Topology(
        tree.format,
        tree.nodes,
        None,
        next(iter(speeds.values())),
        tree.nodes_per_leaf,
        tree.spines or spines,
        tree.oversubscription or over,
        (*tree.notes, *(note for note in notes if note not in tree.notes)),
        nics,
        tree.leaves_per_pod,
        *(_above_spines(fabric, switches) if tree.leaves_per_pod else (None, None)),
    )


def _parse(file: Path) -> _Fabric:
    fabric, here, mistakes = _Fabric(), "", []
    try:
        text = read_bounded(file, _MOST_BYTES, _KIND).decode()
    except UnicodeDecodeError as error:
        raise InputError(Mistake(f"bytes that are no text (at byte {error.start})", _KIND, file=file)) from None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#") or _OTHER.match(line):
            continue
        head, port = _HEAD.match(line), _PORT.match(line)
        if head:
            here = head[2] if head[1] == "Switch" else ""
            if here:
                fabric.names[here] = head[3] or here
        elif port and port[4] in _LANE:
            if here:
                _add(fabric, here, port)
        else:
            expected = "a speed such as 4xNDR" if port else "a switch, an HCA, or a port with what is at its other end"
            mistakes.append(Mistake(f"{line[:60]!r}", expected, file=file, line=number))
    if mistakes:
        raise InputError(mistakes)
    return fabric


def _add(fabric: _Fabric, switch: str, port: re.Match[str]) -> None:
    """Add one cable of a switch."""
    other, speed = port[1], int(port[3]) * _LANE[port[4]] / 8
    if other.startswith("S-"):
        fabric.trunks[switch][other] += speed  # type: ignore[assignment]  # GB/s, not a count
        return
    quoted = _QUOTED.search(port[2])
    words = quoted[1].split() if quoted else []
    if " ".join(words).endswith("Aggregation Node"):
        return
    if len(words) != 2:
        fabric.unnamed += 1
        return
    key = (words[1], switch)
    fabric.hcas[words[0]][key] = fabric.hcas[words[0]].get(key, 0.0) + speed


def _pods(file: Path, fabric: _Fabric, hcas: Mapping[str, Mapping[tuple[str, str], float]]) -> dict[str, list[str]]:
    """Group nodes by the leaf switches that their HCAs are on: one, or one for each rail; named after the first."""
    groups: dict[frozenset[str], list[str]] = {}
    for node, own in hcas.items():
        groups.setdefault(frozenset(leaf for _, leaf in own), []).append(node)
    owner: dict[str, str] = {}
    for leaves, nodes in groups.items():
        for leaf in leaves:
            if leaf in owner:
                found = f"{owner[leaf]} and {nodes[0]}, which share {fabric.names.get(leaf, leaf)} but not all leaves"
                expected = "nodes on the same leaf switches, or on none in common; --hosts chooses among them"
                raise InputError(Mistake(found, expected, file=file))
            owner[leaf] = nodes[0]
    for node, own in hcas.items():
        rails: Counter[str] = Counter()
        for (_, leaf), speed in own.items():
            rails[leaf] += speed  # type: ignore[assignment]  # GB/s, not a count
        if len(rails) > 1 and (len(set(rails.values())) > 1 or len(set(own.values())) > 1):
            shown = ", ".join(
                f"{hca} {speed:g} GB/s on {fabric.names.get(leaf, leaf)}" for (hca, leaf), speed in own.items()
            )
            expected = "HCAs of one speed, as many on every rail, over which copies spread evenly"
            raise InputError(Mistake(f"{node} with {shown}"[:300], expected, file=file))
    return {min(leaves): nodes for leaves, nodes in groups.items()}


def _levels(fabric: _Fabric, pods: Mapping[str, frozenset[str]]) -> list[dict[str, str]]:
    """Map each pod to its group, level by level: itself, then the set of switches that its leaves reach going up."""
    leaves = sorted(pods)
    levels = [{leaf: leaf for leaf in leaves}]
    below, here = {leaf for own in pods.values() for leaf in own}, dict(pods)
    while len(set(here.values())) > 1 and len(levels) < _MAX_LEVELS:
        up = {leaf: frozenset(s for switch in own for s in fabric.trunks[switch]) - below for leaf, own in here.items()}
        if not all(up.values()):
            break
        groups = _joined(up)
        here = {leaf: groups[leaf] for leaf in leaves}
        below |= {switch for own in here.values() for switch in own}
        names = {own: f"level {len(levels) + 1}, {min(own)}" for own in here.values()}
        levels.append({leaf: names[here[leaf]] for leaf in leaves})
    return levels


def _joined(up: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Join leaves that have a switch above them in common: one group of switches serves them all."""
    groups: list[tuple[set[str], set[str]]] = []
    for leaf, switches in up.items():
        leaves, joined = {leaf}, set(switches)
        rest = []
        for own, others in groups:
            if others & joined:
                leaves |= own
                joined |= others
            else:
                rest.append((own, others))
        groups = [*rest, (leaves, joined)]
    return {leaf: frozenset(joined) for leaves, joined in groups for leaf in leaves}


def _uplinks(
    fabric: _Fabric, hcas: Mapping[str, Mapping[tuple[str, str], float]], pods: Mapping[str, frozenset[str]]
) -> tuple[float | None, int | None, bool]:
    """Return the largest oversubscription of a leaf, the spines of a pod, and whether leaves differ."""
    down: Counter[str] = Counter()
    for own in hcas.values():
        for (_, leaf), speed in own.items():
            down[leaf] += speed  # type: ignore[assignment]  # GB/s
    leaves = set(down)
    up = {leaf: {s: gb for s, gb in fabric.trunks[leaf].items() if s not in leaves} for leaf in leaves}
    if len(pods) < 2 or not all(up.values()):
        return None, None, False
    # A leaf's ports for nodes that take no part are no load: what counts is what the chosen nodes can send.
    ratios = {leaf: down[leaf] / sum(up[leaf].values()) for leaf in leaves}
    spines = {len({spine for leaf in own for spine in up[leaf]}) for own in pods.values()}
    return max(ratios.values()), min(spines), len(set(ratios.values())) > 1 or len(spines) > 1


def _above_spines(fabric: _Fabric, pods: Mapping[str, frozenset[str]]) -> tuple[int, float]:
    """Return the cores above a spine, and the largest oversubscription of a spine."""
    leaves = frozenset().union(*pods.values())
    spines = {spine for leaf in leaves for spine in fabric.trunks[leaf]} - leaves
    up = {s: {core: gb for core, gb in fabric.trunks[s].items() if core not in leaves | spines} for s in spines}
    down = {s: sum(gb for leaf, gb in fabric.trunks[s].items() if leaf in leaves) for s in spines}
    joined = [s for s in spines if up[s]]
    return min(len(up[s]) for s in joined), max(down[s] / sum(up[s].values()) for s in joined)
