"""What ``verify --json`` prints."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from moe_placer.cli.results.documented import documented

__all__ = ["VerifyResult", "ViolationFound"]


@documented
class ViolationFound(TypedDict):
    """One rule that a placement breaks in one place."""

    rule: str
    """Name of the rule, such as `slots` or `bound`."""
    message: str
    """What is wrong, and what is required."""
    layer: int | None
    """Index in the model, dense layers counted; null where the rule is about none."""
    expert: int | None
    """Expert of the layer, likewise."""
    replica: int | None
    """Replica of the expert, likewise."""
    gpu: int | None
    """Global GPU id, likewise."""
    text: str
    """All of it in one line."""


@documented
class LayerVerified(TypedDict):
    """Figures of one MoE layer, recomputed."""

    layer: int
    """Index in the model, dense layers counted."""
    z: float
    """Cost of the busiest link, or its mean over scenarios: tokens per step at node-link speed."""
    worst_link: str
    """Its name; empty where no link carries anything."""
    bound: float
    """No placement of the layer has a smaller z; 0 where nothing is proved."""
    proof: str
    """Kind of proof; `solver` is the solver's word, which is not checked."""
    worst_link_tokens: float
    """Plain tokens per step on that link."""
    worst_link_us: float
    """Microseconds that it needs for them, one way."""
    bound_given_replicas: float | None
    """What the proof gives for placements with the same numbers of replicas only."""
    claimed_bound: float | None
    """The highest bound that only the solver vouches for."""
    worst_link_cost: float
    """Cost of the busiest link: z, but where that is a mean over scenarios."""
    rederived: bool
    """Whether `bound` was derived anew."""
    gap: float | None
    """(z - bound) / bound; null without a bound."""


@documented
class BoundsCounted(TypedDict):
    """Where bounds come from."""

    rederived_layers: int
    """Layers whose bound was derived anew."""
    given_replicas_only_layers: int
    """Layers whose proof holds for the same numbers of replicas only."""
    claimed_only_layers: int
    """Layers with no bound but the solver's word."""
    claimed_higher_layers: int
    """Layers with a re-derived bound and a higher one by the solver's word."""


@documented
class FactsCompared(TypedDict):
    """What the placement file says beside the placement."""

    checked: list[str]
    """Keys that agree with instance and traffic."""
    not_checked: list[str]
    """Keys that nothing can be compared with."""


@documented
class DagViolationFound(TypedDict):
    """One rule that a DAG breaks in one place."""

    rule: str
    """Name of the rule."""
    dag: str
    """Name of the DAG's files, without suffix."""
    where: str
    """An operation, or `source -> target` of an edge; empty for the whole."""
    message: str
    """What is wrong, and what is required."""
    text: str
    """All of it in one line."""


@documented
class DagVerified(TypedDict):
    """One DAG beside the placement, read back."""

    name: str
    """Name of its files, without suffix."""
    operations: int
    """Operations that were checked."""
    edges: int
    """Edges that were checked."""
    violations: list[DagViolationFound]
    """Empty for a good one."""


@documented
class VerifyResult(TypedDict):
    """What `moe-placer verify --json` prints."""

    schema: Literal["moe-placer/verification/1"]
    """Name and version of this schema."""
    ok: bool
    """Whether placement and DAGs are good; else the exit code is 5."""
    violations: list[ViolationFound]
    """Empty for a good placement."""
    total_z: float
    """Sum of z over the layers (cost)."""
    total_bound: float
    """No placement has a smaller `total_z`; 0 where nothing is proved."""
    max_z: float
    """The largest z of a layer (cost)."""
    aggregate: float
    """The largest cost of any link over all layers together."""
    dispatch_us: float
    """Microseconds of all layers' dispatch in turn, each as long as its slowest link needs, one way."""
    combine_us: float
    """Microseconds of the way back, which is dispatch reversed with the bytes of results."""
    layer_time_us: float
    """Microseconds of all layers' dispatch, slowest GPU and combine in turn."""
    layer_time_bound_us: float
    """No placement has a smaller `layer_time_us`."""
    aggregate_link: str
    """The link of `aggregate`; empty where no link carries anything."""
    aggregate_tokens: float
    """Plain tokens per step on that link over all layers."""
    aggregate_us: float
    """Microseconds that it needs for them, one way."""
    aggregate_bound: float | None
    """No placement has a smaller `aggregate`; null where nothing is proved."""
    memory_bound: float | None
    """A bound on `total_z` that counts memory over layers; null where there is none."""
    budget_bound: float | None
    """A bound on `total_z` within the stated budget of moves from `--current`; null where there is none."""
    max_gap: float | None
    """The largest gap of a layer; null where one has no bound."""
    bounds: BoundsCounted
    """Where bounds come from."""
    facts: FactsCompared
    """What the file says beside the placement."""
    layers: list[LayerVerified]
    """MoE layers in order."""
    dags: list[DagVerified]
    """The DAGs beside the placement."""
