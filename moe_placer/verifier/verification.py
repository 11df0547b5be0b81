"""The result of a verification: violations, and every figure as recomputed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moe_placer.errors import visible

__all__ = ["CONSTRAINTS", "RULES", "LayerCheck", "Verification", "Violation", "sum_below"]

Floats = npt.NDArray[np.float64]

RULES: tuple[str, ...] = (
    "instance",  # the placement was made for this instance
    "traffic",  # ... and for this traffic
    "shape",  # as many layers, experts and records as the model has, in its order
    "replicas",  # every expert has the replicas it should have
    "shards",  # every replica is on expert_tp different GPUs of one node
    "gpu-id",  # every GPU exists
    "slots",  # no GPU holds more than slots_per_gpu experts of a layer
    "memory",  # experts of all layers and what is resident fit every GPU
    "apart",  # replicas of one expert do not meet
    "survives",  # no GPU, node or leaf holds all replicas of an expert, where that is required
    "failed",  # failed GPUs hold nothing
    "pinned",  # pinned replicas are where they are pinned
    "z",  # the stated z is the cost of the busiest link
    "worst-link",  # the stated busiest link has that cost, and the tokens stated beside it
    "weights",  # link weights are there where the proof needs them, and are weights
    "proof",  # the threshold or the hot replica that the proof needs is there and exists
    "bound",  # the proof gives at least the stated bound, which is at most z
    "aggregate",  # the stated aggregate is the largest cost of a link summed over all layers
    "solver-bound",  # the solver's own bound lies between the bound and z
    "contradiction",  # what a proof gives is not above what the valid placement beside it has
    "layer-time",  # the stated time of all layers is as recomputed, and its bound what is derived anew
    "current",  # the placement that ran before is of this model and cluster, and the one that is named
    "moves",  # as many as stated, and within the budget
    "migration",  # transfers lead from the placement that ran before to this one, and every state on the way may run
    "facts",  # what is said of traffic, fabric and replicas is so
)
# A placement that breaks none of these is one that may be deployed, whatever is stated of it.
CONSTRAINTS = frozenset(
    {"shape", "replicas", "shards", "gpu-id", "slots", "memory", "apart", "survives", "failed", "pinned"}
)


def sum_below(terms: Iterable[float]) -> float:
    """Sum numbers that are at least 0, rounded down."""
    total = math.fsum(terms)
    return math.nextafter(total, 0.0) if total > 0 else 0.0


@dataclass(frozen=True)
class Violation:
    """One rule that the placement breaks in one place.

    Attributes
    ----------
    rule : str
        One of `RULES`.
    message : str
        What is wrong, and what is required.
    layer : int or None
        Index in the model, dense layers counted.
    expert, replica, gpu : int or None
        Where it is wrong, as far as the rule is about one of these, and it exists.
    """

    rule: str
    message: str
    layer: int | None = None
    expert: int | None = None
    replica: int | None = None
    gpu: int | None = None

    def __str__(self) -> str:
        parts = [("layer", self.layer), ("expert", self.expert), ("replica", self.replica), ("GPU", self.gpu)]
        place = ", ".join(f"{word} {number}" for word, number in parts if number is not None)
        return visible(f"[{self.rule}] {place}: {self.message}" if place else f"[{self.rule}] {self.message}")


@dataclass(frozen=True)
class LayerCheck:
    """The figures of one MoE layer, recomputed; zeros where the placement is too broken to compute them.

    Attributes
    ----------
    layer : int
        Index in the model, dense layers counted.
    z : float
        Cost of the busiest link (tokens per step at node-link speed).
    worst_link : str
        The first link of that cost; empty where no link carries anything.
    bound : float
        What no placement of the layer is below, as the record's proof gives it when derived anew; 0 where it gives
        nothing, or only the solver vouches for it.
    proof : str
        The record's kind of proof; empty without a record.
    worst_link_tokens : float
        Plain tokens per step on the busiest link.
    worst_link_us : float
        Microseconds that it needs for them, one way, at its real bandwidth.
    bound_given_replicas : float or None
        What the proof gives for placements with as many replicas of each expert; there where how many is a choice, and
        the proof does not hold for every choice.
    worst_link_cost : float
        Cost of the busiest link: z, but where that is a mean over scenarios.
    claimed_bound : float or None
        The highest bound that only the solver vouches for: not checked.
    """

    layer: int
    z: float
    worst_link: str
    bound: float
    proof: str
    worst_link_tokens: float = 0.0
    worst_link_us: float = 0.0
    bound_given_replicas: float | None = None
    claimed_bound: float | None = None
    worst_link_cost: float = 0.0

    @property
    def rederived(self) -> bool:
        """Whether the bound was derived from the record, rather than claimed or missing."""
        return self.proof not in {"", "solver"} and self.bound_given_replicas is None


@dataclass(frozen=True, eq=False)
class Verification:
    """Everything that was checked and recomputed.

    Attributes
    ----------
    violations : tuple of Violation
        Empty for a good placement.
    layers : tuple of LayerCheck
        One per MoE layer, in order.
    cost : float array [MoE layers, links]
        Tokens per step at node-link speed.
    load : float array [MoE layers, links]
        Tokens per step.
    us : float array [MoE layers, links]
        Microseconds that each link needs for these tokens, one way, at its real bandwidth whatever the metric counts.
    links : tuple of str
        Names of the links, in the order of these arrays.
    worst_pair : float array [MoE layers]
        Most tokens per step between any ordered pair of different nodes.
    memory : float array [GPUs]
        Bytes used on each GPU: experts of all layers, what is resident, and the KV cache; on a failed GPU only what
        the placement puts there.
    aggregate_bound : float
        What no placement's `aggregate` is below, as derived anew from the placement file; 0 where it proves nothing.
    memory_bound : float
        What no placement's `total_z` is below, memory over layers counted, as derived anew; 0 likewise.
    back : float
        Bytes of a result on its way back over those of a token on its way there.
    busiest_gpu : float array [MoE layers]
        Tokens per step of each layer's busiest GPU; of an expert sharded over GPUs, each works on all.
    least_busiest : float array [MoE layers]
        What no placement's busiest GPU is below, from the loads of experts.
    expert_token_us : float
        Microseconds that a GPU needs for one of these tokens.
    cost_us : float
        Microseconds of a layer whose z is 1, one way, at least.
    budget_bound : float
        What no placement's `total_z` within the stated budget of moves is below, as derived anew; 0 where nothing is
        proved, or the placement that ran before is not known.
    facts_checked, facts_not_checked : tuple of str
        What the file says beside the placement, such as ``fabric.links``: compared with instance and traffic, or not.
    """

    violations: tuple[Violation, ...]
    layers: tuple[LayerCheck, ...]
    cost: Floats
    load: Floats
    us: Floats
    links: tuple[str, ...]
    worst_pair: Floats
    memory: Floats
    aggregate_bound: float = 0.0
    memory_bound: float = 0.0
    budget_bound: float = 0.0
    back: float = 1.0
    busiest_gpu: Floats = field(default_factory=lambda: np.zeros(0))
    least_busiest: Floats = field(default_factory=lambda: np.zeros(0))
    expert_token_us: float = 0.0
    cost_us: float = 0.0
    facts_checked: tuple[str, ...] = ()
    facts_not_checked: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is violated."""
        return not self.violations

    @property
    def total_z(self) -> float:
        """Sum of z over the layers."""
        return float(sum(check.z for check in self.layers))

    @property
    def total_bound(self) -> float:
        """No placement has a smaller `total_z`: the sum of re-derived bounds over the layers, or `memory_bound`."""
        return max(self.memory_bound, sum_below(check.bound for check in self.layers))

    @property
    def max_z(self) -> float:
        """The largest z of any layer."""
        return max((check.z for check in self.layers), default=0.0)

    @property
    def aggregate(self) -> float:
        """The largest cost of any link summed over the layers; at most `total_z`."""
        return float(self.cost.sum(axis=0).max(initial=0.0))

    @property
    def aggregate_tokens(self) -> float:
        """Plain tokens on `aggregate_link` over all layers."""
        return float(self.load.sum(axis=0)[self.links.index(self.aggregate_link)]) if self.aggregate_link else 0.0

    @property
    def aggregate_us(self) -> float:
        """Microseconds that `aggregate_link` needs for them, one way."""
        return float(self.us.sum(axis=0)[self.links.index(self.aggregate_link)]) if self.aggregate_link else 0.0

    @property
    def dispatch_us(self) -> float:
        """Microseconds of all layers' dispatch one after the other, each as long as its slowest link needs."""
        return float(self.us.max(axis=1, initial=0.0).sum())

    @property
    def combine_us(self) -> float:
        """The same of combine, which is dispatch reversed: every link has one of the other direction that is alike."""
        return self.dispatch_us * self.back

    @property
    def layer_us(self) -> Floats:
        """Microseconds of each layer's dispatch, slowest GPU and combine, one after the other [MoE layers]."""
        return np.asarray((1 + self.back) * self.us.max(axis=1, initial=0.0) + self.busiest_gpu * self.expert_token_us)

    @property
    def total_layer_us(self) -> float:
        """Sum of `layer_us`."""
        return float(self.layer_us.sum())

    @property
    def layer_us_bound(self) -> float:
        """No placement's `total_layer_us` is below: bounds on the busiest links and on the busiest GPUs together."""
        on_links = (1 + self.back) * self.total_bound * self.cost_us
        return on_links + sum_below(self.least_busiest * self.expert_token_us)

    @property
    def aggregate_link(self) -> str:
        """The first link of that cost; empty where no link carries anything."""
        return self.links[int(self.cost.sum(axis=0).argmax())] if self.aggregate > 0 else ""
