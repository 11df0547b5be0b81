"""What if a GPU is slow or fails, or a link is slow: how much later the step is, and which replica would help most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from moe_placer.errors import UsageError
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.schedule.added_replicas import AddedReplica, Wish, find_candidates, free_slots, with_added_replicas
from moe_placer.schedule.coarse_network import Sharing
from moe_placer.schedule.failure import Survivors, after_failure
from moe_placer.schedule.program import compile_program
from moe_placer.schedule.simulate import simulate
from moe_placer.schedule.step_figures import find_figures
from moe_placer.schedule.workload import Condition, Workload
from moe_placer.traffic.recording import Traffic
from moe_placer.workers import run_each

__all__ = ["Advice", "Answer", "Question", "ask"]


@dataclass(frozen=True)
class Question:
    """Slow or failed hardware to simulate a step with.

    Attributes
    ----------
    condition : Condition
        Slow GPUs and links.
    failed : tuple of int
        GPUs that fail.
    """

    condition: Condition = field(default_factory=Condition)
    failed: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.failed or self.condition.slow_gpus or self.condition.slow_links)


@dataclass(frozen=True)
class Advice:
    """Further replicas, and the step with them.

    Attributes
    ----------
    replicas : tuple of AddedReplica
    latency_us : float
    fits : bool
        Whether every GPU's memory holds it.
    """

    replicas: tuple[AddedReplica, ...]
    latency_us: float
    fits: bool


@dataclass(frozen=True, eq=False)
class Answer:
    """The step under the conditions of a question, and the replicas that would help.

    Attributes
    ----------
    before_us : float
        Latency of the step as the instance describes it.
    after_us : float or None
        Latency under the question's conditions; None where the step cannot run.
    fits : bool
        Whether memory holds the step then.
    survivors : Survivors
        Who took over, and what is lost.
    spare : int
        1 where no GPU could take a replica in any layer, so that advice is for one slot more per GPU than there are.
    advice : tuple of Advice
        Best first; single replicas, and one replica in every layer together.
    """

    before_us: float
    after_us: float | None
    fits: bool
    survivors: Survivors
    spare: int
    advice: tuple[Advice, ...]


@dataclass(frozen=True, eq=False)
class _Scene:
    """What all simulations of an answer share."""

    instance: Instance
    placement: Placement
    traffic: Traffic
    workload: Workload
    condition: Condition
    sharing: Sharing


def ask(
    instance: Instance,
    placement: Placement,
    traffic: Traffic,
    workload: Workload,
    question: Question,
    *,
    before_us: float,
    most: int = 4,
    workers: int = 1,
    sharing: Sharing = "fine",
) -> Answer:
    """Simulate the step under other conditions, and then with further replicas.

    Parameters
    ----------
    instance : Instance
    placement : Placement
    traffic : Traffic
        Routing statistics of the instance's sources.
    workload : Workload
        Tokens per GPU, contexts and micro-batches of the step.
    question : Question
        What is slow or has failed.
    before_us : float
        Latency of the step as it is.
    most : int
        Single replicas to simulate; 0 gives no advice.
    workers : int
        Processes for the simulations.
    sharing : str
        How finely links are shared out over time.

    Raises
    ------
    UsageError, InputError
        A GPU or a link that is not there.
    """
    if most < 0:
        raise UsageError(f"{most} replicas to try, expected 0 or more")
    slow = set(question.condition.slow_gpus)
    if both := sorted(slow & set(question.failed)):
        raise UsageError(f"GPU {both[0]} is to be slow and to fail, expected one of both")
    survivors = after_failure(instance, placement, question.failed)
    if not survivors.runs:
        return Answer(before_us, None, False, survivors, 0, ())
    scene = _Scene(survivors.instance, survivors.placement, traffic, workload, question.condition, sharing)
    after_us, fits = _step(scene, ())
    spare, tries = _tries(scene, question, placement, most)
    found = [
        Advice(replicas, *result) for replicas, result in zip(tries, _in_order(scene, tries, workers), strict=True)
    ]
    advice = tuple(sorted(found, key=lambda one: (one.latency_us, len(one.replicas))))
    return Answer(before_us, after_us, fits, survivors, spare, advice)


def _in_order(scene: _Scene, tries: Sequence[tuple[AddedReplica, ...]], workers: int) -> list[tuple[float, bool]]:
    return [result for _, result in sorted(run_each(_step, scene, tries, workers))]


def _step(scene: _Scene, replicas: tuple[AddedReplica, ...]) -> tuple[float, bool]:
    """Latency of the step with further replicas, µs, and whether memory holds it."""
    placement = with_added_replicas(scene.instance, scene.placement, replicas)
    program = compile_program(scene.instance, placement, scene.traffic, stand_ins=True)
    figures = find_figures(simulate(program, scene.workload, condition=scene.condition, sharing=scene.sharing))
    return figures.latency_us, figures.memory.fits


def _tries(
    scene: _Scene, question: Question, before: Placement, most: int
) -> tuple[int, list[tuple[AddedReplica, ...]]]:
    """Choose what to simulate: the most promising single replicas, and one replica in every layer."""
    if most == 0 or scene.instance.parallelism.expert_tp > 1:
        return 0, []
    condition = question.condition
    wish = Wish(tuple(condition.slow_gpus), question.failed, tuple(condition.slow_links))
    if wish.links and (wish.slow or wish.failed):
        wish = replace(wish, links=())  # a GPU holds up every layer; a link only those that cross it
    for spare in (0, 1):
        free = free_slots(scene.instance, scene.placement, spare)
        candidates = find_candidates(scene.instance, scene.placement, scene.traffic, wish, before, free)
        if candidates:
            single = [(replica,) for replica in candidates[:most]]
            return spare, [*single, tuple(candidates)] if len(candidates) > 1 else [*single]
    return 1, []
