"""Statements 32 to 44: claims, conditions, risks, DAGs."""

from __future__ import annotations

from moe_placer.experiments.plan.figures import EQUAL, Figures, ms, percent
from moe_placer.experiments.plan.statements.statement import Judged, Statement, not_measured

__all__ = ["CLAIMS"]

_BATCHES = "rows of a sweep called Batches, against another EP"


def _parallel(f: Figures) -> Judged:
    failed = f.trouble("failed")
    alone = f.plan["most_of_a_layer"] == 1
    words = f"EP {f.ep}" + (" has one expert of a layer on a GPU, the most there can be" if alone else "")
    if not failed["runs"]:
        return "fails", f"{words}; without GPU {failed['gpu']} the step cannot run"
    later = failed["after_us"] / failed["before_us"] - 1
    words += (
        f"; without GPU {failed['gpu']} the other DP group serves its experts, and the step is {percent(later)} longer"
    )
    return "partly", f"{words}: a failure does not stay with its experts"


def _against(f: Figures) -> Judged:
    ratios = f.ratios("Batches, prefill", "tokens_per_gpu")
    if not ratios:
        return not_measured(_BATCHES)
    crossing, large = f.crossing("Batches, prefill"), max(ratios)
    memory = {row["plan"]: row["weights_bytes"] / 1e9 for row in f.swept("Batches, prefill")}
    weights = ", ".join(f"{size:,.1f} GB with {name}" for name, size in memory.items())
    at = (
        f"the other is faster above about {crossing.at:,.0f} tokens per GPU" if crossing else "no crossing in the sweep"
    )
    if crossing and (equal := f.equal_at()) and equal[0] < 0.99 * equal[1]:
        at += f" ({equal[0]:,.0f} to {equal[1]:,.0f} over the contexts, networks and kernels computed)"
    words = f"{at}; at {large:,g} this plan's step is {percent(ratios[large] - 1)} longer. Weights: {weights}; "
    words += _smallest(f)
    return ("partly" if crossing else "holds" if max(ratios.values()) < 1 else "fails"), words


def _smallest(f: Figures) -> str:
    """Say what steps of a smaller degree than the other plan's take, or what its weights would."""
    size, fewer = f.instance["cluster"]["gpu"]["memory_gb"], f.third_plans()
    if not fewer:
        return f"EP 4 would need {_weights_of(f, 4):,.1f} GB of {size:g} GB"
    words = f"EP {fewer[0]['expert_parallelism']} needs {fewer[0]['weights_bytes'] / 1e9:,.1f} GB of {size:g} GB"
    for row in sorted(fewer, key=lambda row: float(row["tokens_per_gpu"])):
        own = f.at_batch(float(row["tokens_per_gpu"]))
        if own is not None:
            ratio = own / row["latency_us"]
            words += (
                f"; at {row['tokens_per_gpu']:,g} tokens per GPU{'' if row['fits'] else ', which do not fit there,'}"
            )
            words += f" this plan's step is {percent(abs(ratio - 1))} {'shorter' if ratio < 1 else 'longer'}"
    return words


