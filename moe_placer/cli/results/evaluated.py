"""What ``evaluate --json`` prints."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from moe_placer.cli.results.documented import InstanceName, documented
from moe_placer.schedule.coarse_network import Sharing

__all__ = ["EvaluateResult", "PlanCost"]


@documented
class PlanCost(TypedDict):
    """What one plan costs in one step."""

    total_z: float
    """Sum over layers of the cost of the busiest link, NICs included."""
    max_z: float
    """The largest of these costs."""
    busiest_link: str
    """Its link; empty where no link carries anything."""
    aggregate: float
    """Largest cost of any link over all layers together."""
    dispatch_us: float
    """Microseconds of all layers' dispatch in turn, each as long as its slowest link needs."""
    combine_us: float
    """Microseconds of the way back, with the bytes of results."""
    nic_z: float | None
    """As `total_z`, of NICs alone; null where none are counted as links."""
    busiest_gpu_tokens: float
    """Sum over layers of the tokens that the busiest GPU computes."""
    above_mean: float
    """How far that is above the mean of working GPUs, as a share."""
    layer_time_us: float
    """Microseconds of all layers' dispatch, slowest GPU and combine in turn."""
    inter_node_tokens: float
    """Copies of tokens that are sent between nodes, over all layers."""
    step_us: float | None
    """Microseconds of a simulated step with two micro-batches; null without `--step`."""
    step_one_batch_us: float | None
    """The same with one micro-batch."""


@documented
class EvaluateResult(TypedDict):
    """What `moe-placer evaluate --json` prints."""

    schema: Literal["moe-placer/evaluation/1"]
    """Name and version of this schema."""
    instance: InstanceName
    """With the routing and dispatch that were asked for."""
    placement: str
    """The file."""
    routing: str
    """How tokens pick replicas."""
    dispatch: str
    """What a token is sent once for."""
    same_instance: bool
    """Whether the placement says that it was made for this instance, routing and dispatch."""
    same_traffic: bool
    """Whether it says that it was made for this traffic."""
    breaks: list[str]
    """Constraints of the instance that it breaks, in words."""
    costs: PlanCost
    """Of the placement."""
    rivals: dict[str, PlanCost]
    """Of heuristics' plans for the same traffic, by name."""
    cannot_serve: dict[str, str]
    """Heuristics that cannot serve, and why."""
    best_split: PlanCost | None
    """Of the placement where tokens are split so that the busiest link costs least; null under `group` and `even`."""
    bound: float | None
    """No placement that the instance allows has a smaller `total_z`; null under rules for which nothing is proved."""
    layer_time_bound_us: float | None
    """Nor a smaller `layer_time_us`."""
    sharing: Sharing | None
    """When links were shared out anew in simulated steps (`--sharing`); null without `--step`."""
