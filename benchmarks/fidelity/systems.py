"""Whole systems: tokens/s per node of simulated steps beside published ones, with one thing changed at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.fidelity.deployments import balanced, contiguous, deployment, drawn
from benchmarks.fidelity.published import SYSTEMS, System
from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.schedule.program import compile_program
from moe_placer.schedule.simulate import Timeline, simulate
from moe_placer.schedule.workload import Phase, Workload
from moe_placer.solve.solve import solve
from moe_placer.traffic.recording import Traffic
from moe_placer.traffic.synthetic import synthesize

__all__ = ["ABLATIONS", "LIMIT", "predict", "system_rows"]

LIMIT = 0.25
_MOE = 6  # MoE layers that are simulated, of 58
_SEED = 1
Changes = Mapping[str, Mapping[str, Any]]

_DTYPE = {"dtypes": None, "dtype": "fp8"}
# What is changed alone, by name: each would hide or show an error of its own.
ABLATIONS: Mapping[str, Changes] = {
    "full multi-head attention": {"model": {"attention": {"kind": "mha"}}},
    "no shared experts": {"model": {"shared_expert_hidden_size": None}},
    "one dtype for all (fp8)": {"model": _DTYPE, "placement": {"dispatch_dtype": None, "combine_dtype": None}},
    "plain kernels": {"schedule": {"kernels": {"preset": "plain"}}},
    "no multiprocessors for communication": {
        "schedule": {"kernels": {"preset": "deepep", "prefill": {"communication_sms": 0.0}}}
    },
    "all-to-alls unhindered": {
        "schedule": {
            "kernels": {
                "preset": "deepep",
                "prefill": {"all_to_all_slowdown": 1.0},
                "decode": {"all_to_all_compute_us": 0.0},
            }
        }
    },
    "micro-batches without stages": {"schedule": {"kernels": {"preset": "deepep", "decode": {"staged": False}}}},
    "one copy per expert": {
        "placement": {"dispatch": "per-expert"},
        "cluster": {"nics": {"per_node": 8, "gb_per_s": 50.0, "receive": "source-rail"}},
    },
}
# In which phase that is how it is.
_AS_IT_IS: Mapping[str, Phase] = {"one copy per expert": "decode", "micro-batches without stages": "prefill"}


def system_rows() -> Iterator[dict[str, Any]]:
    """Yield a row for each system as it is, in one batch, balanced where it was not, and for each ablation."""
    for system in SYSTEMS:
        yield _row(system, "as it is", predict(system, {}, system.balanced, 2))
        yield _row(system, "one micro-batch", predict(system, {}, system.balanced, 1))
        if not system.balanced:
            yield _row(system, "balanced experts", predict(system, {}, True, 2))
        for name, changes in ABLATIONS.items():
            if system.phase == _AS_IT_IS.get(name):
                continue
            yield _row(system, name, predict(system, changes, system.balanced, 2))


def predict(system: System, changes: Changes, even: bool, micro_batches: int) -> float:
    """Return tokens/s per node of a system.

    A few MoE layers are simulated behind the dense ones; those between the first and the last stand for all others.

    Parameters
    ----------
    system : System
    changes : mapping
        Fields of the instance that differ, section by section.
    even : bool
        Whether every expert gets as many tokens; else the generator's tokens, placed by EPLB for others than those that
        are simulated.
    micro_batches : int
    """
    normal = system.phase == "prefill"
    kind = {"kind": "synthetic", "seed": _SEED} if not even else {"kind": "trace"} if normal else {"kind": "load"}
    instance = deployment(
        system.name.replace(" ", "-"), nodes=system.nodes, gpu=system.gpu, tokens_per_gpu=system.tokens_per_gpu,
        layers=3 + _MOE, slots=system.slots, normal=normal, traffic=kind, changes=changes,
    )  # fmt: skip
    placement, traffic = _deployed(instance, even, normal)
    phase: Phase = "prefill" if normal else "decode"
    workload = Workload(phase, system.tokens_per_gpu, system.context, micro_batches)
    step = _whole_step(simulate(compile_program(instance, placement, traffic), workload))
    return system.tokens_per_gpu * instance.cluster.gpus_per_node / step * 1e6


def _deployed(instance: Instance, even: bool, normal: bool) -> tuple[Placement, Traffic]:
    if even:
        return contiguous(instance), drawn(instance, 8, 4) if normal else balanced(instance)
    seen, unseen = (synthesize(instance, _SEED, window=window) for window in (0, 1))
    solution = solve(instance, seen, solver="eplb", limits=Limits(bounds=False, workers=1))
    return solution.placement, unseen


def _whole_step(timeline: Timeline) -> float:
    """µs of the step with all 58 MoE layers: time between the ends of the first and the last but one, continued."""
    program, layers = timeline.program, timeline.program.instance.model.layers
    ends = [0.0] * layers
    for task in timeline.tasks().tolist():
        layer = int(program.layer[timeline.operation(task)])
        if layer >= 0:
            ends[layer] = max(ends[layer], float(timeline.end[task]))
    first, last = layers - _MOE, layers - 2
    each = (ends[last] - ends[first]) / (last - first)
    return timeline.makespan + (58 - _MOE) * each


def _row(system: System, variant: str, predicted: float) -> dict[str, Any]:
    return {
        "part": "systems", "system": system.name, "short": system.short, "variant": variant,
        "unit": "tokens/s per node", "measured": float(system.tokens_per_s), "predicted": predicted,
        "ratio": predicted / system.tokens_per_s, "limit": LIMIT if variant == "as it is" else None,
        "source": system.source, "sure": system.sure,
    }  # fmt: skip
