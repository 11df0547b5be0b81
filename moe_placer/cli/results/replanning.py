"""What ``replan --json`` prints."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from moe_placer.cli.results.documented import InstanceName, documented

__all__ = ["ReplanResult"]


@documented
class ReplanFigures(TypedDict):
    """What a placement costs on the new traffic, and what it takes to get there."""

    moves: int
    """Replicas that a GPU must load."""
    bytes: float
    """Their weights."""
    total_z: float
    """Sum over layers of the busiest link's cost: tokens per step at node-link speed."""
    busiest_gpu: float
    """Sum over layers of the tokens per step of the busiest GPU; a slow one's count as many times as it is slower."""
    value: float
    """What was minimised."""


@documented
class CurvePoint(TypedDict):
    """The best found for one budget, on the new traffic."""

    moves: int
    """Replicas that a GPU must load."""
    bytes: float
    """Their weights."""
    total_z: float
    """Sum over layers of the busiest link's cost: tokens per step at node-link speed."""
    busiest_gpu: float
    """Sum over layers of the tokens per step of the busiest GPU; a slow one's count as many times as it is slower."""
    value: float
    """What was minimised."""
    nic_z: NotRequired[float | None]
    """As `total_z`, of NICs alone, with `--curve`; null where none are counted as links."""
    layer_time_us: NotRequired[float | None]
    """Microseconds of all layers' dispatch, slowest GPU and combine in turn, with `--curve`."""
    step_us: NotRequired[float | None]
    """Microseconds of a simulated step with two micro-batches, with `--curve --step`; else null."""


@documented
class FreshPlan(TypedDict):
    """A plan from scratch: the best of the default solver and the heuristics."""

    method: str
    """What made it."""
    figures: ReplanFigures
    """What it comes to."""


@documented
class MigrationFigures(TypedDict):
    """The transfers of a migration: their number, bytes and times."""

    us: float
    """Microseconds of all transfers."""
    bound_us: float
    """No order of these transfers takes less."""
    longest_layer_us: float | None
    """Of the layer that takes longest, where layers take turns; else null."""
    transfers: int
    """How many."""
    most_extra_experts: int
    """Experts that a GPU holds at most meanwhile, beyond what it holds before and after."""
    busiest_link_bytes: float
    """Bytes on the link between nodes that carries most."""
    serving_loss_us: float | None
    """Microseconds that serving loses meanwhile, where weights share its links (docs/replanning.md)."""
    gain_us: float | None
    """Microseconds that a step gains; null where it gains none."""
    break_even_steps: float | None
    """Steps after which what serving loses is won back; null without a gain."""
    break_even_paused_steps: float | None
    """The same where the engine pauses for the transfers: their time over the gain of a step."""


@documented
class GoneExpert(TypedDict):
    """An expert of which no GPU has the weights any more."""

    layer: int
    """Index in the model."""
    expert: int
    """Its number."""


@documented
class ReplanLoss(TypedDict):
    """What went out of service with its GPUs."""

    failed_gpus: list[int]
    """GPUs that failed: what they held is gone."""
    drained_gpus: list[int]
    """GPUs that give away what they hold."""
    replicas: int
    """On all of them."""
    gone: list[GoneExpert]
    """Experts that have to be read from storage."""
    restored: int
    """Replicas that come back, or come instead: the least number of moves."""
    dropped: int
    """Replicas that go, since slots have become fewer or an expert that was gone needs them."""


@documented
class ReplanResult(TypedDict):
    """What `moe-placer replan --json` prints."""

    schema: Literal["moe-placer/replan/1"]
    """Name and version of this schema."""
    instance: InstanceName
    """What was replanned."""
    minimise: Literal["links", "gpus", "time"]
    """What was minimised: busiest links, busiest GPUs, or both as time."""
    loss: ReplanLoss | None
    """What went out of service and had to come back first; null where the current placement can run as it is."""
    budget_moves: int | None
    """Moves that the budget allows; null for any number."""
    bound: float | None
    """No placement within the budget has a smaller `total_z`; null where nothing is proved."""
    migration: MigrationFigures
    """The transfers of the migration."""
    gains: bool
    """Whether anything is gained; else nothing moves."""
    current: ReplanFigures
    """The placement that runs; with a `loss`, what is left of it with that restored."""
    within_budget: ReplanFigures
    """The placement that was written."""
    fresh: FreshPlan | None
    """A plan from scratch; null where none was asked for."""
    share_of_fresh_gain: float | None
    """Share of the fresh plan's gain that is reached; null where it gains nothing or was not asked for."""
    curve: list[CurvePoint]
    """The best found for several budgets, by moves."""
    verified: bool
    """Whether the independent verifier found the placement good."""
    seconds: float
    """Of search and verification."""
    files: list[str]
    """What was written."""
