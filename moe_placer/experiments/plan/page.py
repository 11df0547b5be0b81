"""The page of a plan, from its rows alone: assumptions, placement, memory, steps, targets, conditions, statements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from moe_placer.experiments.environment import environment_in_words
from moe_placer.experiments.plan.blocks import Block, Gallery, Heading, Items, Picture, Table, Text
from moe_placer.experiments.plan.figures import Figures, ms, percent
from moe_placer.experiments.plan.pictures import draw_layers, draw_memory, draw_overview
from moe_placer.experiments.plan.plan_contradictions import contradictions
from moe_placer.experiments.plan.statements import STATEMENTS, VERDICTS
from moe_placer.experiments.plan.step_sections import conditions, kernels, other_plans, steps, targets, troubles

__all__ = ["DRAWINGS", "build_blocks", "judge"]

DRAWINGS = "dags"  # folder of the four drawings, beside the page

_DAGS = (
    ("comprehensive_moe_dag", "every layer, every operation, every expert replica on its GPU", ""),
    ("simplified_moe_dag", "one dense layer and the MoE layer with the busiest link, on one page", ""),
    ("detailed_expert_dag", "that MoE layer, expert by expert", ""),
    ("complete_deployment_dag", "all parallel strategies in two micro-batches", ""),
    ("layer_operators", "one layer down to QKV, softmax, norms and residuals", " --operators"),
    ("model_operators", "all layers down to operators, as data", " --operators"),
)
_SCOPE = (
    "Weights kept in step between replicas (18) and gradient checkpointing (39) are of training; this is inference.",
    "Gating adjusted at run time (17, 29, 40) changes the model's answers. `replan` follows traffic instead, and "
    "redundant replicas balance it.",
    "Time-outs (41) are the engine's. A slow GPU is simulated as it is.",
    "Nothing is measured on GPUs: steps are simulated with the instance's own hardware figures (docs/schedule.md).",
)


def judge(figures: Figures) -> list[tuple[int, str, str]]:
    """Return number, verdict and sentence of every statement."""
    found = []
    for statement in STATEMENTS:
        verdict, sentence = statement.judge(figures)
        if verdict not in VERDICTS:
            raise ValueError(f"statement {statement.number} is judged {verdict!r}")
        found.append((statement.number, verdict, sentence))
    return found


def build_blocks(figures: Figures, environment: Mapping[str, Any], drawn: Collection[str] = ()) -> list[Block]:
    """Return the page as blocks; the same rows and names of files that are ``drawn`` give the same ones."""
    judged = judge(figures)
    made = (
        f"{environment_in_words(environment)}. `moe-placer plan-report` computes the rows, and "
        "`moe-placer plan-report --rebuild -o DIR` makes this page from them, byte for byte."
    )
    return [
        Heading(f"{figures.instance['name']}: the plan, computed", 1),
        Text(_summary(figures, judged)),
        *_assumptions(figures),
        *_placement(figures),
        *_memory(figures),
        *_dags(drawn),
        *steps(figures),
        *targets(figures),
        *conditions(judged),
        *other_plans(figures),
        *troubles(figures),
        *kernels(figures),
        Heading("Where statements contradict each other, or the computation"),
        Items(tuple(contradictions(figures))),
        Heading("Out of scope"),
        Items(_SCOPE),
        *_statements(judged),
        Heading("How this was made"),
        Text(made),
    ]


def _summary(f: Figures, judged: list[tuple[int, str, str]]) -> str:
    counts = Counter(verdict for _, verdict, _ in judged)
    told = ", ".join(f"{verdict} {counts[verdict]}" for verdict in VERDICTS if counts[verdict])
    step, one = f.step(), f.step(micro_batches=1)
    return (
        f"Placed by `{f.plan['placed_by']}`, a step of {step['tokens_per_gpu']:,g} tokens per GPU takes "
        f"{ms(step['latency_us'])} ({ms(one['latency_us'])} without overlap), at {percent(step['mfu'])} MFU. "
        f"Of {len(judged)} statements of the plan: {told}. Every figure here is computed; nothing is measured on GPUs."
    )


def _assumptions(f: Figures) -> list[Block]:
    """Return what the plan leaves open, as fields that one can change."""
    model, cluster, traffic = (f.instance[name] for name in ("model", "cluster", "traffic"))
    fabric = cluster["fabric"]
    wide = model["dense_hidden_size"] or f"{model['top_k'] * model['expert_hidden_size']} (as top_k experts)"
    skew = traffic["kind"] + (f", seed {traffic['seed']}" if "seed" in traffic else "")
    rows = [
        ("model.top_k", model["top_k"], "top-K gating"),
        ("model.dense_hidden_size", wide, "width of dense layers"),
        ("model.vocab_size", model["vocab_size"], "embedding and head"),
        ("traffic.tokens_per_gpu", f"{traffic['tokens_per_gpu']:g}", "tokens that start on each GPU in a step"),
        ("traffic.kind", skew, "skew of routing"),
        ("cluster.fabric.kind", fabric["kind"], "fat tree or as good"),
        ("cluster.fabric.node_gb_per_s", f"{fabric['node_gb_per_s']:g}", "NICs of a node, one direction, GB/s"),
        ("cluster.fabric.nodes_per_leaf", fabric.get("nodes_per_leaf", "-"), "nodes on a leaf switch"),
        ("cluster.fabric.oversubscription", fabric.get("oversubscription", "-"), "leaf down over leaf up"),
        ("cluster.fabric.link_utilization", f"{fabric['link_utilization']:g}", "share of a link that is reached"),
        ("cluster.gpu.mfu", f"{cluster['gpu']['mfu']:g}", "share of the peak that a kernel reaches"),
        ("parallelism.attention_tp", f.instance["parallelism"]["attention_tp"], "GPUs that share attention"),
        ("placement.dispatch", f.instance["placement"]["dispatch"], "what a token is sent once for"),
        ("placement.kv_cache_gb", f"{f.instance['placement']['kv_cache_gb']:g}", "kept free for keys and values"),
    ]
    table = Table(("field", "here", "what it stands for"), tuple((f"`{a}`", str(b), c) for a, b, c in rows), 3)
    said = (
        "The plan leaves these open. Change a field of the instance I, place it (`moe-placer solve I -o out` writes "
        "out/placement.json, P), and make this page again: `moe-placer plan-report I P -o plan`."
    )
    return [Heading("Assumptions"), Text(said), table]


def _placement(f: Figures) -> list[Block]:
    layers, z = f.plan["moe_layers"], f.plan["z"]
    worst = max(range(len(z)), key=z.__getitem__)
    bound, (low, high) = f.plan["total_bound"], f.plan["experts_per_gpu"]
    each = str(low) if low == high else f"{low} to {high}"
    gap = f", {percent(f.plan['total_z'] / bound - 1, 2)} above what no placement can beat" if bound else ""
    words = (
        f"Dispatch of all {len(layers)} MoE layers needs {ms(f.plan['dispatch_us'])} one way on their busiest "
        f"links{gap}. The busiest link of a layer is {f.plan['worst_link'][worst]} in layer {layers[worst]}, "
        f"{ms(f.plan['worst_link_us'][worst])}. A GPU holds {each} experts over all layers, at "
        f"most {f.plan['most_of_a_layer']} of one."
    )
    return [
        Heading("Placement"),
        Text(words),
        Picture("placement.svg", "In how many layers each node holds each expert", draw_overview(f)),
        Picture("layers.svg", "The node of every expert replica in every MoE layer", draw_layers(f)),
    ]


def _memory(f: Figures) -> list[Block]:
    decode = f.step(phase="decode")
    words = (
        f"Weights are {max(f.step()['memory_gb']['weights']):,.1f} GB on the fullest GPU: "
        f"{f.plan['resident_gb']:,.1f} GB of attention, dense layers, embeddings and what is reserved, and experts of "
        f"{1e3 * f.plan['expert_gb']:,.0f} MB each. Decode of {decode['tokens_per_gpu']:g} tokens per GPU with context "
        f"{decode['context']:,g} needs {decode['high_water_gb']:,.0f} GB; at most "
        f"{decode['most_tokens_per_gpu']:,.1f} tokens per GPU fit."
    )
    return [Heading("Memory"), Text(words), Picture("memory.svg", "Memory of every GPU by part", draw_memory(f))]


def _dags(drawn: Collection[str]) -> list[Block]:
    rows = tuple((name, shows, f"`moe-placer dag I P{flag}`") for name, shows, flag in _DAGS)
    said = "Each is checked before it is written, and again by `moe-placer verify I P`."
    shown = tuple(
        (
            f"{DRAWINGS}/{name}.svg",
            f"{DRAWINGS}/{name}.{'png' if f'{name}.png' in drawn else 'svg'}",
            f"{name}: {shows}",
        )
        for name, shows, _ in _DAGS
        if f"{name}.svg" in drawn
    )
    table = Table(("graph", "shows", "command"), rows, 3)
    return [Heading("DAGs"), Text(said), table, *([Gallery(shown)] if shown else [])]


def _statements(judged: list[tuple[int, str, str]]) -> list[Block]:
    rows = tuple(
        (str(number), statement.text, f"**{verdict}**", sentence, f"`{statement.command}`")
        for statement, (number, verdict, sentence) in zip(STATEMENTS, judged, strict=True)
    )
    said = "; ".join(f"{verdict} ({meaning})" for verdict, meaning in VERDICTS.items())
    head = ("", "statement", "verdict", "computed", "command")
    files = (
        "I is the instance, and P a placement of it (`moe-placer solve I -o out` writes out/placement.json). I2 and P2 "
        "are those of another number of GPUs, I8 and P8 those of another degree of expert parallelism."
    )
    return [Heading("All statements"), Text(f"{files} Verdicts are {said}."), Table(head, rows, 5)]
