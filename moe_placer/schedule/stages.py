"""The order of stages in which engines run two micro-batches of a decode step beside each other.

A micro-batch of a layer has five stages: projections, scores and router, start of the dispatch and shared experts,
experts and start of the combine, sum of what came back (DeepSeek, DeepSeek-V3/R1 Inference System Overview, 2025-03-01;
in SGLang the strategy of decode in operations_strategy.py). The other micro-batch is two stages behind. So a dispatch
is beside shared experts of its own micro-batch, a combine beside attention of the other one, and experts are beside no
all-to-all. Here attention is one operation, all of it beside the combine.
"""

from __future__ import annotations

from collections import defaultdict

from moe_placer.schedule.program import Program

__all__ = ["stage_order"]

# What ends a stage, and what of the next micro-batch waits for it on the same GPUs.
_WAITS = (("expert", frozenset({"attention"})), ("aggregate", frozenset({"dispatch_send", "mlp"})))


def stage_order(program: Program) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Return which operations of the next micro-batch wait for one of the micro-batch before.

    Returns
    -------
    pair of dicts
        Operation to those of the same layer that wait for it in the next micro-batch; and, of the last micro-batch, to
        those of the next MoE layer in the first one.
    """
    layers = sorted({int(program.layer[p]) for p, kind in enumerate(program.kinds) if kind == "dispatch_send"})
    of_layer: dict[int, list[int]] = defaultdict(list)
    for p, layer in enumerate(program.layer.tolist()):
        of_layer[layer].append(p)
    same: dict[int, list[int]] = {}
    following: dict[int, list[int]] = {}
    for layer, later in zip(layers, [*layers[1:], None], strict=True):
        same |= _waiting(program, of_layer[layer], of_layer[layer])
        following |= _waiting(program, of_layer[layer], [] if later is None else of_layer[later])
    return same, following


def _waiting(program: Program, before: list[int], after: list[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for first, others in _WAITS:
        on_gpu: dict[int, list[int]] = defaultdict(list)
        for q in (q for q in after if program.kinds[q] in others):
            for gpu in program.gpus[q]:
                on_gpu[gpu].append(q)
        for p in (p for p in before if program.kinds[p] == first):
            for gpu in program.gpus[p]:
                found[p] += on_gpu[gpu]
    return {p: sorted(set(waiting)) for p, waiting in found.items()}
