"""Where statements of a plan contradict each other or the computation, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator

from moe_placer.experiments.plan.figures import Figures, percent

__all__ = ["contradictions"]


def contradictions(f: Figures) -> Iterator[str]:
    """Yield what does not go together, in sentences."""
    yield from _shares_and_mfu(f)
    yield from _other_degree(f)
    yield from _full_slots(f)
    yield from _cache(f)
    yield from _links(f)


def _shares_and_mfu(f: Figures) -> Iterator[str]:
    planned, gpu = f.instance["schedule"]["planned_shares"], f.instance["cluster"]["gpu"]
    if planned is None:
        return
    most = planned["computation"] * gpu["mfu"]
    small, large = f.step(small=True, micro_batches=1), f.step()
    shares = "/".join(percent(value).removesuffix("%") for value in small["shares"].values())
    yield (
        f"{percent(planned['computation'])} computation (30) with kernels at {percent(gpu['mfu'])} of the peak (9) is "
        f"{percent(most)} MFU of the step, not {percent(gpu['mfu'])} (29). That is what comes out at "
        f"{small['tokens_per_gpu']:g} tokens per GPU in one micro-batch: shares {shares}, MFU {percent(small['mfu'])}. "
        f"With {large['tokens_per_gpu']:,g} tokens and two micro-batches it is {percent(large['mfu'])} MFU, and the "
        f"shares do not hold."
    )


def _other_degree(f: Figures) -> Iterator[str]:
    crossing, ratios = f.crossing("Batches, prefill"), f.ratios("Batches, prefill", "tokens_per_gpu")
    if crossing is None:
        return
    name = list(dict.fromkeys(row["plan"] for row in f.swept("Batches, prefill")))[1]
    large = max(ratios)
    yield (
        f"The other plan, {name}, is faster above about {crossing.at:,.0f} tokens per GPU (between "
        f"{crossing.low:g} and {crossing.high:g}), "
        f"by {percent(ratios[large] - 1)} at {large:,g}: large batches (36) and compute-bound "
        f"work (37) favour it, not this "
        f"plan. This plan's advantage is memory: its weights are {_weights(f)} GB less on a "
        f"GPU, and at small batches each "
        f"GPU reads fewer of them."
    )


def _weights(f: Figures) -> str:
    weights = [row["weights_bytes"] for row in f.swept("Batches, prefill")]
    return f"{(max(weights) - min(weights)) / 1e9:,.1f}"


def _full_slots(f: Figures) -> Iterator[str]:
    if f.plan["most_of_a_layer"] != 1 or f.plan["experts_per_gpu"][0] < len(f.plan["moe_layers"]):
        return
    yield (
        "One expert of a layer on every GPU (1) fills every slot, so there is none for "
        "redundant placement of hot experts "
        "(41), and where an expert sits cannot change how busy its GPU is (31): only replicas can. Redundancy needs a "
        "second slot on GPUs (`slots_per_gpu: 2`), which gives up statement 1."
    )


def _cache(f: Figures) -> Iterator[str]:
    decode = f.step(phase="decode")
    if decode["fits"]:
        return
    size = max(decode["memory_gb"]["size"])
    yield (
        f"Multi-head attention keeps keys and values of all heads (13): "
        f"{decode['tokens_per_gpu']:g} tokens per GPU with "
        f"context {decode['context']:,g} need {decode['high_water_gb']:,.0f} GB of {size:,.0f} GB (39). Large decode "
        f"batches (31, 36) do not fit; {decode['most_tokens_per_gpu']:,.1f} tokens per GPU do."
    )


def _links(f: Figures) -> Iterator[str]:
    links, mfu = f.target("links"), f.target("mfu")
    if links["ok"] or mfu["ok"]:
        return
    yield (
        f"{percent(links['asked'][0])} of the network (27) and {percent(mfu['asked'][0])} MFU "
        f"(29) at the same time would "
        f"need all-to-alls under way and kernels running in the whole step. Layers take turns, and one waits for the "
        f"other: {percent(links['got'][0])} and {percent(mfu['got'][0])} come out."
    )
