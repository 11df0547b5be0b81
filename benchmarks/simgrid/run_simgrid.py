"""Has SimGrid run all-to-alls on an instance's fabric."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from benchmarks.simgrid.models import NetworkModel
from benchmarks.simgrid.paths import list_paths
from moe_placer.errors import UsageError
from moe_placer.experiments.process import run_child
from moe_placer.fabric import build_fabric
from moe_placer.instance import Instance
from moe_placer.instance.sizes import GB

__all__ = ["require_simgrid", "simulate"]

Floats = npt.NDArray[np.float64]

_CHILD = (sys.executable, "-P", "-m", "benchmarks.simgrid.simgrid_process")
_PATIENCE_S = 3600.0


def require_simgrid() -> None:
    """Refuse to go on where SimGrid is not installed.

    Raises
    ------
    UsageError
        It is not.
    """
    if find_spec("simgrid") is None:
        raise UsageError(
            "this needs SimGrid: pip install 'moe-placer[simgrid]' (compiles for minutes; see pyproject.toml)"
        )


def simulate(
    instance: Instance, model: NetworkModel, cases: Sequence[Sequence[tuple[float, Floats]]]
) -> list[list[float]]:
    """Run all-to-alls in SimGrid.

    Parameters
    ----------
    cases : sequence of sequences of (µs, float array [nodes, nodes])
        Transfers that share the fabric: when each starts, in order, and the bytes from node s to node d, of which
        SimGrid takes whole ones. Cases do not meet.

    Returns
    -------
    list of list of float
        When the last flow of each transfer ended, in µs from the begin of its case.

    Raises
    ------
    UsageError
        SimGrid is not installed, or failed.
    """
    require_simgrid()
    graph = build_fabric(instance)
    usable = GB * instance.cluster.fabric.link_utilization
    paths = list_paths(graph, instance.cluster.nodes)
    task = {
        "config": dict(model.config),
        "latency_us": model.latency_us,
        "fair_pairs": model.fair_pairs,
        "bytes_per_s": [usable * float(data["bandwidth"]) for _, _, data in graph.edges(data=True)],
        "paths": [[source, target, between] for (source, target), between in paths.items()],
        "cases": [[(start, _flows(sent, paths)) for start, sent in case] for case in cases],
    }
    ended = run_child(_CHILD, json.dumps(task), _PATIENCE_S)
    if ended.output is None:
        raise UsageError(f"SimGrid failed: {ended.failed}")
    ends: list[list[float]] = json.loads(ended.output)
    return ends


def _flows(sent: Floats, paths: Mapping[tuple[int, int], list[list[int]]]) -> list[tuple[int, int, int, int]]:
    """Return source, target, number of the path, and bytes."""
    return [
        (*ends, number, max(1, round(sent[ends] / len(between))))
        for ends, between in paths.items()
        if sent[ends] > 0
        for number in range(len(between))
    ]
