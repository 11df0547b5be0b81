"""Checks how every tensor travels, the cost of its links, and the DP group that an operation serves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from moe_placer.verifier.capacity import wire_bytes
from moe_placer.verifier.dags.dag_rules import DagViolation, differs
from moe_placer.verifier.dags.read_back import DagFile, Row
from moe_placer.verifier.dags.structure import ALL_TO_ALL, FORWARDED
from moe_placer.verifier.deployment import Deployment

__all__ = ["check_hot", "check_travel"]

# What GPUs of a tensor-parallel group exchange among themselves.
_WITHIN_GROUP = {"embedding_reduce", "attention_reduce", "mlp_reduce", "sample_reduce", "gate_scatter"}
_HOT_DIGITS = 1e-6  # as written


def check_travel(dag: DagFile, deployment: Deployment) -> Iterator[DagViolation]:
    """Rule ``dag-communication``: what is exchanged takes NVLink or the network, what is handed on stays on its GPU."""
    for row in dag.edges:
        source, target = dag.operations[row["source"]], dag.operations[row["target"]]
        if row["travel"] == "order" or not _known([*source["gpus"], *target["gpus"]], deployment):
            continue
        if not source["gpus"] or not target["gpus"]:
            continue  # told by another rule
        required = _travel(source, target, deployment)
        if row["travel"] != required:
            where, message = f"{row['source']} -> {row['target']}", f"it travels by {row['travel']}"
            yield dag.breach("dag-communication", where, f"{message}, required is {required}")
        pairs = _ways(source, target, deployment) if required == "network" else set()
        ways = {f"{s}>{d}" for s, d in pairs if deployment.apart(s, d)}
        if (found := row.get("routes", [])) != sorted(ways, key=_pair):
            where, message = f"{row['source']} -> {row['target']}", f"it goes {', '.join(found) or 'nowhere'}"
            yield dag.breach("dag-traffic", where, f"{message}, required is {', '.join(sorted(ways)) or 'nowhere'}")


def _pair(way: str) -> tuple[int, ...]:
    return tuple(map(int, way.split(">")))


def _ways(source: Row, target: Row, deployment: Deployment) -> set[tuple[int, int]]:
    """Pairs of nodes between which a tensor goes: to or from where the step begins, around a ring, or all to all."""
    home, first = _home(deployment), deployment.node(source["gpus"][0])
    if target["kind"] == "split":
        return {(home, node) for node in _nodes(target["gpus"], deployment)}
    if target["kind"] == "gather":
        return {(node, home) for node in _nodes(source["gpus"], deployment)}
    if (source["kind"], target["kind"]) in ALL_TO_ALL:
        return {(first, deployment.node(target["gpus"][0]))}
    ways: set[tuple[int, int]] = set()
    for group in _groups(target["gpus"], deployment):
        nodes = _nodes(group, deployment)
        around = sorted(nodes)
        if target["kind"] == "gate_scatter":
            ways |= {(deployment.node(min(group)), node) for node in nodes}
        elif source["kind"] == "combine_receive":
            ways |= {(first, node) for node in nodes}
        elif source["kind"] == "combine":
            ways |= {(node, other) for node in nodes for other in nodes}
        else:
            ways |= set(zip(around, around[1:] + around[:1], strict=True))
    return ways


def _known(gpus: list[int], deployment: Deployment) -> bool:
    return all(gpu < deployment.instance.gpus for gpu in gpus)


def _groups(gpus: list[int], deployment: Deployment) -> list[frozenset[int]]:
    """GPUs of every tensor-parallel group that has some of these."""
    size, known = deployment.instance.parallelism.attention_tp, deployment.tensor_groups
    return [known.get(index, frozenset()) for index in sorted({gpu // size for gpu in gpus})]


def _nodes(gpus: Iterable[int], deployment: Deployment) -> set[int]:
    return {deployment.node(gpu) for gpu in gpus}


def _travel(source: Row, target: Row, deployment: Deployment) -> str:
    """How a tensor must travel between two operations."""
    kind, ends = target["kind"], (source["kind"], target["kind"])
    between = "nvlink" if len({*source["gpus"], *target["gpus"]}) > 1 else "same-gpu"
    if kind in {"split", "gather"}:
        many = target if kind == "split" else source
        home = _home(deployment)
        return "network" if any(deployment.apart(home, node) for node in _nodes(many["gpus"], deployment)) else between
    if kind in _WITHIN_GROUP:
        groups = _groups(target["gpus"], deployment)
        if any(_spread(group, deployment) for group in groups):
            return "network"
        return "nvlink" if any(len(group) > 1 for group in groups) else "same-gpu"
    if kind == "expert_reduce":
        return between
    if ends in ALL_TO_ALL:
        s, d = deployment.node(source["gpus"][0]), deployment.node(target["gpus"][0])
        # Forwarded tokens have not moved before, nor do sums afterwards, unless to another node.
        return "network" if deployment.apart(s, d) else "same-gpu" if deployment.forwards else between
    if deployment.forwards and ends in FORWARDED:
        nodes = _nodes((target if kind == "expert" else source)["gpus"], deployment)
        return "nvlink" if deployment.exchanges(nodes) else "same-gpu"
    if kind == "aggregate" and source["kind"] in {"combine", "combine_receive"}:
        groups = _groups(target["gpus"], deployment)
        if any(_spread(group, deployment) for group in groups):
            return "network"
        return between if any(len(_nodes(group, deployment)) > 1 for group in groups) else "same-gpu"
    return "same-gpu"


def _spread(gpus: Iterable[int], deployment: Deployment) -> bool:
    """Whether GPUs are of several NVLink domains."""
    first, *others = sorted(_nodes(gpus, deployment)) or [0]
    return any(deployment.apart(first, node) for node in others)


def _home(deployment: Deployment) -> int:
    """Node where the step's tokens come in and go out: that of the first GPU that works."""
    failed = set(deployment.instance.placement.failed_gpus)
    return deployment.node(next((gpu for gpu in range(deployment.instance.gpus) if gpu not in failed), 0))


