"""Finds out what describes a cluster's network, and reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from moe_placer.engines.topology.ibnetdiscover import read_ibnetdiscover
from moe_placer.engines.topology.json_topologies import read_json_topology
from moe_placer.engines.topology.nccl_xml import read_nccl_xml
from moe_placer.engines.topology.slurm_conf import read_slurm_conf
from moe_placer.engines.topology.slurm_yaml import read_slurm_yaml
from moe_placer.engines.topology.tiers import Choice
from moe_placer.engines.topology.topology import Topology
from moe_placer.errors import InputError, Mistake

__all__ = ["KINDS", "read_topologies"]

KINDS = (
    "Slurm's topology.conf or topology.yaml, Topograph's graph or `kubectl get nodes -o json` (.json), ibnetdiscover's "
    "output, or NCCL's topology (.xml)"
)
_PEEKED = 100_000
_SAME_SPEED = 0.05  # files round: NCCL states Mbit/s, ibnetdiscover lanes


def read_topologies(files: Sequence[Path], choice: Choice) -> Topology:
    """Read a description of the network, one of a node's inside, or one of each.

    Raises
    ------
    InputError
        A file is of no known kind, damaged, or more than an instance can hold; or two say the same.
    """
    read = [(file, _read(file, choice)) for file in files]
    nodes = [(file, topology) for file, topology in read if not topology.nodes]
    networks = [(file, topology) for file, topology in read if topology.nodes]
    for some, what in ((nodes, "the inside of a node"), (networks, "the network")):
        if len(some) > 1:
            raise InputError(
                Mistake(f"a second file on {what}", f"one of them: {some[0][0].name} is one", file=some[1][0])
            )
    if not networks:
        return nodes[0][1]
    network = networks[0][1]
    if not nodes:
        return network
    inside = nodes[0][1]
    if network.gpus_per_node and network.gpus_per_node != inside.gpus_per_node:
        expected = f"{network.gpus_per_node} as in {networks[0][0].name}"
        raise InputError(Mistake(f"{inside.gpus_per_node} GPUs", expected, file=nodes[0][0]))
    one, other = network.node_gb_per_s, inside.node_gb_per_s
    if one and other and abs(one - other) > _SAME_SPEED * one:
        found = f"NICs of {other:g} GB/s together, but {one:g} GB/s in {networks[0][0].name}"
        expected = "the same in both: are rails missing in one, or NICs of other networks in the other?"
        raise InputError(Mistake(found, expected, file=nodes[0][0]))
    return dataclasses.replace(
        network,
        format=f"{network.format} and {inside.format}",
        gpus_per_node=inside.gpus_per_node,
        node_gb_per_s=network.node_gb_per_s or inside.node_gb_per_s,
        notes=(*network.notes, *inside.notes),
    )


def _read(file: Path, choice: Choice) -> Topology:
    suffix = file.suffix.lower()
    if suffix in {".yaml", ".yml"}:
        return read_slurm_yaml(file, choice)
    if suffix == ".json":
        return read_json_topology(file, choice)
    if suffix == ".xml":
        return read_nccl_xml(file)
    start = _start(file)
    if "Switch\t" in start or "Ca\t" in start or "switchguid=" in start or "caguid=" in start:
        return read_ibnetdiscover(file, choice)
    if any(key in start.lower() for key in ("switchname", "blockname", "blocksizes")):
        return read_slurm_conf(file, choice)
    raise InputError(Mistake("an unknown kind of file", f"one of: {KINDS}", file=file))


def _start(file: Path) -> str:
    """Return how a file begins; endless devices and folders are not opened."""
    if not file.is_file():
        found = "a folder" if file.is_dir() else "no ordinary file" if file.exists() else "no such file"
        raise InputError(Mistake(found, f"one of: {KINDS}", file=file))
    try:
        with file.open("rb") as stream:
            return stream.read(_PEEKED).decode("utf-8", "replace")
    except OSError as error:
        raise InputError(
            Mistake(f"a file that cannot be read ({error.strerror})", f"one of: {KINDS}", file=file)
        ) from None
