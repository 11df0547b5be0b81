"""Checks a DAG against the placement: its layers, GPUs, communication, experts and tokens."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from moe_placer.verifier.dags.dag_rules import DagViolation, differs
from moe_placer.verifier.dags.read_back import DagFile, Row
from moe_placer.verifier.deployment import Deployment, MoeLayer
from moe_placer.verifier.sending import sends_every_choice

__all__ = ["check_communication", "check_experts", "check_gpus", "check_layers", "check_traffic"]

WHOLE = ("comprehensive_moe_dag", "complete_deployment_dag")  # these promise every layer
# What every tensor-parallel group has a part in, drawn as one operation or as many.
_EVERYWHERE = {
    *("attention", "gate", "split", "embedding", "dispatch", "combine", "aggregate", "sample", "gather"),
}
_DASHED = {"attention_reduce", "gate_scatter"}  # communication of MHA and gating
# What GPUs that share an operation must do with its result before anything else uses it.
_SHARED = {
    "embedding": "embedding_reduce",
    "attention": "attention_reduce",
    "mlp": "mlp_reduce",
    "gate": "gate_scatter",
    "expert": "expert_reduce",
    "sample": "sample_reduce",
}
# Tokens go to experts and back by an all-to-all only.
_BEFORE = {
    "expert": {"dispatch_receive", "dispatch"},
    "dispatch_receive": {"dispatch_send"},
    "combine_receive": {"combine_send"},
    "combine_send": {"expert", "expert_reduce"},
    "combine": {"expert", "expert_reduce"},
}


def _of_layer(dag: DagFile) -> dict[int, list[tuple[str, Row]]]:
    table: dict[int, list[tuple[str, Row]]] = defaultdict(list)
    for name, op in dag.operations.items():
        if "layer" in op:
            table[op["layer"]].append((name, op))
    return table


def check_layers(dag: DagFile, deployment: Deployment) -> Iterator[DagViolation]:
    """Rule ``dag-layers``: what the DAG says it shows is there, and nothing else."""
    model, moe = deployment.instance.model, set(deployment.instance.moe_layers)
    layers = dag.facts.get("layers")
    if not isinstance(layers, list) or not all(type(n) is int and 0 <= n < model.layers for n in layers):
        yield dag.breach("dag-layers", "", f"its layers are not numbers from 0 to {model.layers - 1}")
        return
    if layers != sorted(set(layers)):
        yield dag.breach("dag-layers", "", "its layers are not in ascending order")
    if dag.name in WHOLE and layers != list(range(model.layers)):
        yield dag.breach("dag-layers", "", f"it shows {len(layers)} layers, required are all {model.layers}")
    found = _of_layer(dag)
    for layer in sorted(found.keys() - set(layers)):
        yield dag.breach("dag-layers", found[layer][0][0], f"it is of layer {layer}, which the DAG does not show")
    for layer in layers:
        kinds = {op["kind"] for _, op in found[layer]}
        required = {"attention", "gate", "expert", "aggregate"} if layer in moe else {"attention", "mlp"}
        if layer in moe and model.shared_expert_hidden_size is not None:
            required = required | {"mlp"}
        for kind in sorted(required - kinds):
            yield dag.breach("dag-layers", "", f"layer {layer} has no {kind}")
        for kind in sorted(kinds & ({"mlp"} if layer in moe else {"gate", "expert", "aggregate"}) - required):
            yield dag.breach("dag-layers", "", f"layer {layer} has {kind}, which is none of its parts")


def check_gpus(dag: DagFile, deployment: Deployment) -> Iterator[DagViolation]:
    """Rule ``dag-gpus``: GPUs exist and work, and every kind of operation is on those that do it, each once."""
    count, serving = deployment.instance.gpus, deployment.serving
    placed = {gpu for layer in deployment.moe.values() for gpus in layer.gpus.values() for gpu in gpus}
    for name, op in dag.operations.items():
        if beyond := [gpu for gpu in op["gpus"] if gpu >= count]:
            yield dag.breach("dag-gpus", name, f"GPU {beyond[0]} does not exist; there are {count}")
        elif failed := [gpu for gpu in op["gpus"] if gpu not in serving and gpu not in placed]:
            yield dag.breach("dag-gpus", name, f"GPU {failed[0]} has failed")
    stages: dict[tuple[str, object, object], list[tuple[str, Row]]] = defaultdict(list)
    for name, op in dag.operations.items():
        if op["kind"] not in {"expert", "expert_reduce"}:  # `dag-experts` has these
            stages[op["kind"], op.get("layer"), op.get("batch")].append((name, op))
    for (kind, layer, _), some in stages.items():
        yield from _check_units(dag, kind, some, _units(kind, layer, dag.facts.get("whole") is True, deployment))


def _check_units(
    dag: DagFile, kind: str, operations: list[tuple[str, Row]], units: list[frozenset[int]]
) -> Iterator[DagViolation]:
    """Check the operations of one kind, layer and micro-batch: each is on whole units, and no GPU does it twice."""
    times = Counter(gpu for _, op in operations for gpu in op["gpus"])
    for name, op in operations:
        whole = set().union(*(unit for unit in units if unit & set(op["gpus"])))
        if op["gpus"] and set(op["gpus"]) != whole:
            message = f"{kind} runs on GPUs {_listed(op['gpus'])}, required is {_listed(whole)}"
            yield dag.breach("dag-gpus", name, message)
        elif again := [gpu for gpu in op["gpus"] if times[gpu] > 1]:
            yield dag.breach("dag-gpus", name, f"{kind} runs {times[again[0]]} times on GPU {again[0]}")
    if kind in _EVERYWHERE and (missing := set().union(*units) - times.keys()):
        yield dag.breach("dag-gpus", operations[0][0], f"no {kind} runs on GPU {min(missing)}")


def _units(kind: str, layer: object, whole: bool, deployment: Deployment) -> list[frozenset[int]]:
    """GPUs that do an operation together: tensor-parallel groups, the first of each, or all that serve in a node."""
    groups = list(deployment.tensor_groups.values())
    if kind == "gate":
        return [frozenset({min(group)}) for group in groups]
    if kind in {"input", "output"} and whole:
        return [frozenset(sorted(set(range(deployment.instance.gpus)) - deployment.failed)[:1])]
    if kind in {"dispatch_receive", "combine_send"}:
        placed = deployment.moe.get(layer) if isinstance(layer, int) else None
        held = {deployment.node(gpu) for gpus in placed.gpus.values() for gpu in gpus} if placed else set()
        return [frozenset(deployment.serving_of_node.get(node, [])) for node in sorted(held)]
    if kind in {"dispatch_send", "combine_receive"}:
        return [frozenset(gpus) for gpus in deployment.serving_of_node.values()]
    return groups


def check_communication(dag: DagFile, deployment: Deployment) -> Iterator[DagViolation]:
    """Rule ``dag-communication``."""
    for row in dag.edges:
        source, target = dag.operations[row["source"]], dag.operations[row["target"]]
        where, kinds = f"{row['source']} -> {row['target']}", {source["kind"], target["kind"]}
        dashed = row["travel"] != "order" and bool(kinds & _DASHED)
        if (row["style"] == "dashed") != dashed:
            what = "dashed, since it is communication of MHA or gating" if dashed else "not dashed"
            yield dag.breach("dag-communication", where, f"it is drawn {row['style']}, required is {what}")
        if row["travel"] == "order":
            continue
        communicates = "communication" in {source["role"], target["role"]}
        if row["travel"] != "same-gpu" and not communicates:
            yield dag.breach(
                "dag-communication", where, f"it travels by {row['travel']} without a communication operation"
            )
        placed = source["gpus"] and target["gpus"]  # where there is none, `dag-gpus` says so
        if placed and not set(source["gpus"]) & set(target["gpus"]) and row["travel"] == "same-gpu":
            yield dag.breach("dag-communication", where, "it stays on its GPU, but its ends have no GPU in common")
        if bool(row.get("routes")) != (row["travel"] == "network"):
            yield dag.breach(
                "dag-communication", where, f"it travels by {row['travel']} over {row.get('routes', 'no routes')}"
            )
        needed = _SHARED.get(source["kind"])
        if needed and target["kind"] != needed and _is_shared(source, deployment):
            message = f"GPUs share {row['source']}, so its result must go to {needed}, not to {target['kind']}"
            yield dag.breach("dag-communication", where, message)
        allowed = _BEFORE.get(target["kind"])
        if allowed is not None and source["kind"] not in allowed:
            message = f"tokens reach {target['kind']} from {source['kind']}, required is {' or '.join(sorted(allowed))}"
            yield dag.breach("dag-communication", where, message)


def _is_shared(op: Row, deployment: Deployment) -> bool:
    """Whether the operation is divided among GPUs by tensor parallelism, failed ones counted."""
    if op["kind"] == "expert":
        return deployment.instance.parallelism.expert_tp > 1
    return deployment.shares_attention


def check_experts(dag: DagFile, deployment: Deployment) -> Iterator[DagViolation]:
    """Rule ``dag-experts``: in every micro-batch every replica of the shown MoE layers, once, where it is placed."""
    found = _of_layer(dag)
    for row in dag.edges:
        source, target = dag.operations[row["source"]], dag.operations[row["target"]]
        if target["kind"] == "expert_reduce" and source["kind"] == "expert" and target["gpus"] != source["gpus"]:
            yield dag.breach("dag-experts", row["target"], f"it sums what {row['source']} makes on other GPUs")
    for layer in dag.facts.get("layers") or []:
        if (placed := deployment.moe.get(layer)) is None:
            continue
        experts = [(name, op) for name, op in found[layer] if op["kind"] == "expert"]
        batches = {op.get("batch") for _, op in found[layer] if op["kind"] in {"expert", "attention"}}
        for batch in sorted(batches, key=str):
            some = [(name, op) for name, op in experts if op.get("batch") == batch]
            yield from _check_replicas(dag, layer, placed, some)
        for name, op in experts:
            gpus = frozenset().union(*(placed.gpus.get(tuple(pair), frozenset()) for pair in op.get("experts", [])))
            if set(op["gpus"]) != gpus:
                message = f"it runs on GPUs {_listed(op['gpus'])}, the placement says {_listed(gpus)}"
                yield dag.breach("dag-experts", name, message)


def _check_replicas(
    dag: DagFile, layer: int, placed: MoeLayer, operations: list[tuple[str, Row]]
) -> Iterator[DagViolation]:
    times = Counter(tuple(pair) for _, op in operations for pair in op.get("experts", []))
    for key in sorted(placed.gpus.keys() | times.keys()):
        required = int(key in placed.gpus)
        if times[key] != required:
            where = next((name for name, op in operations if list(key) in op.get("experts", [])), "")
            message = f"expert {key[0]}, replica {key[1]} of layer {layer} is there {times[key]} times"
            yield dag.breach("dag-experts", where, f"{message}, required is {required}")


def _listed(gpus: object) -> str:
    numbers = sorted(gpus)  # type: ignore[call-overload]
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "") or "none"


def check_traffic(dag: DagFile, deployment: Deployment) -> Iterator[DagViolation]:
    """Rule ``dag-traffic``: tokens to every expert and between nodes, routes, and costs of links."""
    yield from _check_facts(dag, deployment)
    batches: dict[int, set[object]] = defaultdict(set)
    for op in dag.operations.values():
        batches[op.get("layer", -1)].add(op.get("batch"))
    for name, op in dag.operations.items():
        placed = deployment.moe.get(op.get("layer", -1))
        if op["kind"] != "expert" or placed is None:
            continue
        found = sum(shape[0] for shape in op["inputs"].values())
        required = sum(placed.tokens.get(tuple(pair), 0.0) for pair in op.get("experts", []))
        required /= len(batches[op["layer"]])
        if differs(found, required):
            yield dag.breach("dag-traffic", name, f"{found:,.3f} tokens arrive, the placement gives it {required:,.3f}")
    for row in dag.edges:
        yield from _check_between_nodes(dag, row, deployment, batches)
    yield from _check_attention(dag, deployment, batches)
    yield from _check_returned(dag, deployment, batches)


def _check_returned(dag: DagFile, deployment: Deployment, batches: dict[int, set[object]]) -> Iterator[DagViolation]:
    """Where sums of results come back, every tensor-parallel group gets one for each copy of its own tokens."""
    if sends_every_choice(deployment.instance):
        return  # one for every choice, says `dag-arithmetic`
    size = deployment.instance.parallelism.attention_tp
    for name, op in dag.operations.items():
        if op["kind"] == "aggregate" and op.get("layer") in deployment.moe:
            found = sum(shape[0] for tensor, shape in op["inputs"].items() if tensor.startswith("combined"))
            required = deployment.returned(op["layer"], {gpu // size for gpu in op["gpus"]})
            required /= len(batches[op["layer"]])
            if differs(found, required):
                yield dag.breach("dag-traffic", name, f"{found:,.3f} results come back, {required:,.3f} copies left")


def _check_attention(dag: DagFile, deployment: Deployment, batches: dict[int, set[object]]) -> Iterator[DagViolation]:
    """Every tensor-parallel group attends to the tokens that start on its GPUs, and to those of GPUs that failed."""
    size = deployment.instance.parallelism.attention_tp
    for name, op in dag.operations.items():
        if op["kind"] == "attention" and "layer" in op:
            groups = {gpu // size for gpu in op["gpus"]}
            required = sum(deployment.group_tokens.get(group, 0.0) for group in groups) / len(batches[op["layer"]])
            found = sum(shape[0] for shape in op["inputs"].values())
            if differs(found, required):
                yield dag.breach("dag-traffic", name, f"{found:,.3f} tokens arrive, {required:,.3f} start on its GPUs")


def _check_facts(dag: DagFile, deployment: Deployment) -> Iterator[DagViolation]:
    stated, routes = dag.facts.get("links"), dag.facts.get("routes")
    if not isinstance(stated, dict) or not isinstance(routes, dict):
        yield dag.breach("dag-traffic", "", "facts have no costs of links, or no routes")
        return
    for layer in dag.facts.get("layers") or []:
        if (placed := deployment.moe.get(layer)) is not None and not _alike(stated.get(str(layer)), placed.cost):
            yield dag.breach("dag-traffic", "", f"costs of links in layer {layer} are not those of the placement")
    yield from _check_per_token(dag, deployment)
    for pair, links in routes.items():
        if not _alike(links, deployment.routes.get(pair, {})):
            yield dag.breach("dag-traffic", "", f"the way {pair} is not that of the fabric")
    used = {(pair, f"{row['source']} -> {row['target']}") for row in dag.edges for pair in row.get("routes", [])}
    may, must = _inside(dag, deployment)
    for pair in sorted(must - routes.keys()):
        yield dag.breach("dag-traffic", "", f"tokens go the way {pair}, which the facts do not have")
    for pair in sorted(routes.keys() - {pair for pair, _ in used} - may):
        yield dag.breach("dag-traffic", "", f"no tensor goes the way {pair} that the facts have")
    for pair, where in sorted(used):
        if pair not in routes:
            yield dag.breach("dag-traffic", where, f"it goes {pair}, a way that the facts do not have")


def _inside(dag: DagFile, deployment: Deployment) -> tuple[set[str], set[str]]:
    """Ways that tensors may and must go inside all-to-alls drawn as one operation: to nodes with experts, and back."""
    may: set[str] = set()
    must: set[str] = set()
    for layer in {op.get("layer", -1) for op in dag.operations.values() if op["kind"] in {"dispatch", "combine"}}:
        if (placed := deployment.moe.get(layer)) is not None:
            held = {deployment.node(gpu) for gpus in placed.gpus.values() for gpu in gpus}
            pairs = [(s, d) for s in range(deployment.instance.cluster.nodes) for d in held if deployment.apart(s, d)]
            may |= {way for s, d in pairs for way in (f"{s}>{d}", f"{d}>{s}")}
            must |= {way for s, d in pairs if placed.flow[s, d] > 0 for way in (f"{s}>{d}", f"{d}>{s}")}
    return may, must


def _check_per_token(dag: DagFile, deployment: Deployment) -> Iterator[DagViolation]:
    """Check what a token costs on each link and how long it takes."""
    metric, stated = deployment.instance.objective.metric, dag.facts.get("per_token")
    if (found := dag.facts.get("metric")) != metric:
        yield dag.breach("dag-traffic", "", f"facts say metric: {found!r}, required is {metric}")
    if not isinstance(stated, dict):
        yield dag.breach("dag-traffic", "", "per_token is no table of links")
        return
    network = deployment.network
    for column, figures in enumerate((network.scale, network.us_per_token)):
        own = {link: each[column] for link, each in stated.items() if isinstance(each, list) and len(each) == 2}
        if not _alike(own, dict(zip(network.links, figures.tolist(), strict=True))):
            what = ("costs", "times")[column]
            yield dag.breach("dag-traffic", "", f"{what} of a token on links are not those of the fabric")


def _alike(found: object, required: dict[str, float]) -> bool:
    if not isinstance(found, dict) or found.keys() != required.keys():
        return False
    return all(type(value) in (int, float) and not differs(value, required[link]) for link, value in found.items())


def _check_between_nodes(
    dag: DagFile, row: Row, deployment: Deployment, batches: dict[int, set[object]]
) -> Iterator[DagViolation]:
    """Dispatch from node s to node d carries the tokens of s for the experts on d; combine takes as many back."""
    source, target = dag.operations[row["source"]], dag.operations[row["target"]]
    ends = source["kind"], target["kind"]
    placed = deployment.moe.get(source.get("layer", -1))
    if placed is None or ends not in {("dispatch_send", "dispatch_receive"), ("combine_send", "combine_receive")}:
        return
    if not source["gpus"] or not target["gpus"] or max(source["gpus"] + target["gpus"]) >= deployment.instance.gpus:
        return  # told by another rule
    s, d = deployment.node(source["gpus"][0]), deployment.node(target["gpus"][0])
    tokens = float(placed.flow[s, d] if ends[0] == "dispatch_send" else placed.flow[d, s])
    tokens /= len(batches[source["layer"]])
    where = f"{row['source']} -> {row['target']}"
    if differs(row["shape"][0], tokens):
        yield dag.breach("dag-traffic", where, f"{row['shape'][0]:,.3f} tokens, the placement gives {tokens:,.3f}")
    if row.get("routes", []) != ([f"{s}>{d}"] if deployment.apart(s, d) else []):
        yield dag.breach(
            "dag-traffic", where, f"it goes {row.get('routes', [])}, required is from node {s} to node {d}"
        )
