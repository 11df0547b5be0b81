"""Checks the fields of a DAG's file: all are known, and each is where it belongs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from moe_placer.verifier.dags.dag_rules import DagViolation
from moe_placer.verifier.dags.read_back import DagFile, Row
from moe_placer.verifier.deployment import Deployment

__all__ = ["check_groups", "check_keys", "check_steps"]

_OPERATION = {
    *("id", "kind", "role", "gpus", "layer", "group", "flops", "bytes_read", "experts", "inputs", "outputs"),
    *("repeats", "batch", "moved"),
}
_ORDER = {"source", "target", "travel", "style", "key"}
_EDGE = {*_ORDER, "tensor", "dtype", "shape", "bytes", "routes", "hot"}
# Facts that other rules look at; files of older versions have no metric and no per_token.
_STATED = {"layers", "links", "routes", "batches", "metric", "per_token"}
_BEFORE = {"input", "split", "embedding", "embedding_reduce"}
_AFTER = {"norm", "head", "sample", "sample_reduce", "gather", "output"}
_ALL_GROUPS = {"split", "gather", "dispatch", "combine", "dispatch_receive", "combine_send"}
_WHOLE_STEP = {"input", "split", "gather", "output"}  # of both micro-batches together
_MERGED = {"dispatch", "combine"}  # what only a DAG of merged operations has


def check_keys(dag: DagFile, deployment: Deployment) -> Iterator[DagViolation]:
    """Rule ``dag-form``: fields of the whole, of every operation and every edge are known, and where they belong."""
    yield from _check_facts(dag, deployment)
    for name, op in dag.operations.items():
        for key in sorted(op.keys() - _OPERATION):
            yield dag.breach("dag-form", name, f"{key!r} is no field of an operation")
        for key, belongs in (
            ("experts", op["kind"] == "expert"),
            ("layer", op["kind"] not in _BEFORE | _AFTER),
            ("batch", "batches" in dag.facts and op["kind"] not in _WHOLE_STEP),
        ):
            if (key in op) != belongs:
                rule = "dag-layers" if key == "layer" else "dag-form"
                yield dag.breach(rule, name, f"{op['kind']} {'without' if belongs else 'with'} {key}")
        times = _repeats(dag, op, deployment)
        if op.get("repeats", 1) != times:
            yield dag.breach("dag-layers", name, f"it stands for {op.get('repeats', 1)} layers, required is {times}")
    counted: Counter[tuple[str, str]] = Counter()
    for row in dag.edges:
        where = f"{row['source']} -> {row['target']}"
        for key in sorted(row.keys() - (_ORDER if row["travel"] == "order" else _EDGE)):
            yield dag.breach("dag-form", where, f"{key!r} is no field of such an edge")
        ends = row["source"], row["target"]
        if row.get("key") != counted[ends]:
            yield dag.breach("dag-form", where, f"key is {row.get('key')}, required is {counted[ends]}")
        counted[ends] += 1


def _check_facts(dag: DagFile, deployment: Deployment) -> Iterator[DagViolation]:
    """Facts of the whole: those of the instance, and what the operations show."""
    instance, kinds = deployment.instance, {op["kind"] for op in dag.operations.values()}
    layers = dag.facts.get("layers")
    shown = {str(layer) for layer in layers if layer in deployment.moe} if isinstance(layers, list) else set()
    required: dict[str, Any] = {
        "name": instance.name,
        "view": dag.name,
        "nodes": instance.cluster.nodes,
        "gpus_per_node": instance.cluster.gpus_per_node,
        "dp": instance.parallelism.dp,
        "tp": instance.parallelism.attention_tp,
        "dispatch": instance.placement.dispatch,
        "whole": "embedding" in kinds,
    }
    if kinds & _MERGED:
        required["contracted"] = True
    for key, value in required.items():
        if (found := dag.facts.get(key)) != value or type(found) is not type(value):
            yield dag.breach("dag-form", "", f"{key} is {found!r}, required is {value!r}")
    for key in sorted(dag.facts.keys() - required.keys() - _STATED):
        yield dag.breach("dag-form", "", f"{key!r} is no fact of a DAG")
    for key in sorted(dag.beside):
        yield dag.breach("dag-form", "", f"{key!r} beside graph, nodes and edges is not as it should be")
    links = dag.facts.get("links")
    if isinstance(links, dict) and links.keys() != shown:
        message = f"links have costs in layers {sorted(links)}, MoE layers shown are {sorted(shown)}"
        yield dag.breach("dag-layers", "", message)
    yield from _check_batches(dag)


def _check_batches(dag: DagFile) -> Iterator[DagViolation]:
    """Every stage has each micro-batch."""
    count = dag.facts.get("batches", 1)
    if type(count) is not int or not 1 <= count <= 1024 or ("batches" in dag.facts and count == 1):
        yield dag.breach("dag-form", "", f"batches are {count!r}, required is a number above 1, or none")
        return
    found: dict[tuple[object, str], set[int]] = defaultdict(set)
    for op in dag.operations.values():
        if "batch" in op:
            found[op.get("layer"), op["kind"]].add(op["batch"])
    for (layer, kind), batches in found.items():
        if batches != set(range(count)):
            where = kind if layer is None else f"{kind} of layer {layer}"
            yield dag.breach("dag-form", "", f"{where} is of micro-batches {sorted(batches)}, of {count} in all")


def _repeats(dag: DagFile, op: Row, deployment: Deployment) -> int:
    """How many layers an operation stands for: itself, or, where one layer stands for all of its kind, all of these."""
    model, moe = deployment.instance.model, deployment.moe
    if "layer" not in op or "contracted" not in dag.facts or dag.facts.get("layers") == list(range(model.layers)):
        return 1
    return len(moe) if op["layer"] in moe else len(model.dense_layers)


def check_steps(dag: DagFile) -> Iterator[DagViolation]:
    """Rule ``dag-layers``: a tensor stays in its layer and micro-batch, or goes to the attention of the next layer."""
    layers = dag.facts.get("layers")
    stages = {layer: place for place, layer in enumerate(layers)} if isinstance(layers, list) else {}

    def stage(op: Row) -> int:
        if op["kind"] in _BEFORE or op["kind"] in _AFTER:
            return -1 if op["kind"] in _BEFORE else len(stages)
        return stages.get(op.get("layer"), -2)

    for row in dag.edges:
        source, target = dag.operations[row["source"]], dag.operations[row["target"]]
        if row["travel"] == "order" or "batch" not in source or "batch" not in target:
            pass
        elif source["batch"] != target["batch"]:
            yield dag.breach("dag-form", f"{row['source']} -> {row['target']}", "it leads to another micro-batch")
        if row["travel"] == "order" or -2 in (stage(source), stage(target)):
            continue
        enters = target["kind"] in {"attention", "norm", "output"} and source["kind"] != "gather"
        if stage(target) - stage(source) != int(enters):
            where = f"{row['source']} -> {row['target']}"
            yield dag.breach("dag-layers", where, "it leads neither on in its layer nor to the start of the next")


def check_groups(dag: DagFile, deployment: Deployment) -> Iterator[DagViolation]:
    """Rule ``dag-gpus``: an operation names the DP group of its source nodes, an expert its replica's, or none."""
    fed: dict[str, set[int | None]] = defaultdict(set)
    for row in dag.edges:
        fed[row["target"]].add(dag.operations[row["source"]].get("group"))
    for name, op in dag.operations.items():
        if op["gpus"]:  # where there is none, another rule says so
            required = _groups(dag, op, deployment) if op["kind"] != "expert_reduce" else fed[name] - {None}
            group = required.pop() if len(required) == 1 else None
            if op.get("group") != group:
                message = (
                    f"it is of DP group {op.get('group', 'none')}, required is {'none' if group is None else group}"
                )
                yield dag.breach("dag-gpus", name, message)


def _groups(dag: DagFile, op: Row, deployment: Deployment) -> set[int]:
    instance, kind = deployment.instance, op["kind"]
    if kind in _ALL_GROUPS or (kind in {"input", "output"} and dag.facts.get("whole") is True):
        return set()
    if kind == "expert":
        by_replica = instance.placement.replica_routing == "group"
        return {pair[1] for pair in op.get("experts", [])} if by_replica else set()
    size = (
        instance.cluster.gpus_per_node
        if kind in {"dispatch_send", "combine_receive"}
        else instance.parallelism.attention_tp
    )
    first: dict[int, int] = {}
    for gpu in op["gpus"]:
        first.setdefault(gpu // size, gpu)
    return {deployment.node(gpu) * instance.parallelism.dp // instance.cluster.nodes for gpu in first.values()}
