"""A step simulated the slow and obvious way, straight from the DAG and docs/schedule.md."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moe_placer.dag.build import build_dag
from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.fabric import build_fabric, compile_routes
from moe_placer.instance import Instance
from moe_placer.instance.schema import Gqa, Mla, Model
from moe_placer.placement import Placement
from moe_placer.schedule.timing import Timing
from moe_placer.schedule.workload import Condition, Workload
from moe_placer.traffic.recording import Traffic

Name = tuple[str, int]  # operation and micro-batch
Flow = tuple[Name, int, int]  # whose it is, source and destination nodes

ONCE = {"input", "split", "gather", "output"}
HEAD = {"norm", "head", "sample"}
COLLECTIVE = {"split", "gather", "gate_scatter"}
SEND = {"dispatch_send", "combine_send"}
ALONE = {"embedding_reduce", "attention_reduce", "mlp_reduce", "sample_reduce", "gate_scatter"}  # free on one GPU
WAITS_ONLY = {"input", "output", "dispatch_receive", "combine_receive"}


@dataclass
class Cost:
    """µs before, while and after an operation runs, and its bytes between nodes."""

    overhead: float = 0.0
    busy: float = 0.0
    latency: float = 0.0
    sent: dict[tuple[int, int], float] = field(default_factory=dict)


def done_once(timing: Timing) -> set[str]:
    """Kinds of operations that a step has once, however many micro-batches it has."""
    return ONCE | HEAD | {"sample_reduce"} if timing.head_once else ONCE


def stream_of(op: Operation) -> str:
    """Name the stream that an operation takes on each of its GPUs; empty where it only waits."""
    if op.kind in WAITS_ONLY:
        return ""
    if op.kind in SEND | {"split", "gather"}:
        return "network"
    return "nvlink" if op.kind in {"gate", "gate_scatter"} or op.kind.endswith("_reduce") else "compute"


def cost_of(
    dag: Dag, op: Operation, instance: Instance, workload: Workload, timing: Timing, condition: Condition
) -> Cost:
    """Return what one micro-batch of an operation costs."""
    if op.kind in WAITS_ONLY or (len(op.gpus) == 1 and op.kind in ALONE):
        return Cost()
    asked = (workload.tokens_per_gpu or instance.traffic.tokens_per_gpu) / instance.traffic.tokens_per_gpu
    share = asked if op.kind in done_once(timing) else asked / workload.micro_batches
    cluster, gpus = instance.cluster, len(op.gpus)
    inside = cluster.nvlink_gb_per_s * 1e3 * timing.nvlink_utilization  # bytes/µs
    between = cluster.fabric.node_gb_per_s * 1e3 * cluster.fabric.link_utilization / cluster.gpus_per_node
    if op.kind in SEND:
        start = timing.collective_us if timing.all_to_all_us is None else timing.all_to_all_us
        cost, stays = Cost(start), 0.0
        if timing.all_to_all_nvlink is not None:
            inside *= timing.all_to_all_nvlink / timing.nvlink_utilization
        if workload.micro_batches == 2:
            inside /= timing.all_to_all_slowdown
        for edge in dag.outgoing(op.id):
            if edge.travel == "network":
                (pair,) = edge.routes
                cost.sent[pair] = cost.sent.get(pair, 0.0) + edge.bytes * share
            elif edge.travel == "nvlink":
                stays += edge.bytes * share
        stays += sum(edge.bytes * share * copies for edge, copies in gathered_or_forwarded(dag, op))
        # Every GPU sends 1/gpus of it, of which 1/gpus is for itself.
        cost.busy = stays / gpus * (gpus - 1) / gpus / inside
        cost.latency = timing.network_step_us if any(cost.sent.values()) else timing.nvlink_step_us
        return cost
    apart = {"dispatch_send", "dispatch_receive", "combine_send"}
    came = [edge for edge in dag.incoming(op.id) if dag.operation(edge.source).kind not in apart]
    nvlink = sum(edge.bytes for edge in came if edge.travel == "nvlink") * share
    network = sum(edge.bytes for edge in came if edge.travel == "network") * share
    if op.kind.endswith("_reduce"):
        factor = 2 * (gpus - 1) / gpus
        step = timing.network_step_us if network else timing.nvlink_step_us
        return Cost(timing.collective_us + 2 * (gpus - 1) * step, factor * (nvlink / inside + network / between))
    if op.kind in COLLECTIVE:
        step = timing.network_step_us if network else timing.nvlink_step_us
        return Cost(timing.collective_us + step, nvlink / inside + network / between)
    slow = max(condition.slow_gpus.get(gpu, 1.0) for gpu in op.gpus)
    busy = roofline(dag, op, instance, workload, timing, share) * slow
    return Cost(start_of(dag, op, timing), busy + nvlink / inside + network / between)


def start_of(dag: Dag, op: Operation, timing: Timing) -> float:
    """µs before an operation computes; experts of one GPU and layer share what is started once for all of them."""
    if op.kind != "expert":
        launches = {"attention": timing.attention_launches, "mlp": timing.mlp_launches, "gate": timing.gate_launches}
        return timing.kernel_us * launches.get(op.kind, 1.0)
    beside = [one for one in dag.operations("expert") if (one.layer, one.gpus) == (op.layer, op.gpus)]
    launched = timing.expert_launches / len(beside) if timing.expert_launches else 1.0
    return timing.kernel_us * launched + timing.all_to_all_compute_us / len(beside)


BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "fp4": 0.5}
PART = {"attention": "attention", "gate": "gate", "expert": "experts", "aggregate": "activations"}


def precision(instance: Instance, op: Operation) -> str:
    model, part = instance.model, PART.get(op.kind, "head")
    if op.kind == "mlp":
        part = "dense" if op.layer in model.dense_layers else "shared"
    return (getattr(model.dtypes, part) if model.dtypes else None) or model.dtype


def over_context(model: Model, phase: str) -> tuple[float, float, float, str]:
    """FLOPs for each pair of tokens, values kept of one, over how many GPUs at most, and the dtype of both products."""
    heads, width, kind = model.attention_heads, model.head_dim, model.attention
    scores = (model.dtypes.scores if model.dtypes else None) or model.dtype
    if isinstance(kind, Mla):
        rope, latent, own = kind.qk_rope_head_dim, kind.kv_lora_rank, kind.qk_nope_head_dim or width
        on_scores, on_values = (latent + rope, latent) if phase == "decode" else (own + rope, width)
        return 2 * heads * on_scores + 2 * heads * on_values, latent + rope, 1, scores
    kept = kind.kv_heads if isinstance(kind, Gqa) else heads
    return 2 * heads * width + 2 * heads * width, kept * width + kept * width, kept, scores


def gathered_or_forwarded(dag: Dag, op: Operation) -> list[tuple[Edge, int]]:
    """List what a send moves over NVLink beside what it sends, and to how many GPUs.

    Combine gathers its node's results. While tokens arrive from elsewhere, the node forwards them, on the stream of its
    own dispatch.
    """
    if op.kind == "combine_send":
        return [(edge, 1) for edge in dag.incoming(op.id) if edge.travel == "nvlink"]
    receiver = op.id.replace("dispatch_send", "dispatch_receive")
    if receiver not in dag.graph:
        return []
    return [(edge, len(dag.operation(edge.target).gpus)) for edge in dag.outgoing(receiver) if edge.travel == "nvlink"]


def forwarded_by(dag: Dag, op: Operation) -> list[str]:
    """Name the send on whose stream a receiver's tokens are forwarded; empty where none are."""
    if op.kind != "dispatch_receive" or all(edge.travel != "nvlink" for edge in dag.outgoing(op.id)):
        return []
    return [op.id.replace("dispatch_receive", "dispatch_send")]