def check_hot(dag: DagFile, deployment: Deployment) -> Iterator[DagViolation]:
    """Rule ``dag-traffic``: the cost of the costliest link on a tensor's routes, and bytes inside all-to-alls."""
    for row in dag.edges:
        source, target = dag.operations[row["source"]], dag.operations[row["target"]]
        if not _known([*source["gpus"], *target["gpus"]], deployment) or not source["gpus"] or not target["gpus"]:
            continue
        found, required = row.get("hot", 0.0), _hot(source, target, deployment)
        if type(found) not in (int, float) or not abs(found - required) <= _HOT_DIGITS:
            where = f"{row['source']} -> {row['target']}"
            yield dag.breach("dag-traffic", where, f"hot is {found}, its costliest link says {required:.6f}")
    yield from _check_moved(dag, deployment)


def _hot(source: Row, target: Row, deployment: Deployment) -> float:
    placed = deployment.moe.get(source.get("layer", -1))
    ends = source["kind"], target["kind"]
    if placed is None or ends not in ALL_TO_ALL:
        return 0.0
    s, d = deployment.node(source["gpus"][0]), deployment.node(target["gpus"][0])
    worst = max(placed.cost.values(), default=0.0)
    # Combine is dispatch reversed, and as hot as the way that its tokens came.
    s, d = (s, d) if ends[0] == "dispatch_send" else (d, s)
    if not deployment.apart(s, d) or worst <= 0 or placed.flow[s, d] <= 0:
        return 0.0
    return float(max(placed.arrival[s, d], *(placed.cost[link] for link in deployment.routes[f"{s}>{d}"])) / worst)


def _check_moved(dag: DagFile, deployment: Deployment) -> Iterator[DagViolation]:
    """Of an all-to-all drawn as one operation: the bytes of all flows between nodes, and of all within one."""
    model = deployment.instance.model
    batches: dict[tuple[object, str], int] = {}
    for op in dag.operations.values():
        batches[op.get("layer"), op["kind"]] = batches.get((op.get("layer"), op["kind"]), 0) + 1
    for name, op in dag.operations.items():
        placed = deployment.moe.get(op.get("layer", -1))
        moved = op.get("moved", {})
        if not isinstance(moved, dict) or not all(type(size) in (int, float) for size in moved.values()):
            yield dag.breach("dag-form", name, "moved is no table of bytes")
            continue
        far = inside = 0.0
        if op["kind"] in {"dispatch", "combine"} and placed is not None:
            own = getattr(deployment.instance.placement, f"{op['kind']}_dtype")
            share = wire_bytes(model, own) / batches[op["layer"], op["kind"]]
            nodes = range(deployment.instance.cluster.nodes)
            far = share * sum(float(placed.flow[s, d]) for s in nodes for d in nodes if deployment.apart(s, d))
            inside = float(placed.flow.sum()) * share - far
        near = sum(size for how, size in moved.items() if how != "network")
        if differs(moved.get("network", 0.0), far) or differs(near, inside):
            found = f"{moved.get('network', 0.0):,.0f} bytes cross the network and {near:,.0f} stay in their node"
            yield dag.breach("dag-traffic", name, f"{found}, required are {far:,.0f} and {inside:,.0f}")
