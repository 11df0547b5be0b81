"""Routing statistics: recorded traces, recorded loads, or seeded synthetic tokens."""

from __future__ import annotations

import numpy as np

from moe_placer.errors import InputError, Mistake
from moe_placer.instance import Instance
from moe_placer.instance.schema import SyntheticTraffic, TraceTraffic
from moe_placer.traffic.files import read_load, read_trace
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.traffic.synthetic import synthesize

__all__ = ["Recording", "Traffic", "load_traffic"]


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
    read = read_trace if isinstance(traffic, TraceTraffic) else read_load
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
