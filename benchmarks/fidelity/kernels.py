"""All-to-all kernels: what a simulated layer takes, beside what DeepEP and aiconfigurator measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.fidelity.deployments import balanced, contiguous, deployment, drawn
from benchmarks.fidelity.published import DEEPEP, LOW_LATENCY, NORMAL
from moe_placer.instance import Instance
from moe_placer.instance.sizes import combine_wire, dispatch_wire
from moe_placer.schedule.program import Program, compile_program
from moe_placer.schedule.simulate import simulate
from moe_placer.schedule.workload import Phase, Workload
from moe_placer.traffic.recording import Traffic

__all__ = ["aiconfigurator_rows", "low_latency_rows", "normal_rows"]

Row = dict[str, Any]
Way = Literal["dispatch", "combine"]

_WAYS: tuple[Way, Way] = ("dispatch", "combine")
_TABLE = "systems/data/h100_sxm/comm/sglang/0.5.6.post2/wideep_deepep_ll_perf.parquet"
_PACKAGE = "aiconfigurator-core 0.12 (NVIDIA, Apache-2.0), DeepEP's low-latency kernels in SGLang on H100"


def _all_to_alls(program: Program, phase: Phase, tokens: float) -> dict[Way, float]:
    """µs of dispatch and combine of the slowest node, with nothing beside them."""
    timeline = simulate(program, Workload(phase, tokens, 4096.0, 1))
    took: dict[Way, float] = {"dispatch": 0.0, "combine": 0.0}
    for p in program.sent:
        way: Way = "dispatch" if program.kinds[p] == "dispatch_send" else "combine"
        took[way] = max(took[way], float(timeline.end[p] - timeline.start[p]))
    return took


def _program(instance: Instance, traffic: Traffic) -> Program:
    return compile_program(instance, contiguous(instance), traffic)


def low_latency_rows() -> Iterator[Row]:
    """Yield a row for each figure of DeepEP's low-latency table."""
    for gpus, measured in LOW_LATENCY.items():
        instance = deployment(f"low-latency-{gpus}", nodes=gpus // 8, gpu="H800", tokens_per_gpu=128, layers=1)
        found = _all_to_alls(_program(instance, balanced(instance)), "decode", 128)
        for way, us in zip(_WAYS, measured, strict=True):
            what = {"gpus": gpus, "way": way, "tokens": 128}
            yield _row("low-latency", what, us, found[way], DEEPEP, "measured by its authors", 0.15)


def normal_rows() -> Iterator[Row]:
    """Yield a row for each figure of DeepEP's normal table, as µs."""
    for gpus, measured in NORMAL.items():
        nodes = gpus // 8
        instance = deployment(
            f"normal-{gpus}", nodes=nodes, gpu="H800", tokens_per_gpu=4096, layers=1, normal=True,
            traffic={"kind": "trace"},
        )  # fmt: skip
        traffic = drawn(instance, groups=nodes, top=min(nodes, 4))
        topk = traffic.recordings[0].topk
        assert topk is not None
        size = 256 // (nodes if nodes > 1 else gpus)  # experts of a place that is counted
        copies = float(np.mean([len(set(chosen.tolist())) for chosen in topk[:, 0] // size]))
        found = _all_to_alls(_program(instance, traffic), "prefill", 4096)
        wires = {"dispatch": dispatch_wire(instance).token_bytes, "combine": combine_wire(instance).token_bytes}
        for way, rate in zip(_WAYS, measured, strict=True):
            us = 4096 * copies * wires[way] / (rate * 1e3)
            what = {"gpus": gpus, "way": way, "tokens": 4096, "gb_per_s": rate, "counted_copies": copies}
            yield _row("normal", what, us, found[way], DEEPEP, "measured by its authors", 0.15 if nodes > 2 else None)


def aiconfigurator_rows() -> Iterator[Row]:
    """Yield a row for each measured time of 8 to 128 tokens on 1 to 8 nodes.

    Raises
    ------
    ModuleNotFoundError
        The package, or pyarrow, is not installed (extra ``fidelity``).
    """
    import pyarrow.parquet as pq

    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("aiconfigurator_core is not installed: pip install 'moe-placer[fidelity]'")
    table = pq.read_table(Path(spec.submodule_search_locations[0]) / _TABLE).to_pylist()
    for nodes in (1, 2, 4, 8):
        instance = deployment(f"measured-{nodes}", nodes=nodes, gpu="H100", tokens_per_gpu=128, layers=1)
        program = _program(instance, balanced(instance))
        for entry in table:
            fits = entry["node_num"] == nodes and entry["num_experts"] == 256 and 8 <= entry["num_token"] <= 128
            if not fits:
                continue
            found = _all_to_alls(program, "decode", float(entry["num_token"]))
            for way, us in found.items():
                what = {"gpus": 8 * nodes, "way": way, "tokens": entry["num_token"]}
                limit = 0.35 if nodes > 1 else None
                yield _row("measured", what, entry[f"{way}_avg_t_us"], us, _PACKAGE, "measured by NVIDIA", limit)


def _row(part: str, what: Row, measured: float, predicted: float, source: str, sure: str, limit: float | None) -> Row:
    """Return a row; ``limit`` is how far the ratio may be from 1, None where nothing was promised.

    Parameters
    ----------
    part : str
        Table that it belongs to.
    what : dict
        What was measured.
    measured, predicted : float
        In µs.
    source, sure : str
        Where the measured figure is from, and how sure it is.
    limit : float or None
    """
    return {
        "part": part, **what, "unit": "us", "measured": measured, "predicted": predicted,
        "ratio": predicted / measured, "limit": limit, "source": source, "sure": sure,
    }  # fmt: skip