def roofline(dag: Dag, op: Operation, instance: Instance, workload: Workload, timing: Timing, share: float) -> float:
    """µs of computing, on each of the operation's GPUs."""
    gpu, model = instance.cluster.gpu, instance.model
    if timing.last_logits and workload.phase == "prefill" and op.kind in HEAD:
        share = share / workload.context
    fed = sum(edge.bytes for edge in dag.incoming(op.id))
    weights = op.bytes_read - fed
    size = (op.bytes_read * share if op.kind == "embedding" else weights + fed * share) / len(op.gpus)
    beside = workload.micro_batches == 2 and op.kind not in done_once(timing)  # all-to-alls of the other micro-batch
    reached = gpu.mfu * (1 - timing.communication_sms * beside / timing.gpu_sms) * 1e6
    peak = gpu.dtype_tflops.get(precision(instance, op), gpu.peak_tflops)
    seconds = op.flops * share / len(op.gpus) / (peak * reached)
    over, kept_bytes, held = 0.0, 0.0, 0.0
    if op.kind == "attention":
        (shape,) = (edge.shape for edge in dag.incoming(op.id))
        pair, kept, most, dtype = over_context(model, workload.phase)
        # In prefill the first token of a sequence sees itself, the last one all.
        seen = workload.context if workload.phase == "decode" else (workload.context + 1) / 2
        peak = gpu.dtype_tflops.get(dtype, gpu.peak_tflops)
        over = shape[0] * share * seen * pair / len(op.gpus) / (peak * reached)
        value = BYTES[(model.dtypes.kv_cache if model.dtypes else None) or model.dtype]
        tokens = shape[0] * share * (workload.context if workload.phase == "decode" else 1)
        kept_bytes = tokens * kept * value / min(len(op.gpus), most)
        held = values_held(model, workload.phase) * shape[0] * share * timing.attention_passes / len(op.gpus)
    bandwidth = gpu.memory_bandwidth_tb_per_s * 1e6 * gpu.memory_utilization
    if op.kind == "expert":
        (shape,) = (edge.shape for edge in dag.incoming(op.id))
        over = shape[0] * share * shape[1] * timing.expert_passes / len(op.gpus) / bandwidth
        return max(seconds, size / bandwidth) + over
    if timing.separate_scores:
        return max(seconds, size / bandwidth) + max(over, kept_bytes / bandwidth) + held / bandwidth
    return max(seconds + over, (size + kept_bytes) / bandwidth) + held / bandwidth


