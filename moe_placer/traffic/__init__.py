"""Routing statistics: recorded traces, recorded loads, or seeded synthetic tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake
from moe_placer.instance import Instance
from moe_placer.instance.schema import SyntheticTraffic, TraceTraffic
from moe_placer.traffic.drawn_tokens import sample
from moe_placer.traffic.readers import read_load
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.traffic.sources import read_load_by_source, read_trace_by_source
from moe_placer.traffic.synthetic import synthesize
from moe_placer.traffic.trace_reader import read_trace
from moe_placer.traffic.windows import cut_in_windows

__all__ = ["Recording", "Traffic", "cut_in_windows", "load_traffic", "make_traffic"]


def load_traffic(instance: Instance) -> Traffic:
    """Read or generate the traffic that an instance names.

    Raises
    ------
    InputError
        No files are named, a file is wrong, or the mix does not fit; what is wrong in any file is listed.
    """
    traffic = instance.traffic
    if isinstance(traffic, SyntheticTraffic):
        return synthesize(instance, traffic.seed)
    if not traffic.files:
        raise InputError(Mistake("none", "recorded files: name them there, or give --trace FILE", "traffic.files"))
    columns = len(traffic.files)
    if traffic.mix is not None and any(len(row) != columns for row in traffic.mix):
        expected = f"one share per trace file ({columns} given)"
        raise InputError(Mistake(f"rows of {len(traffic.mix[0])} shares", expected, "traffic.mix"))
    if traffic.sources == "recorded":
        if columns > 1:
            raise InputError(Mistake(f"{columns} files", "one file for sources: recorded", "traffic.files"))
        by_source = read_trace_by_source if isinstance(traffic, TraceTraffic) else read_load_by_source
        return by_source(instance.trace_files[0], instance)
    read = _read_sample if isinstance(traffic, TraceTraffic) else read_load
    recordings: list[Recording] = []
    mistakes: list[Mistake] = []
    for file in instance.trace_files:
        try:
            recordings.append(read(file, instance))
        except InputError as error:
            mistakes += error.mistakes
    if mistakes:
        raise InputError(mistakes)
    mix = np.full((instance.cluster.nodes, columns), 1 / columns) if traffic.mix is None else np.array(traffic.mix)
    return Traffic(tuple(recordings), mix)


def _read_sample(file: Path, instance: Instance) -> Recording:
    return sample(read_trace(file, instance), instance)


def make_traffic(
    instance: Instance,
    topk: Sequence[npt.ArrayLike] = (),
    load: Sequence[npt.ArrayLike] = (),
    mix: npt.ArrayLike | None = None,
) -> Traffic:
    """Build traffic from arrays instead of files, one array per domain of text.

    Parameters
    ----------
    instance : Instance
    topk : sequence of int arrays [tokens, MoE layers, top_k]
        The experts that each token chose, counted from 0.
    load : sequence of arrays [MoE layers, experts]
        How many times each expert was chosen; for where only this is known. Give one of ``topk`` and ``load``.
    mix : float array [nodes, domains], optional
        Share of each node's tokens that are like each domain; rows sum to 1. Absent: every node alike.

    Raises
    ------
    InputError
        An array does not fit the instance's model, or the mix does not fit arrays and nodes.
    """
    recordings = [_of_topk(instance, f"topk[{i}]", array) for i, array in enumerate(topk)]
    recordings += [_of_load(instance, f"load[{i}]", array) for i, array in enumerate(load)]
    if not recordings or (len(topk) and len(load)):
        raise InputError(Mistake("none of them or both", "arrays in either topk or load"))
    nodes, domains = instance.cluster.nodes, len(recordings)
    shares = np.full((nodes, domains), 1 / domains) if mix is None else np.array(mix, dtype=np.float64)
    fits = shares.shape == (nodes, domains) and (shares >= 0).all() and np.allclose(shares.sum(axis=-1), 1, atol=1e-6)
    if not fits:
        expected = f"shares of at least 0 in rows that sum to 1 [{nodes} nodes, {domains} domains]"
        raise InputError(Mistake(f"an array of shape {shares.shape}", expected, "mix"))
    return Traffic(tuple(recordings), shares)


def _of_topk(instance: Instance, name: str, array: npt.ArrayLike) -> Recording:
    ids = np.asarray(array)
    layers, experts, k = len(instance.moe_layers), instance.model.experts, instance.model.top_k
    if ids.ndim != 3 or ids.shape[1:] != (layers, k) or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        expected = f"whole numbers [tokens, {layers} MoE layers, top_k {k}]"
        raise InputError(Mistake(f"{ids.dtype} of shape {ids.shape}", expected, name))
    if ids.min() < 0 or ids.max() >= experts:
        raise InputError(Mistake(f"ids from {ids.min()} to {ids.max()}", f"ids from 0 to {experts - 1}", name))
    if k > 1 and (np.diff(np.sort(ids, axis=2), axis=2) == 0).any():
        raise InputError(Mistake("a token that chooses an expert twice", "different experts for each token", name))
    counts = [np.bincount(ids[:, layer].ravel(), minlength=experts) for layer in range(layers)]
    return Recording(name, np.array(counts, dtype=np.float64), np.full(layers, float(len(ids))), ids.astype(np.uint16))


def _of_load(instance: Instance, name: str, array: npt.ArrayLike) -> Recording:
    counts = np.array(array, dtype=np.float64)
    shape = (len(instance.moe_layers), instance.model.experts)
    if counts.shape != shape:
        raise InputError(Mistake(f"an array of shape {counts.shape}", f"[MoE layers, experts] = {shape}", name))
    if not np.isfinite(counts).all() or counts.min() < 0 or not (counts.sum(axis=1) > 0).all():
        expected = "counts of 0 or more, some of them above 0 in every layer"
        raise InputError(Mistake("a count below 0, none, or no number", expected, name))
    return Recording(name, counts, counts.sum(axis=1) / instance.model.top_k)
