"""The one table of solvers."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version

from moe_placer.errors import UsageError
from moe_placer.solve.base import Solver

__all__ = ["BUILT_IN", "DEFAULT", "find_solver", "installed_version", "solver_names", "solver_version"]

BUILT_IN = {
    "auto": "moe_placer.solvers.auto:Auto",
    "cpsat": "moe_placer.solvers.cpsat:CpSat",
    "mip": "moe_placer.solvers.mip:Mip",
    "contiguous": "moe_placer.solvers.contiguous:Contiguous",
    "round-robin": "moe_placer.solvers.round_robin:RoundRobin",
    "random": "moe_placer.solvers.random_slots:RandomSlots",
    "greedy": "moe_placer.solvers.greedy:Greedy",
    "quick": "moe_placer.solvers.quick:Quick",
    "eplb": "moe_placer.solvers.eplb:Eplb",
    "eplb-global": "moe_placer.solvers.eplb:EplbGlobal",
    "lpt": "moe_placer.solvers.lpt:Lpt",
    "trtllm": "moe_placer.solvers.trtllm:TensorRtLlm",
    "topology-swaps": "moe_placer.solvers.topology_swaps:TopologySwaps",
    "flow": "moe_placer.solvers.flow:Flow",
    "coverage": "moe_placer.solvers.coverage:CoverageSolver",
    "affinity": "moe_placer.solvers.affinity:Affinity",
}
DEFAULT = "auto"


def solver_names() -> tuple[str, ...]:
    """Names of all solvers: those built in, then those of other packages (entry-point group ``moe_placer.solvers``)."""
    return (*BUILT_IN, *sorted(set(_plug_ins()) - set(BUILT_IN)))


def find_solver(name: str) -> Solver:
    """Return a solver by its name.

    Raises
    ------
    UsageError
        There is none of this name, or it cannot be loaded.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        solver = getattr(import_module(module), attribute)()
    else:
        plug_in = _plug_ins().get(name)
        if plug_in is None:
            raise UsageError(f"there is no solver {name!r}; there are: {', '.join(solver_names())}")
        try:
            solver = plug_in.load()()
        except Exception as error:
            raise UsageError(f"the solver {name!r} ({plug_in.value}) cannot be loaded: {error}") from error
    if not isinstance(solver, Solver):
        raise UsageError(f"{name!r} is not a moe_placer Solver")
    return solver


def solver_version(name: str) -> str:
    """Version of the program, and for another package's solver also that package's name and version."""
    own = installed_version("moe-placer")
    package = _plug_ins()[name].dist if name not in BUILT_IN else None
    return own if package is None else f"{own}, {package.name} {package.version}"


@cache
def installed_version(package: str) -> str:
    """Version of an installed package; "not installed" without one."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="moe_placer.solvers")}
