"""Recordings that tell apart on which rank a token started: each node gets the traffic of its own ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake, visible
from moe_placer.instance import Instance
from moe_placer.traffic.drawn_tokens import leave_out_others
from moe_placer.traffic.readers import read_array, read_load
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.traffic.stored_choices import by_group, count_all
from moe_placer.traffic.trace_reader import read_trace

__all__ = ["read_load_by_source", "read_nodes_of_tokens", "read_trace_by_source"]


def read_load_by_source(file: Path, instance: Instance) -> Traffic:
    """Read ``source_load`` [source ranks, MoE layers, experts] of a .npz file; ranks of a node follow one another.

    Raises
    ------
    InputError
        The file is missing or damaged, has no source ranks, or they do not fit the instance's nodes or model.
    """
    whole = read_load(file, instance)
    table = _source_load(file, whole, instance)
    nodes = table.reshape(instance.cluster.nodes, -1, *table.shape[1:]).sum(axis=1)
    empty = np.argwhere(nodes.sum(axis=2) <= 0)
    if len(empty):
        node, layer = map(int, empty[0])
        expected = "some tokens from every node in every layer; sources: mix takes all nodes alike"
        raise InputError(Mistake(f"no tokens of node {node} in MoE layer {layer}", expected, "source_load", file))
    top_k = instance.model.top_k
    recordings = [
        Recording(f"{visible(file.name)}, node {node}", load, load.sum(axis=1) / top_k)
        for node, load in enumerate(nodes)
    ]
    return Traffic(tuple(recordings), np.eye(len(nodes)))


def read_trace_by_source(file: Path, instance: Instance) -> Traffic:
    """Read ``topk`` with ``token_source`` [tokens] of a .npz file.

    Raises
    ------
    InputError
        As `read_load_by_source`.
    """
    whole = read_trace(file, instance)
    assert whole.topk is not None
    nodes, experts = instance.cluster.nodes, instance.model.experts
    node_of = leave_out_others(read_nodes_of_tokens(file, instance, len(whole.topk)), instance)
    recordings = []
    for node, topk in enumerate(by_group(whole.topk, node_of, nodes)):
        if not len(topk):
            expected = "some tokens of every node; sources: mix takes all nodes alike"
            raise InputError(Mistake(f"no tokens of node {node}", expected, "token_source", file))
        counts = count_all(topk, experts)
        recordings.append(
            Recording(f"{visible(file.name)}, node {node}", counts, np.full(len(counts), float(len(topk))), topk)
        )
    return Traffic(tuple(recordings), np.eye(nodes))


def read_nodes_of_tokens(file: Path, instance: Instance, tokens: int) -> npt.NDArray[np.int64]:
    """Read on which node each of so many tokens started (``token_source``); ranks of a node follow one another.

    Raises
    ------
    InputError
        As `read_load_by_source`.
    """
    ranks = len(_source_load(file, read_load(file, instance), instance))
    source = read_array(file, "token_source")
    if source.shape != (tokens,) or source.dtype.kind not in "iu":
        expected = f"whole numbers [{tokens} tokens]"
        raise InputError(Mistake(f"{source.dtype} of shape {list(source.shape)}", expected, "token_source", file))
    if source.min() < 0 or source.max() >= ranks:
        worst = source.min() if source.min() < 0 else source.max()
        raise InputError(Mistake(f"rank {worst}", f"ranks from 0 to {ranks - 1}", "token_source", file))
    nodes: npt.NDArray[np.int64] = source.astype(np.int64) // (ranks // instance.cluster.nodes)
    return nodes


def _source_load(file: Path, whole: Recording, instance: Instance) -> npt.NDArray[np.float64]:
    """Return the counts by source rank, which must add up to all counts."""
    if file.suffix.lower() != ".npz":
        expected = "an .npz file that `moe-placer import` wrote; or sources: mix"
        raise InputError(Mistake("a file without source ranks", expected, file=file))
    table = read_array(file, "source_load")
    shape, nodes = whole.load.shape, instance.cluster.nodes
    if table.dtype.kind not in "iuf" or table.ndim != 3 or table.shape[1:] != shape:
        found = f"{table.dtype} of shape {list(table.shape)}"
        raise InputError(Mistake(found, f"counts [source ranks, {shape[0]}, {shape[1]}]", "source_load", file))
    if len(table) % nodes:
        expected = f"a multiple of cluster.nodes ({nodes}); or sources: mix"
        raise InputError(Mistake(f"{len(table)} source ranks", expected, "source_load", file))
    if not np.array_equal(table.sum(axis=0), whole.load):
        expected = "counts that add up to `load`"
        raise InputError(Mistake("other counts", expected, "source_load", file))
    return table.astype(np.float64)
