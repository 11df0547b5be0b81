"""Cuts recordings into units - windows of steps, or groups of sequences - to plan on some and to score on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake, visible
from moe_placer.instance import Instance
from moe_placer.traffic.drawn_tokens import leave_out_others
from moe_placer.traffic.readers import names_of_arrays, read_array, read_load
from moe_placer.traffic.recording import Recording
from moe_placer.traffic.sources import read_nodes_of_tokens
from moe_placer.traffic.stored_choices import by_group, count_all, joined
from moe_placer.traffic.token_table import TABLE_SUFFIXES
from moe_placer.traffic.trace_reader import read_trace

__all__ = ["MOST_UNITS", "Units", "pool", "read_units", "read_units_by_node"]

Ids = npt.NDArray[np.int64]

MOST_UNITS = 128  # of a recording; neighbours are merged beyond


@dataclass(frozen=True, eq=False)
class Units:
    """A recording in units that resemble each other less than tokens within one do.

    Attributes
    ----------
    name : str
        Of the recording.
    kind : str
        ``windows``, ``sequences``, ``blocks``, or ``whole``: one unit, since nothing in it is told apart.
    plan, score : tuple of Recording
        Units to plan on, and units to score on. Windows and blocks: the first half, and the second, as a plan is made
        from the past. Sequences, which have no order: every second one.
    """

    name: str
    kind: str
    plan: tuple[Recording, ...]
    score: tuple[Recording, ...]


def read_units_by_node(file: Path, instance: Instance) -> tuple[Units, ...]:
    """Read a recording in units, for each node those of its own source ranks where whole tokens tell them apart.

    Returns
    -------
    tuple of Units
        One for each node, or one for all nodes where the instance takes them alike or the recording has counts only.

    Raises
    ------
    InputError
        As `read_units`; or the source ranks do not fit the nodes.
    """
    names = _names(file)
    if getattr(instance.traffic, "sources", "mix") != "recorded" or not {"topk", "token_source"} <= set(names):
        return (read_units(file, instance),)
    whole = read_trace(file, instance)
    assert whole.topk is not None
    node_of = leave_out_others(read_nodes_of_tokens(file, instance, len(whole.topk)), instance)
    missing = set(range(instance.cluster.nodes)) - set(node_of.tolist())
    if missing:
        expected = "some tokens of every node; sources: mix takes all nodes alike"
        raise InputError(Mistake(f"no tokens of node {min(missing)}", expected, "token_source", file))
    return tuple(
        _of_tokens(file, instance, names, whole, np.flatnonzero(node_of == node), f"{whole.name}, node {node}")
        for node in range(instance.cluster.nodes)
    )


def read_units(file: Path, instance: Instance) -> Units:
    """Read a recording in units: windows of all counts where that is enough, else groups of its tokens.

    Raises
    ------
    InputError
        It is missing, damaged, or not of the instance's model; or it has counts only, and the instance's dispatch
        depends on whole tokens.
    """
    names = _names(file)
    if "window_load" in names and not instance.placement.counts_tokens_once:
        windows = _windows(file, instance)
        if len(windows) > 1 or "topk" not in names:
            return _halves(visible(file.name), "windows" if len(windows) > 1 else "whole", windows)
    if "topk" in names:
        whole = read_trace(file, instance)
        assert whole.topk is not None
        kept = np.flatnonzero(leave_out_others(np.zeros(len(whole.topk), np.int64), instance) == 0)
        return _of_tokens(file, instance, names, whole, kept, whole.name)
    if instance.placement.counts_tokens_once:
        expected = f"whole tokens (`topk`), on which placement.dispatch: {instance.placement.dispatch} depends"
        raise InputError(Mistake("counts only", expected, file=file))
    return _halves(visible(file.name), "whole", [read_load(file, instance)])


def _names(file: Path) -> list[str]:
    """Name the arrays of a recording, so far as its kind has names; a table has whole tokens."""
    if file.suffix.lower() in TABLE_SUFFIXES:
        return ["topk"]
    return names_of_arrays(file) if file.suffix.lower() == ".npz" else []


def _windows(file: Path, instance: Instance) -> list[Recording]:
    table = read_array(file, "window_load")
    shape = (len(instance.moe_layers), instance.model.experts)
    if table.ndim != 3 or table.shape[1:] != shape or table.dtype.kind not in "iuf" or not len(table):
        found = f"{table.dtype} of shape {list(table.shape)}"
        raise InputError(Mistake(found, f"counts [windows, {shape[0]}, {shape[1]}]", "window_load", file))
    counts = table.astype(np.float64)
    if not np.isfinite(counts).all() or counts.min() < 0 or not counts.sum(axis=(0, 2)).all():
        expected = "counts of 0 or more, some of them above 0 in every layer"
        raise InputError(Mistake("a count below 0, none, or no number", expected, "window_load", file))
    parts = np.array_split(counts, min(len(counts), MOST_UNITS))
    return [_counted(file, part.sum(axis=0), instance.model.top_k) for part in parts]


def _counted(file: Path, load: npt.NDArray[np.float64], top_k: int) -> Recording:
    return Recording(visible(file.name), load, load.sum(axis=1) / top_k)


def _of_tokens(file: Path, instance: Instance, names: Sequence[str], whole: Recording, chosen: Ids, name: str) -> Units:
    """Group the chosen ones of whole tokens by sequence, else by window, else in blocks."""
    topk = whole.topk
    assert topk is not None
    key = next((name for name in ("seq", "token_window") if name in names), None)
    if key is None:
        ids, kind = np.arange(len(topk)), "blocks"
    else:
        ids, kind = read_array(file, key), "sequences" if key == "seq" else "windows"
        if ids.shape != topk.shape[:1] or ids.dtype.kind not in "iu":
            expected = f"a whole number for each of the {len(topk):,} tokens"
            raise InputError(Mistake(f"{ids.dtype} of shape {list(ids.shape)}", expected, key, file))
    _, number = np.unique(ids[chosen], return_inverse=True)
    count = int(number.max()) + 1
    unit = np.full(len(topk), -1)
    unit[chosen] = number * min(count, MOST_UNITS) // count
    parts = by_group(topk, unit, min(count, MOST_UNITS))
    units = [_traced(name, part, instance.model.experts) for part in parts]
    if kind == "sequences" and len(units) > 1:
        return Units(name, kind, tuple(units[::2]), tuple(units[1::2]))
    return _halves(name, kind if len(units) > 1 else "whole", units)


def _traced(name: str, topk: npt.NDArray[np.integer], experts: int) -> Recording:
    return Recording(name, count_all(topk, experts), np.full(topk.shape[1], float(len(topk))), topk)


def _halves(name: str, kind: str, units: Sequence[Recording]) -> Units:
    half = max(1, len(units) // 2)
    return Units(name, kind, tuple(units[:half]), tuple(units[half:]))


def pool(units: Sequence[Recording]) -> Recording:
    """Return some units of a recording as one recording."""
    topk = None
    if all(unit.topk is not None for unit in units):
        topk = joined([unit.topk for unit in units if unit.topk is not None])
    load = np.sum([unit.load for unit in units], axis=0)
    return Recording(units[0].name, load, np.sum([unit.tokens for unit in units], axis=0), topk)
