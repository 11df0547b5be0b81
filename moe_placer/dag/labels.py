"""How operations, tensors and GPUs are written in drawings and tooltips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from moe_placer.dag.operation import ALL_TO_ALL, Dag, Edge, Operation, Shape
from moe_placer.fabric import COST, link_words

__all__ = [
    "TITLES",
    "amount",
    "cost_note",
    "describe",
    "describe_edge",
    "dimensions",
    "gpu_list",
    "link_figures",
    "number",
    "shape_text",
    "worst_link",
]

TITLES = {
    "input": "Input",
    "split": "Split over DP",
    "embedding": "Embedding",
    "embedding_reduce": "All-reduce",
    "attention": "MHA",
    "attention_reduce": "MHA all-reduce",
    "mlp": "MLP",
    "mlp_reduce": "All-reduce",
    "gate": "Gating",
    "gate_scatter": "Gating scatter",
    "dispatch_send": "Dispatch send",
    "dispatch_receive": "Dispatch recv",
    "expert": "Expert",
    "expert_reduce": "Shard sum",
    "combine_send": "Combine send",
    "combine_receive": "Combine recv",
    "dispatch": "Dispatch",
    "combine": "Combine",
    "aggregate": "Aggregate",
    "norm": "Final norm",
    "head": "Head",
    "sample": "Likeliest token",
    "sample_reduce": "All-reduce",
    "gather": "Gather DP",
    "output": "Output",
    "input_layernorm": "Input norm",
    "linear_qkv": "QKV projection",
    "linear_qkv_down_proj": "Down to latents",
    "latent_gather": "Latents gathered",
    "linear_q_up_proj": "Queries up",
    "linear_kv_up_proj": "Keys, values up",
    "rotary": "Rotary positions",
    "absorb_keys": "Keys absorbed",
    "absorb_values": "Values absorbed",
    "attention_scores": "Scores",
    "attention_softmax": "Softmax",
    "attention_context": "Context",
    "linear_proj": "Output projection",
    "self_attn_bda": "Residual add",
    "pre_mlp_layernorm": "Norm before MLP",
    "linear_fc1": "Up projection",
    "activation_func": "Activation",
    "linear_fc2": "Down projection",
    "mlp_bda": "Residual add",
    "router_gating": "Gate logits",
    "router_topk": "Top-k",
    "unpermute": "Weighted sum",
}
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def number(value: float) -> str:
    """Write a token count or a length: whole where it is, else with one decimal."""
    whole = round(value)
    return str(whole) if abs(value - whole) < 1e-6 else f"{value:.1f}"


def amount(value: float, unit: str) -> str:
    """Write a quantity with a decimal prefix and three digits: ``1.41 GB``."""
    step = 0
    while abs(value) >= 999.5 and step < len(_PREFIXES) - 1:
        value, step = value / 1000, step + 1
    return f"{value:.3g} {_PREFIXES[step]}{unit}"


def shape_text(shape: Shape) -> str:
    """Write a tensor's shape: ``[8192, 7168]``."""
    return "[" + ", ".join(map(number, shape)) + "]"


def dimensions(op: Operation) -> tuple[str, str]:
    """Write the shape of what goes into an operation and what comes out; experts and all-to-alls sum theirs."""
    return _dimensions(op, op.inputs), _dimensions(op, op.outputs)


def _dimensions(op: Operation, tensors: Mapping[str, Shape]) -> str:
    if not tensors:
        return ""
    largest = max(tensors.values(), key=lambda shape: (len(shape), math.prod(shape)))
    if op.kind in ALL_TO_ALL or op.kind in {"expert", "expert_reduce"}:
        alike = [shape for shape in tensors.values() if shape[1:] == largest[1:]]
        largest = (sum(shape[0] for shape in alike), *largest[1:])
    return shape_text(largest)


def link_figures(dag: Dag, link: str, cost: float) -> str:
    """Write a link with what it carries: ``leaf0->spine1: 31,768 tokens, 2,846.4 µs (cost 63,536)``."""
    one_cost, one_us = dag.facts["per_token"][link]
    tokens = cost / one_cost
    return f"{link}: {link_words(tokens, tokens * one_us, cost)}"


def worst_link(dag: Dag, layer: int) -> str | None:
    """Write the costliest link of a MoE layer's dispatch with what it carries; None where nothing crosses any."""
    cost = dag.facts["links"].get(layer) or {}
    link = max(cost, key=lambda name: cost[name], default=None)
    return None if link is None or not cost[link] else link_figures(dag, link, cost[link])


_UNITS = {"per-expert": "", "per-gpu": ", one copy per GPU", "per-node": ", one copy per node, forwarded over NVLink"}


def cost_note(dag: Dag) -> str:
    """Say what a cost is, which figures stand beside a link, and what a token is sent once to."""
    copies, cost = _UNITS[dag.facts["dispatch"]], COST[dag.facts["metric"]]
    return f"Links: plain tokens of dispatch per step{copies}, their time one way, and cost; cost: {cost}."


def gpu_list(gpus: Sequence[int], limit: int = 0) -> str:
    """Write GPU ids as ranges, ``GPU 0-7,12``; longer than ``limit`` characters, as ``GPU 0-7 +1``."""
    runs: list[list[int]] = []
    for gpu in gpus:
        if runs and gpu == runs[-1][1] + 1:
            runs[-1][1] = gpu
        else:
            runs.append([gpu, gpu])
    words = [f"{a}" if a == b else f"{a}-{b}" for a, b in runs]
    text = "GPU " + ",".join(words)
    if not limit or len(text) <= limit:
        return text
    shown = [f"GPU {','.join(words[:n])} +{sum(b - a + 1 for a, b in runs[n:])}" for n in range(len(words) - 1, 0, -1)]
    return next((text for text in shown if len(text) <= limit), f"{len(gpus)} GPUs")


def describe(op: Operation) -> str:
    """Write everything known of an operation, for a tooltip."""
    lines = [op.id, f"{TITLES[op.kind]} ({op.role}) on {gpu_list(op.gpus, 200)}"]
    if op.flops:
        lines.append(f"{amount(op.flops, 'FLOP')}, reads {amount(op.bytes_read, 'B')}")
    elif op.bytes_read:
        lines.append(f"reads {amount(op.bytes_read, 'B')}")
    for word, tensors in (("in", op.inputs), ("out", op.outputs)):
        shown = [f"{name} {shape_text(shape)}" for name, shape in list(tensors.items())[:6]]
        more = f" and {len(tensors) - 6} more" if len(tensors) > 6 else ""
        if shown:
            lines.append(f"{word}: " + ", ".join(shown) + more)
    if op.detail:
        lines += [
            f"{key}: {shape_text(value) if isinstance(value, tuple) else value}" for key, value in op.detail.items()
        ]
    if op.moved:
        lines.append("moves " + ", ".join(f"{amount(size, 'B')} by {how}" for how, size in sorted(op.moved.items())))
    return "\n".join(lines)


def describe_edge(dag: Dag, edge: Edge) -> str:
    """Write everything known of a tensor on its way, for a tooltip."""
    lines = [f"{edge.source} to {edge.target}"]
    lines.append(f"{edge.tensor} {shape_text(edge.shape)} {edge.dtype}, {amount(edge.bytes, 'B')}, {edge.travel}")
    links = dag.links_on_the_way(edge)
    if links:
        shown = [f"{name} ({share:.3g})" for name, share in list(links.items())[:12]]
        lines.append("links: " + ", ".join(shown) + (f" and {len(links) - 12} more" if len(links) > 12 else ""))
    return "\n".join(lines)
