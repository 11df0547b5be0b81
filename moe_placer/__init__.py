"""Places the experts of Mixture-of-Experts models on GPU clusters, and proves how good the placement is.

    import moe_placer

    instance = moe_placer.load_instance("instances/h100-128.yaml")
    solution = moe_placer.solve(instance, limits=moe_placer.Limits(time_s=60, workers=2))
    solution.verification.total_z, solution.gaps.max()

Importing this package prints nothing, sets up no logging, and loads no solver.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from moe_placer.cli.describe import describe
    from moe_placer.cli.results import result_schema
    from moe_placer.dag import write_dags
    from moe_placer.decisions.evaluate import Evaluation, PlanCosts, evaluate
    from moe_placer.decisions.gate import Gate, GateCheck, GateLimits, gate
    from moe_placer.decisions.screen import Screening, ScreenSettings, Verdict, screen
    from moe_placer.engines.init import Draft, Wishes, init
    from moe_placer.engines.plans.export import CheckedFile, Export, check_file, export_plan
    from moe_placer.engines.recordings import Recorded, import_recording
    from moe_placer.engines.topology import read_topologies
    from moe_placer.errors import (
        DefectError,
        InfeasibleError,
        InputError,
        Mistake,
        MoePlacerError,
        NothingFoundError,
        UsageError,
        VerificationError,
    )
    from moe_placer.experiments.compare import Given, Matrix, Settings, build_matrix, compare
    from moe_placer.experiments.plan.measure import measure_plan
    from moe_placer.experiments.plan.plan_folder import write_plan_page
    from moe_placer.experiments.report import write_report
    from moe_placer.experiments.row_files import write_rows
    from moe_placer.experiments.sweep.sweep import Grid, make_plan, sweep
    from moe_placer.instance import Instance, load_instance, make_instance
    from moe_placer.library import Library, Recheck, Submission, open_library, recheck_record, submit_placement
    from moe_placer.limits import Limits
    from moe_placer.placement import LayerRecord, Placement, load_placement
    from moe_placer.replan.budget import Budget
    from moe_placer.replan.change import Change
    from moe_placer.replan.follow import follow
    from moe_placer.replan.replan import Replanned, replan
    from moe_placer.result import Status, Stop
    from moe_placer.schedule.step import simulate
    from moe_placer.schedule.workload import Workload
    from moe_placer.solve.progress import Progress
    from moe_placer.solve.quick_plan import QuickPlan, QuickPlanner
    from moe_placer.solve.registry import find_solver, solver_names
    from moe_placer.solve.solve import Solution, solve
    from moe_placer.traffic import Recording, Traffic, cut_in_windows, load_traffic, make_traffic
    from moe_placer.traffic.split import split_recording
    from moe_placer.verifier import LayerCheck, Verification, Violation, verify
    from moe_placer.watch.store import WatchStore
    from moe_placer.watch.watcher import Watcher, WatchPolicy

_HOME = {
    "Budget": "replan.budget",
    "Change": "replan.change",
    "CheckedFile": "engines.plans.export",
    "DefectError": "errors",
    "Draft": "engines.init",
    "Evaluation": "decisions.evaluate",
    "Export": "engines.plans.export",
    "Gate": "decisions.gate",
    "GateCheck": "decisions.gate",
    "GateLimits": "decisions.gate",
    "Given": "experiments.compare",
    "Grid": "experiments.sweep.sweep",
    "InfeasibleError": "errors",
    "InputError": "errors",
    "Instance": "instance",
    "LayerCheck": "verifier",
    "LayerRecord": "placement",
    "Library": "library",
    "Limits": "limits",
    "Matrix": "experiments.compare",
    "Mistake": "errors",
    "MoePlacerError": "errors",
    "NothingFoundError": "errors",
    "Placement": "placement",
    "PlanCosts": "decisions.evaluate",
    "Progress": "solve.progress",
    "QuickPlan": "solve.quick_plan",
    "QuickPlanner": "solve.quick_plan",
    "Recheck": "library",
    "Recorded": "engines.recordings",
    "Recording": "traffic",
    "Replanned": "replan.replan",
    "ScreenSettings": "decisions.screen",
    "Screening": "decisions.screen",
    "Settings": "experiments.compare",
    "Solution": "solve.solve",
    "Status": "result",
    "Stop": "result",
    "Submission": "library",
    "Traffic": "traffic",
    "UsageError": "errors",
    "Verdict": "decisions.screen",
    "Verification": "verifier",
    "VerificationError": "errors",
    "Violation": "verifier",
    "WatchPolicy": "watch.watcher",
    "WatchStore": "watch.store",
    "Watcher": "watch.watcher",
    "Wishes": "engines.init",
    "Workload": "schedule.workload",
    "build_matrix": "experiments.compare",
    "check_file": "engines.plans.export",
    "compare": "experiments.compare",
    "cut_in_windows": "traffic",
    "describe": "cli.describe",
    "evaluate": "decisions.evaluate",
    "export_plan": "engines.plans.export",
    "find_solver": "solve.registry",
    "follow": "replan.follow",
    "gate": "decisions.gate",
    "import_recording": "engines.recordings",
    "init": "engines.init",
    "load_instance": "instance",
    "load_placement": "placement",
    "load_traffic": "traffic",
    "make_instance": "instance",
    "make_plan": "experiments.sweep.sweep",
    "make_traffic": "traffic",
    "measure_plan": "experiments.plan.measure",
    "open_library": "library",
    "read_topologies": "engines.topology",
    "recheck_record": "library",
    "replan": "replan.replan",
    "result_schema": "cli.results",
    "screen": "decisions.screen",
    "simulate": "schedule.step",
    "solve": "solve.solve",
    "solver_names": "solve.registry",
    "split_recording": "traffic.split",
    "submit_placement": "library",
    "sweep": "experiments.sweep.sweep",
    "verify": "verifier",
    "write_dags": "dag",
    "write_plan_page": "experiments.plan.plan_folder",
    "write_report": "experiments.report",
    "write_rows": "experiments.row_files",
}

__all__ = [
    "Budget",
    "Change",
    "CheckedFile",
    "DefectError",
    "Draft",
    "Evaluation",
    "Export",
    "Gate",
    "GateCheck",
    "GateLimits",
    "Given",
    "Grid",
    "InfeasibleError",
    "InputError",
    "Instance",
    "LayerCheck",
    "LayerRecord",
    "Library",
    "Limits",
    "Matrix",
    "Mistake",
    "MoePlacerError",
    "NothingFoundError",
    "Placement",
    "PlanCosts",
    "Progress",
    "QuickPlan",
    "QuickPlanner",
    "Recheck",
    "Recorded",
    "Recording",
    "Replanned",
    "ScreenSettings",
    "Screening",
    "Settings",
    "Solution",
    "Status",
    "Stop",
    "Submission",
    "Traffic",
    "UsageError",
    "Verdict",
    "Verification",
    "VerificationError",
    "Violation",
    "WatchPolicy",
    "WatchStore",
    "Watcher",
    "Wishes",
    "Workload",
    "__version__",
    "build_matrix",
    "check_file",
    "compare",
    "cut_in_windows",
    "describe",
    "evaluate",
    "export_plan",
    "find_solver",
    "follow",
    "gate",
    "import_recording",
    "init",
    "load_instance",
    "load_placement",
    "load_traffic",
    "make_instance",
    "make_plan",
    "make_traffic",
    "measure_plan",
    "open_library",
    "read_topologies",
    "recheck_record",
    "replan",
    "result_schema",
    "screen",
    "simulate",
    "solve",
    "solver_names",
    "split_recording",
    "submit_placement",
    "sweep",
    "verify",
    "write_dags",
    "write_plan_page",
    "write_report",
    "write_rows",
]


# Two rooms have the name of their function: once loaded, a room can no longer take the name for itself.
for _room in ("solve", "replan"):
    import_module(f"{__name__}.{_room}")
    del globals()[_room]


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing the package costs next to nothing."""
    if name == "__version__":
        from importlib.metadata import version  # slow to import

        return version("moe-placer")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
