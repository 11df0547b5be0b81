"""Random tiny instances with every feature, and certificates of every kind that somebody might forge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from brute_force import BruteForce
from builders import tiny_instance
from exact_model import Way, resident_and_expert

from moe_placer.instance import Instance
from moe_placer.placement import AggregateRecord, CompanionsRecord, LayerRecord, MemoryRecord, MutualRecord, Placement
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.verifier import Verification, verify

MOST_WAYS = 8000  # more are not tried

WILD = (
    0.0,
    -0.0,
    5e-324,
    1e-300,
    1e-18,
    2.0**-60,
    1e-9,
    0.5,
    1.0,
    1e17,
    1e300,
    1.7e308,
    math.inf,
    -math.inf,
    math.nan,
    -1e-9,
)
WEIGHTS = ("even", "dirichlet", "sparse", "one", "span", "denormal", "hot", "huge", "wild", *["best"] * 5)
PRICES = ("zero", "random", "equal", "cancelling", "span", "denormal", "huge", "huge", "uneven", "uneven", "wild")
ONCE = ("companions", "weighted-companions", "mutual-companions", "solver")  # for dispatch once per place
KINDS = ("dual", "any replicas", "hot-experts", "threshold", "solver")


def draw_instance(rng: np.random.Generator) -> tuple[Instance, Traffic]:
    """Draw an instance with some of all features; its fields may contradict each other, which raises."""
    nodes, per_node = int(rng.integers(2, 4)), int(rng.integers(1, 4))
    layers, experts = int(rng.integers(1, 3)), int(rng.integers(2, 4))
    routing, replicas, dp = _draw_replicas(rng, nodes)
    sharded = per_node > 1 and rng.random() < 0.25
    gpus = nodes * per_node
    failed = sorted(rng.choice(gpus, int(rng.integers(0, 3)), replace=False).tolist()) if rng.random() < 0.4 else []
    slots = int(rng.integers(1, 3))
    full = (gpus - len(failed)) * slots // (2 if sharded else 1) // dp
    if rng.random() < 0.5 and 2 <= full <= 5:  # no slot to spare
        experts = full
    pinned = 0 if sharded or rng.random() < 0.7 else dp if replicas == "dp" else 1
    dispatch = str(rng.choice(["per-expert", "per-gpu", "per-node"], p=[0.7, 0.1, 0.2]))
    top_k = 1 if dispatch == "per-expert" else int(rng.integers(1, experts + 1))
    changes: dict[str, Any] = {
        "model": {"layers": layers, "dense_layers": [], "experts": experts, "top_k": top_k},
        "cluster": {"nodes": nodes, "gpus_per_node": per_node, "fabric": _fabric(rng)},
        "parallelism": {"dp": dp, "expert_tp": 2 if sharded else 1},
        "placement": {
            "slots_per_gpu": slots,
            "replicas": replicas,
            "replica_routing": routing,
            "replicas_apart": str(rng.choice(["gpu", "gpu", "node", "none"])),
            "dispatch": dispatch,
            "failed_gpus": failed,
            "pinned": _pins(rng, (layers, experts, pinned), gpus, failed),
        },
        "traffic": {
            "kind": "load" if dispatch == "per-expert" else "trace",
            "tokens_per_gpu": float(
                rng.choice([1.0, 100.0, 3.7, 1e-6, 1e9, 1e-300], p=[0.2, 0.4, 0.2, 0.1, 0.07, 0.03])
            ),
        },
        "objective": {"metric": str(rng.choice(["time", "tokens"]))},
    }
    if rng.random() < 0.5:
        changes["cluster"] |= _tight_memory(rng, tiny_instance(**changes))
    instance = tiny_instance(**changes)
    return instance, _traffic(rng, instance)


def _draw_replicas(rng: np.random.Generator, nodes: int) -> tuple[str, Any, int]:
    kind = rng.choice(["group", "groups", "even", "budget", "shared"])
    if kind == "group":
        return "group", "dp", 1
    if kind == "groups":
        return "group", "dp", nodes
    if kind == "even":
        return "even", "dp", int(rng.integers(1, 3))
    key = "redundant_slots" if kind == "budget" else "redundant_slots_in_all"
    return "even", {key: int(rng.integers(0, 4))}, 1


def _fabric(rng: np.random.Generator) -> dict[str, Any]:
    speed = float(rng.choice([400.0, 37.5, 1e-3]))
    if rng.random() < 0.4:
        return {"kind": "full-mesh", "node_gb_per_s": speed}
    return {
        "kind": "fat-tree",
        "node_gb_per_s": speed,
        "nodes_per_leaf": int(rng.integers(1, 3)),
        "spines": int(rng.integers(1, 4)),
        "oversubscription": float(rng.choice([0.01, 1.0, 3.0, 1000.0])),
    }


def _pins(
    rng: np.random.Generator, shape: tuple[int, int, int], gpus: int, failed: Sequence[int]
) -> list[dict[str, int]]:
    """Pin up to two replicas of these [layers, experts, replicas]."""
    working = [gpu for gpu in range(gpus) if gpu not in failed]
    keys = {tuple(rng.integers(0, shape).tolist()) for _ in range(2 if shape[2] and working else 0)}
    return [
        {"layer": layer, "expert": expert, "replica": replica, "gpu": int(rng.choice(working))}
        for layer, expert, replica in sorted(keys)
    ]


def _tight_memory(rng: np.random.Generator, instance: Instance) -> dict[str, Any]:
    """Give every GPU memory for few experts of all layers; of half of the instances, for none more than they have."""
    resident, expert = map(float, resident_and_expert(instance))
    most = instance.placement.slots_per_gpu * len(instance.moe_layers)
    rooms = rng.integers(0, most + 1, instance.gpus)
    if rng.random() < 0.6:
        rooms[:] = most
        rooms[list(instance.placement.failed_gpus)] = 0
        while rooms.sum() > sum(instance.replicas_by_layer) * instance.parallelism.expert_tp:
            rooms[rng.choice(np.flatnonzero(rooms))] -= 1
    gigabytes = {gpu: (resident + (room + 0.5) * expert) / 1e9 for gpu, room in enumerate(rooms.tolist())}
    return {"gpu_memory_gb": gigabytes}


def _traffic(rng: np.random.Generator, instance: Instance) -> Traffic:
    recordings, shape = int(rng.integers(1, 3)), (len(instance.moe_layers), instance.model.experts)
    drawn = []
    for index in range(recordings):
        if instance.placement.dispatch != "per-expert":
            drawn.append(_tokens(rng, instance, f"drawn-{index}"))
            continue
        load = rng.gamma(0.7, 100.0, shape) if rng.random() < 0.6 else rng.integers(1, 3, shape).astype(float)
        if rng.random() < 0.3:
            load *= 10.0 ** rng.integers(-12, 13, shape)
        if rng.random() < 0.3:
            load[rng.random(shape) < 0.4] = 0.0
        drawn.append(Recording(f"drawn-{index}", load, np.maximum(load.sum(axis=1), 1e-3)))
    alike = np.full((instance.cluster.nodes, recordings), 1 / recordings)
    mix = alike if rng.random() < 0.4 else rng.dirichlet(np.full(recordings, 0.3), instance.cluster.nodes)
    return Traffic(tuple(drawn), mix)


def _tokens(rng: np.random.Generator, instance: Instance, name: str) -> Recording:
    """Draw some tokens with their choices, of experts that are not alike."""
    count, layers, experts = int(rng.integers(1, 7)), len(instance.moe_layers), instance.model.experts
    wanted = rng.dirichlet(np.full(experts, 0.7)) + 1e-3
    tables = [
        [rng.choice(experts, instance.model.top_k, replace=False, p=wanted / wanted.sum()) for _ in range(layers)]
        for _ in range(count)
    ]
    topk = np.array(tables)
    load = np.stack([np.bincount(topk[:, row].ravel(), minlength=experts) for row in range(layers)]).astype(float)
    return Recording(name, load, np.full(layers, float(count)), topk)


def draw_weights(rng: np.random.Generator, style: str, cost: dict[str, Fraction]) -> dict[str, float]:
    """Draw weights of links, whose cost in some placement is known; of most styles such as are in range."""
    links, heat = list(cost), np.array([float(one) for one in cost.values()])
    heat = heat / (heat.max(initial=0.0) or 1.0)
    count = len(links)
    drawn = {
        "even": lambda: np.ones(count),
        "dirichlet": lambda: rng.dirichlet(np.ones(count)),
        "sparse": lambda: rng.dirichlet(np.full(count, 0.05)),
        "one": lambda: np.eye(count)[rng.integers(count)],
        "span": lambda: 10.0 ** rng.uniform(-25, 0, count),
        "denormal": lambda: np.where(np.arange(count) == rng.integers(count), 1.0, 5e-324 * rng.integers(0, 9, count)),
        "hot": lambda: rng.random(count) * heat ** rng.integers(1, 40) + 1e-12,
        "huge": lambda: 10.0 ** rng.uniform(-300, 300, count),
        "wild": lambda: rng.choice(np.array(WILD), count),
    }[style]()
    if style not in {"huge", "wild"}:
        drawn = drawn / drawn.sum()
    kept = [k for k in range(count) if drawn[k] != 0 or rng.random() < 0.3]
    return {links[k]: float(drawn[k]) for k in kept}


def draw_prices(rng: np.random.Generator, style: str, nodes: int, size: float) -> tuple[float, ...]:
    """Draw prices of memory, about a cost of this size."""
    if style == "zero":
        return (0.0,) * nodes
    if style == "wild":
        return tuple(rng.choice(np.array(WILD), nodes).tolist())
    factor = {
        "random": rng.random(nodes),
        "equal": np.full(nodes, rng.random()),
        "cancelling": np.full(nodes, 10.0 ** rng.uniform(0, 5)) + rng.random(nodes),
        "span": 10.0 ** rng.uniform(-25, 1, nodes),
        "denormal": 5e-324 * rng.integers(0, 9, nodes),
        "huge": np.full(nodes, 10.0 ** rng.uniform(12, 25)),
        "uneven": 10.0 ** rng.uniform(8, 20) * (1 + rng.random(nodes)),
    }[style]
    return tuple((factor if style == "denormal" else size * factor).tolist())


class Forger:
    """Makes placement files of a valid placement with drawn certificates, and verifies them."""

    def __init__(self, rng: np.random.Generator, brute: BruteForce, ways: Sequence[Way]) -> None:
        self.rng, self.brute, self.ways = rng, brute, ways
        self.instance, self.traffic, self.links = brute.instance, brute.traffic, brute.links
        self.costs = [brute.exact_cost(row, way) for row, way in enumerate(ways)]
        self.z = [float(max(cost.values())) for cost in self.costs]
        self.in_range = True  # whether what was drawn must be accepted

    def weights(self, cost: dict[str, Fraction], rows: Sequence[int]) -> dict[str, float]:
        """Draw weights for a bound on what links carry in these layers together."""
        style = str(self.rng.choice(WEIGHTS))
        self.in_range &= style not in {"huge", "wild"}
        drawn = self._best_weights(rows) if style == "best" else draw_weights(self.rng, style, cost)
        off = 1 + float(self.rng.choice([0.0, 0.0, -9e-7, 9e-7]))  # their sum may be off 1 by so much
        return {link: weight * off for link, weight in drawn.items()}

    def _best_weights(self, rows: Sequence[int]) -> dict[str, float]:
        """Look for weights that prove much: links are the heavier the hotter the answers to earlier weights are.

        Half of the time all answers have the replicas of the placement: such weights prove much of these only.
        """
        ways, same = self.brute.ways, self.rng.random() < 0.5
        tables = []
        for row in rows:
            at = [i for i, way in enumerate(ways[row]) if not same or way.replicas == self.ways[row].replicas]
            tables.append(self.brute.costs[row][at])
        heat = np.zeros(len(self.links))
        for _ in range(30):
            weights = np.exp(10.0 * heat / (heat.max() or 1.0))
            for costs in tables:
                heat += costs[(costs @ weights).argmin()]
        return dict(zip(self.links, (weights / weights.sum()).tolist(), strict=True))

    def record(self, row: int, kind: str) -> LayerRecord:
        """Draw a certificate of this kind; what it proves is stated as 0, or as what is drawn."""
        even = self.instance.placement.replica_routing == "even"
        if kind == "any replicas" and not even:
            kind = "dual"
        cost = self.costs[row]
        fields: dict[str, Any] = {
            "layer": self.instance.moe_layers[row],
            "z": self.z[row],
            "worst_link": max(cost, key=cost.__getitem__) if self.z[row] > 0 else "",
            "bound": 0.0,
            "proof": "dual" if kind == "any replicas" else kind,
        }
        if kind == "any replicas":
            fields["any_copies"] = True
        if kind in {"dual", "any replicas", "threshold", "weighted-companions", "mutual-companions"}:
            fields["weights"] = self.weights(cost, [row])
        if kind == "threshold":
            fields["threshold"] = self._threshold(row)
        if kind in {"companions", "weighted-companions"}:
            fields["companions"] = self._companions()
        if kind == "mutual-companions":
            fields["mutual"] = self._mutual()
            fields["any_copies"] = True if even and self.rng.random() < 0.8 else None
        if kind in {"hot-experts", "companions"}:
            replicas = self.ways[row].replicas
            heaviest = int(np.argmax([sum(of[e] for of in self.brute.T[row]) for e in range(len(replicas))]))
            expert = heaviest if self.rng.random() < 0.5 else int(self.rng.integers(len(replicas)))
            fields["hot"] = (expert, int(self.rng.integers(replicas[expert])))
        return LayerRecord.model_construct(**fields)

    def _companions(self) -> CompanionsRecord:
        experts, even = self.instance.model.experts, self.instance.placement.replica_routing == "even"
        views = 1 if even else self.instance.parallelism.dp
        chance = self.rng.random()
        guess = tuple(
            tuple(tuple(np.flatnonzero(self.rng.random(experts) < chance).tolist()) for _ in range(experts))
            for _ in range(views)
        )
        order = tuple(self.rng.permutation(experts).tolist())
        return CompanionsRecord.model_construct(depth=int(self.rng.integers(3)), order=order, guess=guess)

    def _mutual(self) -> MutualRecord:
        experts, even = self.instance.model.experts, self.instance.placement.replica_routing == "even"
        views, chance, size = (
            1 if even else self.instance.parallelism.dp,
            self.rng.random(),
            10.0 ** self.rng.integers(-3, 1),
        )
        pairs = [
            [
                [(other, int(self.rng.integers(65))) for other in range(one + 1, experts) if self.rng.random() < chance]
                for one in range(experts)
            ]
            for _ in range(views)
        ]
        prices = self.rng.random((views, experts)) * size * (self.rng.random((views, experts)) < 0.8)
        if self.rng.random() < 0.1:
            wild = float(self.rng.choice(np.array(WILD)))
            self.in_range &= 0 <= wild <= 1
            prices[-1, -1] = wild
        if self.rng.random() < 0.1:
            self.in_range = False
            pairs[0][0].append((int(self.rng.choice([0, -1, experts, 2**40])), int(self.rng.choice([1, -64, 2**60]))))
        near = tuple(tuple(tuple(row) for row in table) for table in pairs)
        return MutualRecord.model_construct(near=near, prices=tuple(map(tuple, prices.tolist())))

    def _threshold(self, row: int) -> float:
        if self.rng.random() < 0.2:
            value = float(self.rng.choice(np.array(WILD)))
            self.in_range &= math.isfinite(value) and value >= 0
            return value
        exact = [float(cost) for cost in self.costs[row].values()]
        return float(self.rng.choice(exact)) * float(self.rng.choice([1.0, 1 - 1e-10, 1 + 1e-10, 0.5, 1.5]))

    def aggregate(self) -> AggregateRecord:
        totals = {link: sum((cost[link] for cost in self.costs), Fraction(0)) for link in self.links}
        value = float(max(totals.values()))
        even = self.instance.placement.replica_routing == "even"
        return AggregateRecord.model_construct(
            value=value,
            worst_link=max(totals, key=totals.__getitem__) if value > 0 else "",
            bound=0.0,
            proof="dual",
            weights=self.weights(totals, range(len(self.ways))),
            any_copies=True if even else None,
        )

    def memory(self) -> MemoryRecord:
        style = str(self.rng.choice(PRICES))
        self.in_range &= style == "zero"  # the others may be out of range
        prices = draw_prices(self.rng, style, self.instance.cluster.nodes, max(self.z))
        weights = None
        if self.rng.random() < 0.5:
            weights = tuple(self.weights(cost, [row]) for row, cost in enumerate(self.costs))
        return MemoryRecord.model_construct(bound=0.0, room_prices=prices, weights=weights)

    def placement(self, kinds: Sequence[str], aggregate: bool, memory: bool) -> Placement:
        """Return a placement with certificates of these kinds."""
        shards = self.instance.parallelism.expert_tp > 1
        gpu = [[[list(p) if shards else p[0] for p in replicas] for replicas in way.gpus] for way in self.ways]
        plain = Placement.model_validate(
            {
                "schema": "moe-placer/placement/1",
                "instance": {
                    "name": self.instance.name,
                    "sha256": self.instance.sha256,
                    "traffic_sha256": self.traffic.sha256,
                },
                "solver": {"name": "forger", "version": "0", "seed": 0},
                "gpu": gpu,
                "layers": [],
            }
        )
        records: dict[str, Any] = {"layers": tuple(self.record(row, kind) for row, kind in enumerate(kinds))}
        if aggregate:
            records["aggregate"] = self.aggregate()
        if memory:
            records["memory"] = self.memory()
        return plain.model_copy(update=records)

    def verified(self, placement: Placement) -> Verification:
        return verify(self.instance, placement, self.traffic)
