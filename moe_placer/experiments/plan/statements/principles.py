"""Statements 1 to 11: principles and hardware."""

from __future__ import annotations

from moe_placer.experiments.plan.figures import EQUAL, Figures, ms, percent
from moe_placer.experiments.plan.statements.statement import Judged, Statement, not_measured

__all__ = ["PRINCIPLES"]


def _large(f: Figures) -> Judged:
    alone = f.plan["most_of_a_layer"] == 1
    words = f"EP is {f.ep}; a GPU holds at most {f.plan['most_of_a_layer']} of a layer"
    return ("holds" if f.ep >= 16 and alone else "fails"), words


def _even_memory(f: Figures) -> Judged:
    low, high = f.plan["experts_per_gpu"]
    words = f"every GPU holds {_range(low, high)} experts over all layers; weights {_weights(f)} GB each"
    return ("holds" if high - low <= 1 else "partly"), words


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _weights(f: Figures) -> str:
    weights = f.step()["memory_gb"]["weights"]
    low, high = min(weights), max(weights)
    return f"{low:,.1f}" if high - low < 0.05 else f"{low:,.1f} to {high:,.1f}"


def _scales(f: Figures) -> Judged:
    sizes = {row["gpus"]: row for row in f.swept("Sizes")}
    if not sizes:
        return not_measured("rows of a sweep called Sizes")
    sizes[f.plan["gpus"]] = f.step()
    rates = {gpus: float(row["tokens_per_s_per_gpu"]) for gpus, row in sorted(sizes.items())}
    spread = max(rates.values()) / min(rates.values()) - 1
    told = ", ".join(f"{rate:,.0f} on {gpus}" for gpus, rate in rates.items())
    return ("holds" if spread <= 0.05 else "partly"), f"tokens/s per GPU: {told} GPUs, {percent(spread, 1)} apart"


def _knows(f: Figures) -> Judged:
    gain = 1 - f.plan["total_z"] / f.kernels[0]["contiguous_z"] if f.kernels and f.kernels[0]["contiguous_z"] else 0.0
    words = (
        f"placed over the fabric's links: the busiest carry {percent(gain, 1)} less than with experts in order, "
        f"{percent(_gap(f), 2)} above what no placement can beat. Latency is simulated, not optimised"
    )
    return ("holds" if gain > 0 else "partly"), words


def _gap(f: Figures) -> float:
    bound = f.plan["total_bound"]
    return float(f.plan["total_z"] / bound - 1) if bound else 0.0


def _no_hot_node(f: Figures) -> Judged:
    layers, nodes = f.plan["nodes"], f.instance["cluster"]["nodes"]
    counts = [sum(at.count(node) for layer in layers for at in layer) for node in range(nodes)]
    words = f"every node holds {_range(min(counts), max(counts))} replicas over all layers"
    return ("holds" if max(counts) <= 1.05 * min(counts) else "partly"), words


def _least(f: Figures) -> Judged:
    gap = _gap(f)
    return ("holds" if gap <= 0.01 else "partly"), f"within {percent(gap, 2)} of the bound, which `verify` derives anew"


def _asynchronous(f: Figures) -> Judged:
    one, two = f.step(micro_batches=1), f.step()
    gain = 1 - two["latency_us"] / one["latency_us"]
    words = f"two micro-batches that overlap: {ms(two['latency_us'])} for {ms(one['latency_us'])}, {percent(gain)} less"
    small_one, small_two = f.step(micro_batches=1, small=True), f.step(small=True)
    loss = small_two["latency_us"] / small_one["latency_us"] - 1
    if loss > EQUAL:
        words += f"; at {small_one['tokens_per_gpu']:g} tokens per GPU they cost {percent(loss)} instead"
    return ("partly" if loss > EQUAL else "holds" if gain > EQUAL else "fails"), words


def _no_barrier(f: Figures) -> Judged:
    waits = f.step()["shares"]["synchronization"]
    return (
        "holds",
        f"an operation starts when its tensors are there; GPUs wait {percent(waits, 1)} of a step for others",
    )


def _gpu(f: Figures) -> Judged:
    gpu = f.instance["cluster"]["gpu"]
    words = (
        f"{gpu['peak_tflops']:g} TFLOP/s, {gpu['memory_gb']:g} GB, {gpu['memory_bandwidth_tb_per_s']:g} TB/s at "
        f"{percent(gpu['memory_utilization'])}, kernels at {percent(gpu['mfu'])}"
    )
    if (gpu["peak_tflops"], gpu["memory_gb"]) == (400, 64):
        words += ". The data sheet of an H100 says 989 TFLOP/s, 80 GB and 3.35 TB/s (`gpu: h100-sxm`)"
    return "given", words


def _fabric(f: Figures) -> Judged:
    fabric = f.instance["cluster"]["fabric"]
    words = f"{fabric['kind']}, {fabric['node_gb_per_s']:g} GB/s per node"
    for size, unit in (("nodes_per_leaf", "leaf"), ("nodes_per_pod", "pod")):
        if size in fabric:
            words += f", {fabric[size]} nodes per {unit}, {fabric['oversubscription']:g}:1 oversubscribed"
    return "open", words


def _cluster(f: Figures) -> Judged:
    cluster, dp = f.instance["cluster"], f.instance["parallelism"]["dp"]
    return (
        "given",
        f"{f.plan['gpus']} GPUs, {cluster['gpus_per_node']} a node, {cluster['nodes']} nodes; EP {f.ep}, DP {dp}",
    )


PRINCIPLES = (
    Statement(1, "EP of 16 or more; at most one expert of a layer on a GPU", _large, "moe-placer verify I P"),
    Statement(2, "no contention inside a GPU; memory balanced over GPUs", _even_memory, "moe-placer schedule I P"),
    Statement(3, "scales linearly with GPUs", _scales, "moe-placer sweep I P I2 P2"),
    Statement(4, "placement knows bandwidth, latency and memory", _knows, "moe-placer verify I P"),
    Statement(5, "no node becomes hot", _no_hot_node, "moe-placer evaluate I P"),
    Statement(6, "the most tokens over any single link are minimised", _least, "moe-placer verify I P"),
    Statement(7, "tokens are sent asynchronously, overlapping computation", _asynchronous, "moe-placer schedule I P"),
    Statement(8, "each MoE layer is routed to as soon as the layer before allows", _no_barrier,
              "moe-placer schedule I P --chrome-trace step.json"),
    Statement(9, "H100: 400 TFLOPS, 64 GB, 1.8 TB/s at 80%; MFU target 60%", _gpu, "moe-placer inspect I"),
    Statement(10, "NVLink, NVSwitch, InfiniBand; fat tree or as good", _fabric, "moe-placer inspect I"),
    Statement(11, "128 GPUs, 8 a node, 16 nodes; EP 64, DP 2", _cluster, "moe-placer inspect I"),
)  # fmt: skip
