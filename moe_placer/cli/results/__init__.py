"""What ``--json`` of each command prints, as types that mypy holds the commands to, and as JSON Schema."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from moe_placer.cli.describe import Description
from moe_placer.cli.results.deciding import GateResult, ScreenResult
from moe_placer.cli.results.engine_files import CheckFileResult, ExportResult, FilesResult, ImportResult, InitResult
from moe_placer.cli.results.evaluated import EvaluateResult
from moe_placer.cli.results.following import FollowResult
from moe_placer.cli.results.library import LibraryResult
from moe_placer.cli.results.logs import LogLine
from moe_placer.cli.results.placing import SolveResult, SolversResult
from moe_placer.cli.results.replanning import ReplanResult
from moe_placer.cli.results.simulated import CompareResult, ScheduleResult, SweepResult
from moe_placer.cli.results.verified import VerifyResult
from moe_placer.cli.results.watching import WatchResult
from moe_placer.errors import UsageError
from moe_placer.instance import Instance
from moe_placer.placement import Placement

__all__ = ["RESULTS", "result_schema"]

# By command; `dag`, `split`, `report` and `plan-report` all print which files they have written.
RESULTS: dict[str, Any] = {
    "import": ImportResult,
    "init": InitResult,
    "solve": SolveResult,
    "replan": ReplanResult,
    "follow": FollowResult,
    "watch": WatchResult,
    "verify": VerifyResult,
    "evaluate": EvaluateResult,
    "gate": GateResult,
    "screen": ScreenResult,
    "inspect": Description,
    "solvers": SolversResult,
    "dag": FilesResult,
    "schedule": ScheduleResult,
    "sweep": SweepResult,
    "compare": CompareResult,
    "split": FilesResult,
    "report": FilesResult,
    "plan-report": FilesResult,
    "export": ExportResult,
    "check-file": CheckFileResult,
    "library": LibraryResult,
    "log": LogLine,
    "instance": Instance,
    "placement": Placement,
}


def result_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of what a command prints with ``--json``, or of a file or log line.

    Later versions may add keys to a result of the same version; they neither remove a key nor change its meaning.

    Parameters
    ----------
    name : str
        A command, such as ``solve``; ``log`` for a line of ``--log json``; or ``instance`` or ``placement``.

    Returns
    -------
    dict
        JSON Schema, draft 2020-12.

    Raises
    ------
    UsageError
        There is none of that name.
    """
    if name not in RESULTS:
        raise UsageError(f"there is no schema of {name!r}, expected one of {', '.join(RESULTS)}")
    model = RESULTS[name]
    mode = "validation" if name in {"instance", "placement"} else "serialization"
    content = TypeAdapter(model).json_schema(by_alias=True, mode=mode)  # type: ignore[arg-type]  # one of two literals
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **content}
