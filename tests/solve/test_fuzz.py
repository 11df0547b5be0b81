"""Random tiny instances with every feature, solved by every solver, against every placement that there is."""

from __future__ import annotations

import numpy as np
import pytest
from adversary import draw_instance
from brute_force import BruteForce

from moe_placer.errors import InfeasibleError, InputError, NothingFoundError
from moe_placer.limits import Limits
from moe_placer.problem.compile import compile_problem
from moe_placer.result import Status, Stop
from moe_placer.solve.registry import BUILT_IN, find_solver
from moe_placer.solve.solve import Solution, solve

MOST_WAYS = 20_000  # to place a layer; instances with more are left out
QUICK, MANY = 12, 400
SEARCHING = ("auto", "cpsat", "mip")
ONE_PASS = tuple(name for name in BUILT_IN if name not in {*SEARCHING, "coverage", "affinity"})
CLOSE = 1e-6  # relative: what counts as equal
HAIR = 1e-9


def draw(seed: int) -> BruteForce | None:
    """Draw an instance of which every placement can be tried; None where the seed gives none."""
    try:
        drawn = draw_instance(np.random.default_rng(seed))
    except InputError:
        return None
    brute = None if drawn is None else BruteForce(*drawn, MOST_WAYS)
    return brute if brute is not None and brute.complete else None


def check(brute: BruteForce, solver: str) -> None:
    """Solve, and hold what is said against what is."""
    instance, traffic = brute.instance, brute.traffic
    best = brute.best_total() if brute.possible else None
    try:
        solution = solve(instance, traffic, solver=solver, limits=Limits(time_s=120.0, gap=0.0, work=0.4), seed=1)
    except InfeasibleError:
        assert best is None
        return
    except NothingFoundError:
        assert best is not None
        assert find_solver(solver).refuses(compile_problem(instance, traffic))
        return
    assert best is not None
    value = float(best.value)
    found = solution.verification
    assert found.total_z >= value * (1 - HAIR)
    assert solution.bound <= value * (1 + HAIR) + HAIR
    check_layers(solution, brute)
    if set(solution.status) == {Status.OPTIMAL}:
        assert found.total_z <= value * (1 + 2 * CLOSE) + HAIR
    if solver == "auto":
        printed = [total for total in solution.baselines.values() if isinstance(total, float)]
        assert found.total_z <= min(printed, default=np.inf) * (1 + HAIR)


def check_layers(solution: Solution, brute: BruteForce) -> None:
    """Hold each layer's bounds and status against the least z of that layer alone, with any replicas."""
    rows = zip(solution.placement.layers, solution.status, solution.stop, strict=True)
    for row, (record, status, stop) in enumerate(rows):
        least = float(brute.best_of_layer(row))
        assert record.z >= least * (1 - HAIR)
        assert max(record.bound, record.solver_bound or 0.0) <= least * (1 + CLOSE) + HAIR
        assert (status is Status.OPTIMAL) <= (record.z <= least * (1 + 2 * CLOSE) + HAIR)
        assert (stop is Stop.PROVED) <= (status is Status.OPTIMAL)
        if stop is Stop.GAP:  # a gap of 0 was asked for
            assert record.z <= record.bound * (1 + CLOSE)


def check_seed(seed: int) -> bool:
    """Check every solver on the instance of a seed, if there is one."""
    brute = draw(seed)
    if brute is None:
        return False
    for solver in (*SEARCHING, *ONE_PASS):
        try:
            check(brute, solver)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {solver}: {error}") from error
    return True


@pytest.mark.parametrize("part", range(2))
def test_what_is_said_is_so(part: int) -> None:
    assert sum(check_seed(seed) for seed in range(part, QUICK, 2)) > QUICK // 6


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(20))
def test_what_is_said_of_many_is_so(part: int) -> None:
    assert sum(check_seed(seed) for seed in range(QUICK + part, QUICK + MANY, 20)) > MANY // 40
