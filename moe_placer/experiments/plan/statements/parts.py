"""Statements 12 to 31: model, parallelism, phases, optimisations, latency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_placer.experiments.plan.figures import Figures, ms, percent
from moe_placer.experiments.plan.statements.statement import Judged, Statement

__all__ = ["PARTS"]

_POINTS = 0.05  # of a share, within which a plan's estimate holds


def _layers(f: Figures) -> Judged:
    model = f.instance["model"]
    return "given", f"{model['layers']} layers, {len(model['dense_layers'])} dense, {len(f.plan['moe_layers'])} MoE"


def _hidden(f: Figures) -> Judged:
    model = f.instance["model"]
    words = (
        f"hidden {model['hidden_size']:,}; {model['attention_heads']} heads of {model['head_dim']}; {model['dtype']}"
    )
    wide = model["attention_heads"] * model["head_dim"]
    if wide != model["hidden_size"]:
        words += f". Heads together are {wide:,} wide, {wide / model['hidden_size']:.2g} times the hidden size"
    return "given", words


def _mlp(f: Figures) -> Judged:
    model = f.instance["model"]
    dense = model["dense_hidden_size"] or model["top_k"] * model["expert_hidden_size"]
    return "open", f"experts {model['expert_hidden_size']:,}; dense layers assumed {dense:,} wide"


def _experts(f: Figures) -> Judged:
    model = f.instance["model"]
    kind = "GELU (up, down)" if model["expert_matrices"] == 2 else "gated (gate, up, down)"
    return "given", f"{model['experts']} experts a layer, {kind}, {1e3 * f.plan['expert_gb']:,.0f} MB each"


def _top_k(f: Figures) -> Judged:
    return "open", f"top-{f.instance['model']['top_k']}"


def _over_gpus(f: Figures) -> Judged:
    words = f"{f.plan['gpus']} GPUs hold {f.plan['most_of_a_layer']} of a layer each, by topology and traffic"
    return "partly", f"{words}. Gating probabilities are the model's: nothing here changes them"


def _replicas(f: Figures) -> Judged:
    dp = f.instance["parallelism"]["dp"]
    words = f"{dp} replicas of every expert, group r of the nodes uses replica r"
    return ("partly" if dp > 1 else "fails"), f"{words}. Weights kept in step are training's, and out of scope"


def _expert_tp(f: Figures) -> Judged:
    tp, one = f.instance["parallelism"]["expert_tp"], f.plan["expert_gb"]
    words = f"an expert takes {1e3 * one:,.0f} MB of {f.instance['cluster']['gpu']['memory_gb']:g} GB: "
    return "holds", words + ("not needed, not used" if tp == 1 else f"shared by {tp} GPUs") + " (`expert_tp: auto`)"


def _dense(f: Figures) -> Judged:
    parallelism = f.instance["parallelism"]
    return "holds", f"TP {parallelism['attention_tp']}, DP {parallelism['dp']}, with the all-reduce that each needs"


def _interleaved(f: Figures) -> Judged:
    two, one = (f.step(micro_batches=n)["shares"]["communication"] for n in (2, 1))
    words = (
        f"two micro-batches take turns: communication that nothing hides is {percent(two)} of a step, for "
        f"{percent(one)} with one"
    )
    return ("holds" if two < 0.7 * one else "partly"), words


def _drawn(what: str) -> Judged:
    return "holds", what


def _grouped(f: Figures) -> Judged:
    target = f.target("links")
    words = f"busiest link {percent(target['got'][0])} of its bandwidth over a step; limited by {target['limiter']}"
    return ("holds" if target["ok"] else "fails"), words


def _buffers(f: Figures) -> Judged:
    step = f.step()
    activations = max(step["memory_gb"]["activations"])
    words = (
        f"activations {activations:,.1f} GB at their height, weights stay where they are, "
        f"{step['high_water_gb']:,.1f} GB in all"
    )
    return ("holds" if step["fits"] else "fails"), words


def _run_time(f: Figures) -> Judged:
    mfu = f.target("mfu")
    words = f"gating changed at run time is out of scope; MFU is {percent(mfu['got'][0])}, limited by {mfu['limiter']}"
    return "fails" if not mfu["ok"] else "partly", words


def _shares(f: Figures) -> Judged:
    names = ("computation", "communication", "synchronization", "overhead")
    planned = f.instance["schedule"]["planned_shares"]
    if planned is None:
        return "not measured", "the instance has no schedule.planned_shares"

    def told(**which: Any) -> str:
        row = f.step(**which)
        shares = "/".join(percent(row["shares"][name]).removesuffix("%") for name in names)
        return f"{shares} with {row['tokens_per_gpu']:,g} tokens per GPU in {row['micro_batches']} micro-batch"

    which: tuple[dict[str, Any], ...] = ({}, {"micro_batches": 1}, {"small": True}, {"small": True, "micro_batches": 1})
    ok = [bool(f.target("shares", **one)["ok"]) for one in which]
    words = "; ".join(told(**one) + ("" if one.get("micro_batches") == 1 else "es") for one in which)
    swept = [row for row in f.swept("One micro-batch") if _near(row["shares"], planned)]
    if swept:
        batches = [row["tokens_per_gpu"] for row in swept]
        words += f". In one micro-batch they hold from {min(batches):g} to {max(batches):g} tokens per GPU"
    return ("holds" if ok[0] else "partly" if any(ok) else "fails"), words


def _near(shares: Mapping[str, float], planned: Mapping[str, float]) -> bool:
    return all(abs(shares[name] - planned[name]) <= _POINTS for name in shares)


def _batch(f: Figures) -> Judged:
    small, large = f.step(small=True), f.step()
    gain = large["tokens_per_s_per_gpu"] / small["tokens_per_s_per_gpu"]
    words = (
        f"{large['tokens_per_s_per_gpu']:,.0f} tokens/s per GPU at {large['tokens_per_gpu']:,g} tokens per GPU, "
        f"{small['tokens_per_s_per_gpu']:,.0f} at {small['tokens_per_gpu']:,g} ({gain:.1f} times)"
    )
    return ("holds" if gain > 1 else "fails"), words


def _gather(_: Figures) -> Judged:
    return _drawn("norm, head, sampling and gathering are in the DAG and in the step's time")


def _embedded(_: Figures) -> Judged:
    return _drawn("split over DP groups, embedding and dense layers are in the DAG and in the step's time")


def _attention(f: Figures) -> Judged:
    return _drawn(
        f"groups of {f.instance['parallelism']['attention_tp']} GPUs, with their all-reduce; {_path(f, 'attention')}"
    )


def _path(f: Figures, kind: str) -> str:
    step = f.step()
    return f"{percent(step['path_us'].get(kind, 0.0) / step['latency_us'])} of the critical path"


def _gating(f: Figures) -> Judged:
    return _drawn(f"logits and top-k on the first GPU of a group, choices handed to the others; {_path(f, 'gate')}")


def _dispatched(f: Figures) -> Judged:
    time = f.plan["dispatch_us"]
    return _drawn(
        f"dispatch of all layers needs {ms(time)} one way on their busiest links; {_path(f, 'expert')} are experts"
    )


PARTS = (
    Statement(12, "61 layers: 0 to 2 dense, 3 to 60 MoE", _layers, "moe-placer inspect I"),
    Statement(13, "hidden 7,168; 128 heads of 128; BF16", _hidden, "moe-placer inspect I"),
    Statement(14, "MLP hidden 2,048", _mlp, "moe-placer inspect I"),
    Statement(15, "64 MLP experts a layer, GELU", _experts, "moe-placer inspect I"),
    Statement(16, "top-K gating", _top_k, "moe-placer inspect I"),
    Statement(17, "experts over 64 GPUs, one each, by topology; gating adjusted for balance", _over_gpus,
              "moe-placer verify I P"),
    Statement(18, "two replicas, the batch is split, weights kept in step", _replicas, "moe-placer verify I P"),
    Statement(19, "tensor parallelism inside an expert only where one GPU cannot hold it", _expert_tp,
              "moe-placer inspect I"),
    Statement(20, "dense layers by TP and DP", _dense, "moe-placer dag I P --operators --layer 0"),
    Statement(21, "computation and communication interleaved", _interleaved, "moe-placer schedule I P --pictures ."),
    Statement(22, "the batch is split over DP; tokens embedded; dense layers", _embedded, "moe-placer dag I P"),
    Statement(23, "attention over groups of GPUs", _attention, "moe-placer dag I P --operators"),
    Statement(24, "gating on the head GPU of a group", _gating, "moe-placer dag I P --operators"),
    Statement(25, "asynchronous dispatch, experts in parallel, outputs combined", _dispatched,
              "moe-placer schedule I P"),
    Statement(26, "last layers; outputs gathered from replicas; final tokens", _gather, "moe-placer dag I P"),
    Statement(27, "tokens grouped by destination; hops few; 80% of the network used", _grouped,
              "moe-placer schedule I P --require links=80%"),
    Statement(28, "buffers reused, weights pinned, memory even, buffers freed", _buffers, "moe-placer schedule I P"),
    Statement(29, "gating adjusted at run time; load moved from stragglers; 60% MFU on all GPUs", _run_time,
              "moe-placer schedule I P --require mfu=60%"),
    Statement(30, "computation 40%, communication 35%, synchronisation 15%, overhead 10%", _shares,
              "moe-placer schedule I P --micro-batches 1 --tokens-per-gpu 32 --require shares=40/35/15/10"),
    Statement(31, "batch size for throughput; deep pipelining; even experts", _batch, "moe-placer sweep I P"),
)  # fmt: skip
