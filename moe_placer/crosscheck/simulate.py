"""Has SimGrid run all-to-alls on an instance's fabric."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from moe_placer.bench.process import run_child
from moe_placer.crosscheck.models import NetworkModel
from moe_placer.crosscheck.paths import list_paths
from moe_placer.errors import UsageError
from moe_placer.fabric import build_fabric
from moe_placer.instance import Instance
from moe_placer.instance.sizes import GB

__all__ = ["simulate"]

Floats = npt.NDArray[np.float64]

_CHILD = (sys.executable, "-P", "-m", "moe_placer.crosscheck.child")
_PATIENCE_S = 3600.0


def simulate(instance: Instance, model: NetworkModel, transfers: Sequence[Floats]) -> list[float]:
    """Run transfers one after the other, each alone, in SimGrid.

    Parameters
    ----------
    transfers : sequence of float arrays [nodes, nodes]
        Bytes from node s to node d; SimGrid takes whole ones.

    Returns
    -------
    list of float
        µs until the last flow of each has ended.

    Raises
    ------
    UsageError
        SimGrid is not installed, or failed.
    """
    if find_spec("simgrid") is None:
        raise UsageError(
            "this needs SimGrid: pip install 'moe-placer[simgrid]' (compiles for minutes; see pyproject.toml)"
        )
    graph = build_fabric(instance)
    usable = GB * instance.cluster.fabric.link_utilization
    paths = list_paths(graph, instance.cluster.nodes)
    task = {
        "config": dict(model.config),
        "latency_us": model.latency_us,
        "fair_pairs": model.fair_pairs,
        "bytes_per_s": [usable * float(data["bandwidth"]) for _, _, data in graph.edges(data=True)],
        "paths": [[source, target, between] for (source, target), between in paths.items()],
        "cases": [
            [
                (source, target, number, max(1, round(sent[source, target] / len(between))))
                for (source, target), between in paths.items()
                if sent[source, target] > 0
                for number in range(len(between))
            ]
            for sent in transfers
        ],
    }
    ended = run_child(_CHILD, json.dumps(task), _PATIENCE_S)
    if ended.output is None:
        raise UsageError(f"SimGrid failed: {ended.failed}")
    lasted: list[float] = json.loads(ended.output)
    return lasted
