"""What ``solve --json`` and ``solvers --json`` print."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

from moe_placer.cli.left_out import Part
from moe_placer.cli.plans import PlanFigures
from moe_placer.cli.results.documented import InstanceName, documented
from moe_placer.schedule.coarse_network import Sharing

__all__ = ["SolveResult", "SolversResult"]


@documented
class SolverUsed(TypedDict):
    """How a placement was made."""

    name: str
    """Name of the method."""
    version: str
    """Version of this program."""
    seed: int
    """Of its random generator."""
    parameters: dict[str, Any]
    """Its limits and settings."""


@documented
class GapOfLayers(TypedDict):
    """Gaps over the layers."""

    max: float | None
    """The largest; null where a layer has no bound."""
    median: float | None
    """The median; null where half of the layers have no bound."""
    proof: str
    """Whether anybody can check it again, or it is the solver's word."""


@documented
class LayerSolved(TypedDict):
    """One MoE layer."""

    layer: int
    """Index in the model, dense layers counted."""
    z: float
    """Cost of the busiest link: tokens per step at node-link speed."""
    bound: float
    """No placement of the layer has a smaller z."""
    proof: str
    """Kind of proof."""
    solver_bound: float | None
    """A higher bound by the solver's word."""
    gap: float | None
    """(z - bound) / bound; null without a bound."""
    worst_link: str
    """Name of the busiest link; empty where no link carries anything."""
    worst_link_tokens: float
    """Plain tokens per step on that link."""
    worst_link_us: float
    """Microseconds that it needs for them, one way."""
    status: str
    """What we have: `optimal`, `feasible`, `infeasible`, `unknown`."""
    stop: str
    """Why the search ended."""


@documented
class SolveEstimate(TypedDict):
    """What the solve was estimated to take before it began."""

    memory_bytes: float
    """Bytes of all processes together, in the largest phase."""
    seconds: dict[str, float]
    """Phase to seconds on one core."""


@documented
class CoolingDone(TypedDict):
    """What trading replicas between GPUs after the search changed, summed over layers."""

    busiest_before: float
    """Tokens per step of the busiest GPU of each layer, before."""
    busiest_after: float
    """The same, after."""
    z_before: float
    """Sum of z before (cost)."""
    z_after: float
    """The same, after."""


@documented
class SolveResult(TypedDict):
    """What `moe-placer solve --json` prints."""

    schema: Literal["moe-placer/solve/1"]
    """Name and version of this schema."""
    instance: InstanceName
    """What was solved."""
    solver: SolverUsed
    """How."""
    verified: bool
    """Whether the independent verifier found the placement good."""
    total_z: float
    """Sum of z over the layers (cost)."""
    total_bound: float
    """No placement has a smaller `total_z`; 0 where nothing is proved."""
    max_z: float
    """The largest z of a layer (cost)."""
    minimise: Literal["layers", "layer-time", "aggregate"]
    """What was minimised: `total_z`, `layer_time_us` or `aggregate`."""
    layer_time_us: float
    """Microseconds of all layers' dispatch, slowest GPU and combine in turn."""
    layer_time_bound_us: float
    """No placement has a smaller `layer_time_us`."""
    aggregate: float
    """The largest cost of any link over all layers together."""
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
    scenario_z: list[float] | None
    """Sum over layers of the busiest link's cost in each scenario (recording, or window in order); null for the mix."""
    objective_gap: float | None
    """Gap of what was minimised to its re-checkable bound; null without a bound."""
    gap: GapOfLayers
    """Gaps to re-checkable bounds."""
    sharing: Sharing | None
    """When links were shared out anew in simulated steps (`--sharing`); null where none was simulated."""
    solver_gap: GapOfLayers
    """Gaps to the solver's own bounds."""
    baselines: dict[str, float | str]
    """Heuristic to what it reaches of what was minimised, or to why it cannot serve."""
    plans: dict[str, PlanFigures]
    """Heuristics that could serve, and last the placement: what they come to in a step."""
    verdict: str | None
    """Whether placing pays, in a sentence; null where no engine's own rule can serve."""
    dispatch_us: float
    """Microseconds of all layers' dispatch in turn, each as long as its slowest link needs, one way."""
    combine_us: float
    """Microseconds of the way back, which is dispatch reversed with the bytes of results."""
    bound_us: float
    """No placement needs fewer microseconds for that."""
    better_than_contiguous: float | None
    """Share by which what was minimised is below the contiguous plan's."""
    cooling: CoolingDone | None
    """What trading replicas between GPUs after the search changed; null where that was not done."""
    repaired: int
    """Replicas that are not where the method puts them, because of pins, distances or groups."""
    workers_died_of: list[str]
    """Why worker processes died, if any did."""
    seconds: float
    """Of the solve."""
    layers: list[LayerSolved]
    """MoE layers in order."""
    files: list[str]
    """What was written."""
    left_out: list[Part]
    """What was not asked for: heuristics to compare with, bounds of layers that the method left unbounded, DAGs."""
    estimate: SolveEstimate
    """What the solve was estimated to take."""


@documented
class SolverListed(TypedDict):
    """One method."""

    name: str
    """What `--solver` calls it."""
    default: bool
    """Whether it is used where none is named."""
    exact: bool
    """Whether it can prove optimality."""
    summary: str
    """What it does."""
    source: str
    """Where it is from."""
    unavailable: str | None
    """Why it cannot run here; null where it can."""


@documented
class SolversResult(TypedDict):
    """What `moe-placer solvers --json` prints."""

    schema: Literal["moe-placer/solvers/1"]
    """Name and version of this schema."""
    solvers: list[SolverListed]
    """By name."""
