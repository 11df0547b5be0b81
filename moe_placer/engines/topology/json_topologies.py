"""Nodes and the switches above them as JSON: Topograph's graph, and Kubernetes nodes with labels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_placer.engines.topology.tiers import Choice, choose, topology_of_tiers
from moe_placer.engines.topology.topology import Topology
from moe_placer.errors import InputError, Mistake
from moe_placer.files import not_json, read_bounded

__all__ = ["read_json_topology"]

_KIND = "Topograph's graph ({instances: [...]}) or the output of `kubectl get nodes -o json`"
_MOST_BYTES = 200_000_000
_TIER = re.compile(r"fabric\.topograph\.run/tier-(\d{1,2})$")
_OLD_LEVELS = tuple(f"network.topology.nvidia.com/{level}" for level in ("leaf", "spine", "core"))
_DOMAINS = ("accelerator.topograph.run/domain", "network.topology.nvidia.com/accelerator", "nvidia.com/gpu.clique")
_GPUS = ("nvidia.com/gpu", "amd.com/gpu")
_MOST_LEVELS = 20


def read_json_topology(file: Path, choice: Choice) -> Topology:
    """Read Topograph's graph, or Kubernetes nodes whose labels name their switches.

    Raises
    ------
    InputError
        The file is damaged or something else, a node lacks a level, or an instance cannot hold it.
    """
    try:
        content = json.loads(read_bounded(file, _MOST_BYTES, _KIND))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise InputError(Mistake(not_json(error), _KIND, file=file, line=line)) from None
    if isinstance(content, dict) and isinstance(content.get("instances"), list):
        return _graph(file, content["instances"], choice)
    items = content.get("items") if isinstance(content, dict) else None
    if isinstance(items, list) and items:
        return _kubernetes(file, items, choice)
    raise InputError(Mistake("neither instances nor items", _KIND, file=file))


def _graph(file: Path, instances: Sequence[Any], choice: Choice) -> Topology:
    paths: dict[str, tuple[str, ...]] = {}
    domains: dict[str, list[str]] = {}
    for index, instance in enumerate(instances):
        name, layers = (
            (instance.get("id"), instance.get("network_layers")) if isinstance(instance, dict) else (None, None)
        )
        named = (
            isinstance(layers, list) and len(layers) <= _MOST_LEVELS and all(isinstance(s, str) and s for s in layers)
        )
        if not isinstance(name, str) or not name or not named or name in paths:
            expected = "an id of its own, and network_layers: names of switches, the closest first"
            raise InputError(Mistake(f"{str(instance)[:60]}", expected, f"instances[{index}]", file))
        paths[name] = tuple(layers or ())
        _note_domain(domains, name, instance.get("labels"))
    return topology_of_tiers("Topograph's graph", file, paths, choice, notes=_domain_notes(domains))


def _kubernetes(file: Path, items: Sequence[Any], choice: Choice) -> Topology:
    labels: dict[str, Mapping[str, Any]] = {}
    gpus: dict[str, int] = {}
    for index, item in enumerate(items):
        metadata = item.get("metadata") if isinstance(item, dict) else None
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if not isinstance(name, str) or not name:
            raise InputError(Mistake("a node without a name", "metadata.name", f"items[{index}]", file))
        own = metadata.get("labels") if isinstance(metadata, dict) else None
        labels[name] = own if isinstance(own, dict) else {}
        gpus[name] = _gpus(item)
    if any(gpus.values()):  # of a cluster with GPUs, nodes without any are no part
        labels = {name: own for name, own in labels.items() if gpus[name]}
    wanted = choose(file, dict.fromkeys(labels, ()), choice)
    levels = choice.levels or _find_levels(file, [labels[name] for name in wanted])
    paths: dict[str, tuple[str, ...]] = {}
    domains: dict[str, list[str]] = {}
    for name in wanted:
        missing = next((level for level in levels if not isinstance(labels[name].get(level), str)), None)
        if missing is not None:
            expected = f"the label {missing} on every node; --levels names others, --hosts leaves nodes out"
            raise InputError(Mistake(f"{name} without it", expected, "labels", file))
        paths[name] = tuple(str(labels[name][level]) for level in levels)
        _note_domain(domains, name, labels[name])
    _check_nested(file, paths, levels)
    counts = {gpus[name] for name in wanted}
    if len(counts) > 1:
        expected = "as many on every node; --hosts chooses among them"
        raise InputError(
            Mistake(f"nodes of {' and '.join(map(str, sorted(counts)))} GPUs", expected, "status.allocatable", file)
        )
    title = f"Kubernetes nodes by {', '.join(levels)}"
    return topology_of_tiers(
        title, file, paths, choice, gpus_per_node=max(counts) or None, notes=_domain_notes(domains)
    )


def _gpus(item: Mapping[str, Any]) -> int:
    status = item.get("status")
    for kind in ("allocatable", "capacity"):
        resources = status.get(kind) if isinstance(status, dict) else None
        for key in _GPUS:
            text = resources.get(key) if isinstance(resources, dict) else None
            if isinstance(text, str | int) and re.fullmatch(r"\d{1,3}", str(text)):
                return int(text)
    return 0


def _find_levels(file: Path, labels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Find the labels that Topograph sets, the closest switch first."""
    keys = {key for own in labels for key in own}
    tiers = sorted((int(match[1]), key) for key in keys if (match := _TIER.match(key)))
    found = [key for _, key in tiers] or [key for key in _OLD_LEVELS if key in keys]
    if not found:
        expected = "--levels: the labels that name a node's switches, the closest first"
        raise InputError(Mistake("no labels of Topograph's", expected, "labels", file))
    return found


def _check_nested(file: Path, paths: Mapping[str, tuple[str, ...]], levels: Sequence[str]) -> None:
    """Refuse levels in the wrong order: a switch has one switch above it."""
    for lower, upper in zip(range(len(levels)), range(1, len(levels)), strict=False):
        above: dict[str, str] = {}
        for path in paths.values():
            if above.setdefault(path[lower], path[upper]) != path[upper]:
                found = f"{path[lower]} ({levels[lower]}) below both {above[path[lower]]} and {path[upper]}"
                raise InputError(Mistake(found, "labels in order, the closest switch first", "--levels", file))


def _note_domain(domains: dict[str, list[str]], node: str, labels: Any) -> None:
    for key in _DOMAINS:
        domain = labels.get(key) if isinstance(labels, dict) else None
        if isinstance(domain, str) and domain:
            domains.setdefault(domain, []).append(node)
            return


def _domain_notes(domains: Mapping[str, Sequence[str]]) -> list[str]:
    largest = max(map(len, domains.values()), default=0)
    if largest < 2:
        return []
    return [f"cluster: NVLink domains reach over up to {largest} nodes; see cluster.nvlink_domain_nodes"]
