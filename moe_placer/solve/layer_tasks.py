"""Runs a function on every layer of a large problem, on the workers that also search, or here where there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

from moe_placer.errors import UsageError
from moe_placer.limits import Limits
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer_part import LayerPart, part_of, with_part, without_layers
from moe_placer.problem.regions import VAST
from moe_placer.workers import Engine, Workers, find_engine, keep_executor, local_processes, usable_cores

__all__ = ["engine_for_layers", "on_each_layer", "one_executor"]

Given = TypeVar("Given")
Own = TypeVar("Own")
Result = TypeVar("Result")
Function = Callable[[Given, Problem, int, Own], Result]

_POLL_S = 0.1
_TRIES = 2  # of a layer, before it is done here
_open: ContextVar[Engine | None] = ContextVar("open", default=None)


def engine_for_layers(limits: Limits, layers: int) -> Engine | None:
    """Return what runs layers elsewhere; None: all are run here.

    Raises
    ------
    UsageError
        The executor divides rows.
    """
    if (opened := _open.get()) is not None:
        return opened
    if limits.executor is None:
        return None if limits.workers == 1 else local_processes(min(limits.workers, layers, usable_cores()))
    engine = find_engine(limits.executor)
    if engine.shard is not None:
        raise UsageError(f"--executor {limits.executor} divides rows, and layers of one placement are not rows apart")
    return engine


@contextmanager
def one_executor(problem: Problem, limits: Limits) -> Iterator[None]:
    """Have all that runs layers meanwhile use one executor, and `on_each_layer` with it, where layers are large."""
    large = int(problem.replicas.sum(axis=1).max(initial=0)) * problem.nodes > VAST
    engine = engine_for_layers(limits, len(problem)) if large else None
    if engine is None:
        yield
        return
    with keep_executor(engine) as kept:
        token = _open.set(kept)
        try:
            yield
        finally:
            _open.reset(token)


def on_each_layer(
    function: Function[Given, Own, Result], given: Given, problem: Problem, own: Sequence[Own]
) -> list[Result]:
    """Return ``function(given, problem, index, own[index])`` for every MoE layer.

    Parameters
    ----------
    function : callable
        Of a module. It looks at no other layer of the problem.
    given : object
        Sent to every worker once.
    problem : Problem
        The compiled instance.
    own : sequence
        What goes with each layer.
    """
    engine = _open.get()
    if engine is None:
        return [function(given, problem, index, one) for index, one in enumerate(own)]
    found: dict[int, Result] = {}
    shared = function, given, without_layers(problem)
    with Workers[int, Any, tuple[int, LayerPart, Own], Result](_in_worker, shared, engine, _TRIES) as pool:
        for index, one in enumerate(own):
            pool.put(index, partial(_task, problem, index, one))
        while pool.pending:
            for index, result in pool.take(_POLL_S):
                found[index] = function(given, problem, index, own[index]) if result is None else result
    return [found[index] for index in range(len(own))]


def _task(problem: Problem, index: int, own: Own) -> tuple[int, LayerPart, Own]:
    return index, part_of(problem, index), own


def _in_worker(shared: tuple[Function[Given, Own, Result], Given, Problem], task: tuple[int, LayerPart, Own]) -> Result:
    (function, given, common), (index, part, own) = shared, task
    return function(given, with_part(common, index, part), index, own)
