"""Measures a plan for its page: rows of placement, steps, what-ifs and kernels, each with what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from moe_placer.errors import InputError
from moe_placer.instance import Instance
from moe_placer.instance.sizes import GB, expert_bytes, memory_parts
from moe_placer.placement import Placement
from moe_placer.schedule.memory_limits import longest_context, most_tokens
from moe_placer.schedule.program import Program, compile_program
from moe_placer.schedule.simulate import simulate
from moe_placer.schedule.step_figures import Figures, find_figures, planned_shares
from moe_placer.schedule.targets import answer_target, read_target
from moe_placer.schedule.what_if import Question, ask
from moe_placer.schedule.workload import Condition, Workload
from moe_placer.solve.solve import solve
from moe_placer.traffic import Traffic
from moe_placer.verifier import Verification, verify

__all__ = ["SCHEMA", "Row", "measure_plan"]

SCHEMA = "moe-placer/plan/1"
Row = dict[str, Any]
Tell = Callable[[str], None]

_SMALL = 32.0  # tokens per GPU: a batch at which starting operations still counts
_DECODE = (64.0, 2048.0)  # sequences per GPU, and what each attends to
_SLOW = 2.0  # times as long


def measure_plan(
    instance: Instance,
    placement: Placement,
    traffic: Traffic,
    verification: Verification,
    tell: Tell,
    beside: tuple[tuple[str, Instance, Placement, Traffic], ...] = (),
) -> Iterator[Row]:
    """Yield a row for everything that the page shows of a plan, the sweeps excepted.

    Parameters
    ----------
    instance, placement, traffic
        The plan.
    verification : Verification
        Of the plan: good.
    tell : callable
        Told of what is measured, a line at a time.
    beside : tuple of (str, Instance, Placement, Traffic)
        Other plans, of which a step, a failure and a straggler are simulated too.
    """
    yield _plan(instance, placement, verification)
    tell("steps")
    program = compile_program(instance, placement, traffic)
    for workload in _workloads(instance):
        figures, row = _step(program, workload)
        yield row
        if workload.micro_batches == 2 and workload.tokens_per_gpu is None:
            before = figures.latency_us
    yield from _troubles("plan", instance, placement, traffic, before)
    for name, other, placed, its in beside:
        tell(name)
        figures, row = _step(compile_program(other, placed, its), Workload())
        yield {**row, "plan": name}
        yield from _troubles(name, other, placed, its, figures.latency_us)
    tell("kernels, and experts in order")
    yield from _kernels(instance, placement, traffic)


def _row(kind: str, **fields: Any) -> Row:
    return {"schema": SCHEMA, "kind": kind, **fields}


def _plan(instance: Instance, placement: Placement, verification: Verification) -> Row:
    """Return the instance's own figures, and where every replica is: node ids by layer and expert."""
    per_node, parts = instance.cluster.gpus_per_node, memory_parts(instance)
    nodes = [
        [[gpus[0] // per_node for gpus in placement.shards(row, expert)] for expert in range(instance.model.experts)]
        for row in range(len(instance.moe_layers))
    ]
    held = np.zeros((len(instance.moe_layers), instance.gpus), dtype=int)
    for row in range(len(instance.moe_layers)):
        for expert in range(instance.model.experts):
            for gpus in placement.shards(row, expert):
                held[row, list(gpus)] += 1
    return _row(
        "plan",
        instance=instance.model_dump(mode="json"),
        sha256=instance.sha256,
        placed_by=placement.solver.name,
        moe_layers=list(instance.moe_layers),
        gpus=instance.gpus,
        nodes=nodes,
        most_of_a_layer=int(held.max()),
        experts_per_gpu=[int(held.sum(axis=0).min()), int(held.sum(axis=0).max())],
        expert_gb=expert_bytes(instance) / GB,
        resident_gb=parts.total / GB,
        total_z=verification.total_z,
        total_bound=verification.total_bound,
        dispatch_us=verification.dispatch_us,
        z=[check.z for check in verification.layers],
        bound=[check.bound for check in verification.layers],
        worst_link=[check.worst_link for check in verification.layers],
        worst_link_us=[check.worst_link_us for check in verification.layers],
    )


def _workloads(instance: Instance) -> list[Workload]:
    small = min(_SMALL, instance.traffic.tokens_per_gpu)
    sequences, context = _DECODE
    return [
        Workload(),
        Workload(micro_batches=1),
        Workload(tokens_per_gpu=small),
        Workload(tokens_per_gpu=small, micro_batches=1),
        Workload("decode", sequences, context),
        Workload("decode", 4.0, context),
    ]


def _targets(instance: Instance) -> list[str]:
    planned = planned_shares(instance) or {}
    shares = [f"shares={'/'.join(f'{100 * share:g}' for share in planned.values())}"] if planned else []
    gpu, fabric = instance.cluster.gpu, instance.cluster.fabric
    asked = [f"mfu={gpu.mfu}", f"bandwidth={gpu.memory_utilization}", f"links={fabric.link_utilization}"]
    return [*asked, *shares, "memory=100%"]


def _step(program: Program, workload: Workload) -> tuple[Figures, Row]:
    instance = program.instance
    timeline = simulate(program, workload)
    figures = find_figures(timeline)
    memory = figures.memory
    answers = [answer_target(read_target(text), timeline, figures) for text in _targets(instance)]
    batch = workload.batch(instance)
    decode = workload.phase == "decode"
    row = _row(
        "step",
        plan="plan",
        phase=workload.phase,
        tokens_per_gpu=batch,
        context=workload.context,
        micro_batches=workload.micro_batches,
        latency_us=figures.latency_us,
        tokens_per_s_per_gpu=figures.tokens_per_s_per_gpu,
        mfu=figures.mfu,
        communication_us=figures.communication_us,
        shares=dict(figures.shares),
        path_us=dict(figures.path_us),
        busiest_link=figures.busiest_link,
        link_utilization=[float(figures.link_utilization.max(initial=0)), _mean(figures.link_utilization)],
        memory_gb={
            name: (getattr(memory, name) / GB).round(3).tolist()
            for name in ("weights", "kv_cache", "kv_reserved", "activations", "size")
        },
        high_water_gb=float(memory.high_water.max() / GB),
        fits=memory.fits,
        most_tokens_per_gpu=most_tokens(memory, batch),
        longest_context=longest_context(memory, workload.context) if decode else None,
        targets=[
            {
                "name": one.target.name,
                "asked": list(one.target.asked),
                "got": list(one.got),
                "ok": one.ok,
                "limiter": one.limiter,
            }
            for one in answers
        ],
    )
    return figures, row


def _mean(values: Any) -> float:
    return float(values.mean()) if len(values) else 0.0


def _troubles(name: str, instance: Instance, placement: Placement, traffic: Traffic, before: float) -> Iterator[Row]:
    """Yield how much later the step ends with a slow and with a failed GPU.

    Parameters
    ----------
    name : str
        Of the plan.
    instance, placement, traffic
        The plan.
    before : float
        µs of its step on healthy hardware.
    """
    for what, question in (
        ("slow", Question(Condition(slow_gpus={0: _SLOW}))),
        ("failed", Question(failed=(0,))),
    ):
        answer = ask(instance, placement, traffic, Workload(), question, before_us=before, most=0)
        yield _row(
            "what-if",
            plan=name,
            trouble=what,
            gpu=0,
            factor=_SLOW if what == "slow" else None,
            before_us=before,
            after_us=answer.after_us,
            runs=answer.survivors.runs,
        )


def _kernels(instance: Instance, placement: Placement, traffic: Traffic) -> Iterator[Row]:
    """Sum of busiest links of this plan and of experts in order, under every unit of dispatch and NIC that fits."""
    others: dict[str, Instance] = {}
    for unit in ("per-expert", "per-node"):
        with suppress(InputError):
            others[unit] = instance.with_serving(dispatch=unit)
    if instance.cluster.nics is None and instance.cluster.gpus_per_node > 1:
        with suppress(InputError):
            others["per-expert, received at the expert's GPU"] = instance.with_receive("destination-gpu")
    in_order = solve(instance, traffic, solver="contiguous").placement
    for kernel, other in others.items():
        own, plain = (verify(other, placed, traffic) for placed in (placement, in_order))
        yield _row(
            "kernel", kernel=kernel, total_z=own.total_z, dispatch_us=own.dispatch_us,
            contiguous_z=plain.total_z, contiguous_us=plain.dispatch_us,
        )  # fmt: skip
    figures = find_figures(simulate(compile_program(instance, in_order, traffic), Workload()))
    yield _row("contiguous", latency_us=figures.latency_us)
