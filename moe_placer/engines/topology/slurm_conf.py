"""Slurm's ``topology.conf``: switches and the nodes or switches below them, or blocks of nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_placer.engines.topology.hostlist import expand
from moe_placer.engines.topology.tiers import Choice, topology_of_tiers
from moe_placer.engines.topology.topology import Topology
from moe_placer.errors import InputError, Mistake
from moe_placer.files import read_bounded

__all__ = ["Entry", "read_slurm_conf", "topology_of_blocks", "topology_of_switches"]

_KIND = "Slurm's topology.conf"
_MOST_BYTES = 20_000_000
_PAIR = re.compile(r"\s*([A-Za-z]+)\s*=\s*(\S+)")
_KNOWN = {"switchname", "switches", "nodes", "linkspeed", "blockname", "blocksizes"}
_MOST_LEVELS = 20


@dataclass(frozen=True)
class Entry:
    """A switch or block: its name, where it stands, and what is below it."""

    name: str
    line: int | None
    nodes: Sequence[str] = ()
    switches: Sequence[str] = ()


def read_slurm_conf(file: Path, choice: Choice) -> Topology:
    """Read a file of ``SwitchName=`` or ``BlockName=`` lines.

    Raises
    ------
    InputError
        A line is wrong, the switches are no tree, or an instance cannot hold it; every wrong line is listed.
    """
    switches: list[Entry] = []
    blocks: list[Entry] = []
    mistakes: list[Mistake] = []
    for line, pairs in _lines(file):
        try:
            entry = _entry(line, pairs)
        except ValueError as error:
            mistakes.append(Mistake(str(error), "SwitchName=NAME with Nodes= or Switches=, or BlockName=NAME Nodes=",
                                    file=file, line=line))  # fmt: skip
            continue
        if entry is not None:
            (switches if "switchname" in pairs else blocks).append(entry)
    if mistakes:
        raise InputError(mistakes)
    if switches and blocks:
        expected = "either switches or blocks"
        raise InputError(Mistake("both SwitchName and BlockName", expected, file=file, line=blocks[0].line))
    if blocks:
        return topology_of_blocks(_KIND, file, blocks, choice)
    return topology_of_switches(_KIND, file, switches, choice)


def _lines(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line numbers and pairs of lower-case keys and values; comments are left out."""
    try:
        text = read_bounded(file, _MOST_BYTES, _KIND).decode()
    except UnicodeDecodeError as error:
        raise InputError(Mistake(f"bytes that are no text (at byte {error.start})", _KIND, file=file)) from None
    for number, line in enumerate(text.splitlines(), 1):
        plain = line.split("#", 1)[0].strip()
        if not plain:
            continue
        pairs: dict[str, str] = {}
        rest = plain
        while rest.strip():
            match = _PAIR.match(rest)
            key = match[1].lower() if match else ""
            if not match or key not in _KNOWN or key in pairs:
                found = f"{rest.strip()[:60]!r}"
                raise InputError(
                    Mistake(found, f"{_KIND}: each of {', '.join(sorted(_KNOWN))} once", file=file, line=number)
                )
            pairs[key] = match[2]
            rest = rest[match.end() :]
        yield number, pairs


def _entry(line: int, pairs: dict[str, str]) -> Entry | None:
    if "blocksizes" in pairs:
        return None
    name = pairs.get("switchname") or pairs.get("blockname")
    if not name:
        raise ValueError("a line without a name")
    if pairs.get("nodes", "").upper() == "ALL":
        raise ValueError("Nodes=ALL, which does not name the nodes")
    nodes = expand(pairs["nodes"]) if "nodes" in pairs else []
    below = expand(pairs["switches"]) if "switches" in pairs else []
    if bool(nodes) == bool(below) or ("blockname" in pairs and below):
        raise ValueError(
            f"{name} with both or neither of Nodes and Switches" if "switchname" in pairs else "a block without nodes"
        )
    return Entry(name, line, nodes, below)


def topology_of_blocks(title: str, file: Path, blocks: Sequence[Entry], choice: Choice) -> Topology:
    """Take blocks as leaf switches.

    Parameters
    ----------
    title : str
        Name of the file's format, for messages.
    file : Path
        Where they were read.
    blocks : sequence of Entry
        The entries of blocks.
    choice : Choice
        Which topology of the file, and which of its nodes, are meant.
    """
    paths: dict[str, tuple[str, ...]] = {}
    for block in blocks:
        for node in block.nodes:
            if node in paths:
                found = f"{node} in {block.name}"
                raise InputError(
                    Mistake(found, f"each node once: it is in {paths[node][0]}", file=file, line=block.line)
                )
            paths[node] = (block.name,)
    notes = [
        "cluster.fabric: blocks count as leaf switches; NVLink between nodes, which blocks often mean, is not modelled"
    ]
    return topology_of_tiers(f"{title}, blocks", file, paths, choice, notes=notes)


def topology_of_switches(title: str, file: Path, switches: Sequence[Entry], choice: Choice) -> Topology:
    """Follow the switches up from the nodes.

    Parameters
    ----------
    title : str
        Name of the file's format, for messages.
    file : Path
        Where they were read.
    switches : sequence of Entry
        The entries of switches.
    choice : Choice
        Which topology of the file, and which of its nodes, are meant.
    """
    by_name: dict[str, Entry] = {}
    for switch in switches:
        if switch.name in by_name:
            expected = f"each switch once: {switch.name} is on line {by_name[switch.name].line}"
            raise InputError(Mistake(f"{switch.name} a second time", expected, file=file, line=switch.line))
        by_name[switch.name] = switch
    above: dict[str, str] = {}
    leaf_of: dict[str, str] = {}
    for switch in switches:
        for below, known in ((switch.switches, above), (switch.nodes, leaf_of)):
            for name in below:
                if known is above and name not in by_name:
                    raise InputError(
                        Mistake(f"the switch {name}", "a switch with a line of its own", file=file, line=switch.line)
                    )
                if name in known:
                    expected = f"one switch above it: it is below {known[name]}"
                    raise InputError(Mistake(f"{name} below {switch.name}", expected, file=file, line=switch.line))
                known[name] = switch.name
    return topology_of_tiers(
        f"{title}, tree", file, {n: _up(file, s, above, by_name) for n, s in leaf_of.items()}, choice
    )


def _up(file: Path, switch: str, above: dict[str, str], by_name: dict[str, Entry]) -> tuple[str, ...]:
    path = [switch]
    while path[-1] in above:
        path.append(above[path[-1]])
        if len(path) > _MOST_LEVELS:
            line = by_name[switch].line
            raise InputError(
                Mistake(f"switches above each other in a circle from {switch}", "a tree", file=file, line=line)
            )
    return tuple(path)