def _weights_of(f: Figures, degree: int) -> float:
    """GB of weights on a GPU where so many GPUs hold all experts of a layer."""
    held = -(-f.instance["model"]["experts"] // degree) * len(f.plan["moe_layers"])
    return float(f.plan["resident_gb"] + held * f.plan["expert_gb"])


def _enough_gpus(f: Figures) -> Judged:
    experts, gpus = f.instance["model"]["experts"], f.plan["gpus"]
    words = f"{gpus} GPUs for {experts} experts"
    sizes = sorted(row["gpus"] for row in f.swept("Sizes"))
    words += f"; measured from {sizes[0]} to {max(sizes[-1], gpus)} GPUs" if sizes else ""
    return ("holds" if gpus >= experts else "fails"), f"{words}. With fewer, EP of that degree does not exist"


def _fast_network(f: Figures) -> Judged:
    ratios = f.ratios("Oversubscription", "oversubscription")
    base = f.ratios("Batches, prefill", "tokens_per_gpu")
    if not ratios or not base:
        return not_measured("rows of a sweep called Oversubscription, against another EP")
    ratios = dict(
        sorted({**ratios, float(f.instance["cluster"]["fabric"].get("oversubscription", 1)): base[max(base)]}.items())
    )
    told = ", ".join(f"{100 * (ratio - 1):+.0f}% at {over:g}:1" for over, ratio in ratios.items())
    best = min(ratios.values())
    words = f"step against the other plan's, at leaf down over leaf up: {told}"
    return ("holds" if best < 1 - EQUAL else "partly"), words


def _large_batches(f: Figures) -> Judged:
    ratios = f.ratios("Batches, prefill", "tokens_per_gpu")
    if not ratios:
        return not_measured(_BATCHES)
    told = ", ".join(f"{percent(1 - ratio)} at {batch:g}" for batch, ratio in ratios.items())
    larger = ratios[max(ratios)] < ratios[min(ratios)]
    words = f"shorter than the other plan's step by {told} tokens per GPU"
    return ("holds" if larger else "fails"), f"{words}: its advantage is at {'large' if larger else 'small'} batches"


def _compute_bound(f: Figures) -> Judged:
    large, small = f.step(), f.step(small=True)
    words = (
        f"MFU is {percent(large['mfu'])} at {large['tokens_per_gpu']:,g} tokens per GPU and {percent(small['mfu'])} at "
        f"{small['tokens_per_gpu']:,g}"
    )
    ratios = f.ratios("Batches, prefill", "tokens_per_gpu")
    if not ratios:
        return not_measured(_BATCHES)
    lost = ratios[max(ratios)] > 1 + EQUAL
    if lost:
        words += (
            "; but where work is compute-bound, the plan with fewer GPUs per expert group has no network to wait for"
        )
    return ("fails" if lost else "holds"), words


def _routing(f: Figures) -> Judged:
    if not f.kernels or not f.kernels[0]["contiguous_z"]:
        return "holds", "no tokens cross a link, whatever the placement"
    row = f.kernels[0]
    gain, step = 1 - row["total_z"] / row["contiguous_z"], 1 - f.step()["latency_us"] / f.contiguous_us
    words = (
        f"busiest links carry {percent(gain, 1)} less than with experts in order; the step is "
        f"{percent(step, 1)} shorter"
    )
    return ("holds" if step > EQUAL else "partly" if gain > EQUAL else "fails"), words


def _memory(f: Figures) -> Judged:
    step, decode = f.step(), f.step(phase="decode")
    words = (
        f"prefill takes {step['high_water_gb']:,.1f} GB; decode of {decode['tokens_per_gpu']:g} tokens per GPU with "
        f"context {decode['context']:,g} takes {decode['high_water_gb']:,.0f} GB"
    )
    if not decode["fits"]:
        words += (
            f", so at most {decode['most_tokens_per_gpu']:,.1f} tokens per GPU fit. Gradient "
            f"checkpointing is training's"
        )
    return ("holds" if decode["fits"] else "partly"), words


def _imbalance(_: Figures) -> Judged:
    return (
        "out of scope",
        "gating is the model's; replicas of hot experts balance what it chooses (`replicas: {redundant_slots: n}`)",
    )


def _stragglers(f: Figures) -> Judged:
    slow = f.trouble("slow")
    words = f"a GPU twice as slow: {percent(slow['after_us'] / slow['before_us'] - 1)} longer"
    for name in f.plans:
        other, failed = f.trouble("slow", name), f.trouble("failed", name)
        later = percent(other["after_us"] / other["before_us"] - 1)
        words += f"; {name}: a step of {ms(other['before_us'])}, {later} longer with it"
        if failed["runs"]:
            words += f", {percent(failed['after_us'] / failed['before_us'] - 1)} longer without it"
        else:
            words += ", and none without it, since an expert there has no other replica"
    if f.plan["most_of_a_layer"] == 1:
        words += ". Slots are full, so there is no room for redundancy without a second slot"
    return "partly", f"{words}. Time-outs are the engine's"


_CHECKED = "`dag` writes nothing that its verifier refuses: acyclic, connected, shapes and GPUs everywhere"
_SHAPES = "shapes in and out of every operation, dashed MHA and gating, three kinds of symbols; and down to operators"
_DRAWINGS = "comprehensive, simplified, detailed_expert and complete_deployment, as .dot, .svg and .json"


def _checked(_: Figures) -> Judged:
    return "holds", _CHECKED


def _dimensions(_: Figures) -> Judged:
    return "holds", _SHAPES


def _four(_: Figures) -> Judged:
    return "holds", _DRAWINGS


CLAIMS = (
    Statement(32, "EP 64 is the most parallel; full use of GPUs; failures stay with experts", _parallel,
              "moe-placer schedule I P --fail-gpu 0"),
    Statement(33, "against EP of 4 to 8: more throughput, better scaling, better use of memory, more communication",
              _against, "moe-placer sweep I P I8 P8 --tokens-per-gpu 64,128,256,1024"),
    Statement(34, "best with at least as many GPUs as experts", _enough_gpus, "moe-placer inspect I"),
    Statement(35, "and a fast network", _fast_network, "moe-placer sweep I P I8 P8 --oversubscription 1,2,4,8"),
    Statement(36, "and large batches", _large_batches, "moe-placer sweep I P I8 P8 --tokens-per-gpu 64,128,256,1024"),
    Statement(37, "and compute-bound work", _compute_bound, "moe-placer schedule I P --require mfu=60%"),
    Statement(38, "a congested network: topology-aware routing", _routing, "moe-placer evaluate I P --step"),
    Statement(39, "memory: tensor parallelism where needed, gradient checkpointing", _memory,
              "moe-placer schedule I P --phase decode --tokens-per-gpu 64 --context 2048"),
    Statement(40, "imbalance: gating", _imbalance, "moe-placer inspect I"),
    Statement(41, "stragglers: redundant placement of hot experts, time-outs", _stragglers,
              "moe-placer schedule I P --slow-gpu 0=2"),
    Statement(42, "DAGs are acyclic, connected, dimensions agree, a GPU on every operation", _checked,
              "moe-placer verify I P"),
    Statement(43, "every operation with dimensions; dashed, ellipses, rectangles, parallelograms", _dimensions,
              "moe-placer dag I P --operators"),
    Statement(44, "four drawings, each as .dot and .svg", _four, "moe-placer dag I P"),
)  # fmt: skip
