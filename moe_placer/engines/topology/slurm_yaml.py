"""Slurm's ``topology.yaml``: one or several topologies, each a tree, blocks, or flat."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_placer.engines.topology.hostlist import expand
from moe_placer.engines.topology.slurm_conf import Entry, topology_of_blocks, topology_of_switches
from moe_placer.engines.topology.tiers import Choice
from moe_placer.engines.topology.topology import Topology
from moe_placer.errors import InputError, Mistake
from moe_placer.instance.yaml_reader import Document, dotted, read_yaml

__all__ = ["read_slurm_yaml"]

_KIND = "Slurm's topology.yaml"
_EXPECTED = "a list of topologies, each with tree, block or flat"

Place = tuple[str | int, ...]


def read_slurm_yaml(file: Path, choice: Choice) -> Topology:
    """Read the default topology, or the only one.

    Raises
    ------
    InputError
        The file is damaged, says not which topology to take, or one that an instance cannot hold.
    """
    document = read_yaml(file)
    if document.mistakes:
        raise InputError(document.mistakes)
    if not isinstance(document.data, list) or not all(isinstance(entry, dict) for entry in document.data):
        raise _wrong(document, (), "no list of topologies", _EXPECTED)
    index = _default(document)
    topology, place = document.data[index], (index,)
    kinds = [kind for kind in ("tree", "block", "flat") if topology.get(kind)]
    if len(kinds) != 1:
        raise _wrong(document, place, f"{' and '.join(kinds) or 'none'} of tree, block and flat", "one of them")
    if kinds[0] == "flat":
        expected = "tree or block: a flat topology names no nodes; give --gpus instead of --topology"
        raise _wrong(document, place, "a flat topology", expected)
    if kinds[0] == "tree":
        entries = _entries(document, (index, "tree", "switches"), "switch")
        return topology_of_switches(_KIND, file, entries, choice)
    return topology_of_blocks(_KIND, file, _entries(document, (index, "block", "blocks"), "block"), choice)


def _default(document: Document) -> int:
    """Return the index of the topology to read."""
    defaults = [i for i, topology in enumerate(document.data) if topology.get("cluster_default") is True]
    if len(defaults) == 1:
        return defaults[0]
    if len(document.data) == 1:
        return 0
    found = f"{len(document.data)} topologies, {len(defaults)} with cluster_default: true"
    raise _wrong(document, (), found, "one with cluster_default: true")


def _entries(document: Document, place: Place, key: str) -> list[Entry]:
    here: Any = document.data
    for part in place:
        here = here.get(part) if isinstance(here, Mapping) else here[part] if isinstance(part, int) else None
    if not isinstance(here, list) or not here:
        raise _wrong(document, place, "no list", f"a list of entries with {key}, and children or nodes")
    entries = []
    for index, entry in enumerate(here):
        at = (*place, index)
        name = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise _wrong(document, at, "an entry without a name", f"{key}: NAME")
        nodes, below = (_hosts(document, at, entry, part) for part in ("nodes", "children"))
        if bool(nodes) == bool(below) or (key == "block" and below):
            raise _wrong(document, at, f"{name} with both or neither of nodes and children", "one of them")
        entries.append(Entry(name, document.line(at), nodes, below))
    return entries


def _hosts(document: Document, place: Place, entry: Mapping[str, Any], key: str) -> list[str]:
    value = entry.get(key)
    if value is None:
        return []
    try:
        if not isinstance(value, str):
            raise ValueError(f"{value!r:.60}, which is no text")
        return expand(value)
    except ValueError as error:
        raise _wrong(document, (*place, key), str(error), "a host list such as node[01-16]") from None


def _wrong(document: Document, place: Place, found: str, expected: str) -> InputError:
    return InputError(Mistake(found, expected, dotted(place), document.file, document.line(place)))