def values_held(model: Model, phase: str) -> float:
    """Queries, keys, values and results of one token; with a latent, in decode, what queries and results are of it."""
    heads, width, kind = model.attention_heads, model.head_dim, model.attention
    if isinstance(kind, Mla):
        latent, rope, own = kind.kv_lora_rank, kind.qk_rope_head_dim, kind.qk_nope_head_dim or width
        return heads * (2 * latent + rope if phase == "decode" else 2 * (own + rope) + 2 * width)
    return 2 * width * (heads + (kind.kv_heads if isinstance(kind, Gqa) else heads))


def fair_rates(crossed: npt.NDArray[np.float64], capacity: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Raise all rates together; where a link is full, its flows stop. ``crossed``: shares [links, flows]."""
    rates, rising = np.zeros(crossed.shape[1]), np.full(crossed.shape[1], True)
    while rising.any():
        free, taken = capacity - crossed @ rates, crossed @ rising
        loaded = taken > 1e-12
        step = (free[loaded] / taken[loaded]).min()
        rates[rising] += step
        full = loaded & (free - step * taken <= 1e-9 * capacity)
        rising &= ~(crossed[full] > 0).any(axis=0)
    return rates


class SlowStep:
    """A step of a placement; `run` gives start and end, in µs, of every operation of every micro-batch."""

    def __init__(
        self,
        instance: Instance,
        placement: Placement,
        traffic: Traffic,
        workload: Workload,
        timing: Timing,
        condition: Condition,
    ) -> None:
        self.instance = instance
        dag, batches = build_dag(instance, placement, traffic), range(workload.micro_batches)
        once = done_once(timing)
        self.ops = {op.id: op for op in dag.operations()}
        tasks = [(op.id, batch) for op in dag.operations() for batch in batches if batch == 0 or op.kind not in once]
        # A GPU's experts of one layer are one kernel: those of one micro-batch do not wait for those of the other.
        kernel = {name: (op.layer, op.gpus) if op.kind == "expert" else name for name, op in self.ops.items()}
        begun = [(kernel[name], batch) for name, batch in tasks]
        self.order = sorted(tasks, key=lambda task: begun.index((kernel[task[0]], task[1])))
        self.cost = {
            name: cost_of(dag, self.ops[name[0]], instance, workload, timing, condition) for name in self.order
        }
        # Of its own micro-batch; what is done once waits for all, and all wait for it.
        self.needs = {
            (name, batch): [
                (before, other)
                for before in [*dag.graph.predecessors(name), *forwarded_by(dag, self.ops[name])]
                for other in batches
                if (before, other) in self.cost
                and (other == batch or once & {self.ops[before].kind, self.ops[name].kind})
            ]
            for name, batch in self.order
        }
        routes = compile_routes(build_fabric(instance), instance.cluster.nodes)
        self.nodes, self.shares = instance.cluster.nodes, routes.shares.toarray()
        slow = np.array([condition.slow_links.get(link, 1.0) for link in routes.links])
        self.capacity = routes.bandwidth * 1e3 * instance.cluster.fabric.link_utilization * slow
        if workload.micro_batches == 2:
            self.capacity /= timing.all_to_all_slowdown
        self.start: dict[Name, float] = {}
        self.end: dict[Name, float] = {}
        self.plan: dict[Name, float] = {}  # ends that are known
        self.launch: dict[Name, float] = {}  # when sends start their flows
        self.left: dict[Flow, float] = {}  # bytes
        self.now = 0.0

    def run(self) -> dict[Name, tuple[float, float]]:
        while len(self.end) < len(self.order):
            self.start_what_can()
            self.move_on()
            for name in [name for name, at in self.launch.items() if at <= self.now]:
                self.send(name)
            for name in [name for name, at in self.plan.items() if at <= self.now]:
                self.end[name] = self.plan.pop(name)
        return {name: (self.start[name], self.end[name]) for name in self.order}

    def streams(self, name: Name) -> set[tuple[int, str]]:
        op = self.ops[name[0]]
        return {(gpu, stream) for gpu in op.gpus if (stream := stream_of(op))}

    def start_what_can(self) -> None:
        taken = {stream for name in self.start if name not in self.end for stream in self.streams(name)}
        for name in self.order:
            if name in self.start or not all(one in self.end for one in self.needs[name]) or self.streams(name) & taken:
                continue
            taken |= self.streams(name)
            self.start[name], begun = self.now, self.now + self.cost[name].overhead
            if self.ops[name[0]].kind in SEND:
                self.launch[name] = begun
            else:
                self.plan[name] = begun + self.cost[name].busy

    def move_on(self) -> None:
        """Move bytes until something is planned, or a flow ends."""
        flows = list(self.left)
        rates = fair_rates(self.shares[:, [s * self.nodes + d for _, s, d in flows]], self.capacity)
        ends = [self.now + self.left[flow] / rate for flow, rate in zip(flows, rates, strict=True)]
        moment = min([*self.plan.values(), *self.launch.values(), *ends])
        for flow, rate, over in zip(flows, rates, ends, strict=True):
            self.left[flow] -= rate * (moment - self.now)
            if over <= moment * (1 + 1e-12):
                del self.left[flow]
        self.now = moment
        for name in {flow[0] for flow in flows} - {flow[0] for flow in self.left}:
            cost = self.cost[name]
            self.plan[name] = max(moment, self.start[name] + cost.overhead + cost.busy) + cost.latency

    def send(self, name: Name) -> None:
        del self.launch[name]
        cost = self.cost[name]
        sent = {(name, s, d): size for (s, d), size in cost.sent.items() if size > 0}
        self.left |= sent
        if not sent:
            self.plan[name] = self.now + cost.busy + cost.latency
