"""Which link dispatch and combine need longest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.schedule.simulate import Timeline

__all__ = ["busiest_link", "layer_link_times"]

Floats = npt.NDArray[np.float64]


def layer_link_times(timeline: Timeline) -> Floats:
    """µs that each link needs for the dispatch and combine of each layer, in one step [layers, K]."""
    program, network = timeline.program, timeline.network
    nodes = program.instance.cluster.nodes
    sent = np.zeros((program.instance.model.layers, nodes, nodes))
    for p, row in program.sent.items():
        sent[program.layer[p], program.home[p]] += row * timeline.durations.scale * timeline.durations.batches
    carried = np.asarray(network.routes.shares @ sent.reshape(len(sent), -1).T).T
    if network.nics is not None:
        passed = np.zeros((len(sent), network.nics.groups))
        for p, ends in program.ends.items():
            row = program.sent[p] * (np.arange(nodes) != program.home[p])
            moved = row * timeline.durations.scale * timeline.durations.batches
            passed[program.layer[p]] += network.nics.passed(ends, moved)
        carried = np.hstack([carried, network.nics.by_nic(passed)])
    return np.asarray(carried / network.capacity)


def busiest_link(timeline: Timeline, layer: int | None = None) -> int | None:
    """Index of the link that needs longest, in a layer or in the step; None where no link carries anything."""
    times = layer_link_times(timeline)
    needed = times.sum(axis=0) if layer is None else times[layer]
    return int(needed.argmax()) if needed.any() else None
