"""Arguments and options that several commands share, and how they load what these name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from moe_placer.errors import UsageError

if TYPE_CHECKING:
    from moe_placer.cli.results.engine_files import FilesResult
    from moe_placer.instance import Instance
    from moe_placer.instance.schema import Engine
    from moe_placer.limits import Limits
    from moe_placer.placement import Placement
    from moe_placer.schedule.coarse_network import Sharing
    from moe_placer.traffic import Traffic

Command = TypeVar("Command", bound=Callable[..., Any])

__all__ = [
    "check_sharing_asked",
    "checked_executor",
    "counted",
    "engine_option",
    "executor_option",
    "gap_option",
    "instance_argument",
    "json_option",
    "open_instance",
    "open_placed",
    "open_verified",
    "placed_arguments",
    "refute_dags",
    "share",
    "shared_lines",
    "sharing_option",
    "trace_option",
    "trace_words",
    "with_workers",
    "work_option",
    "workers_option",
    "written_files",
]


def checked_executor(asked: str | None) -> str | None:
    """Return what was asked for, once it is known that there is such an executor, before anything else is done."""
    from moe_placer.workers import find_engine

    if asked is not None:
        find_engine(asked)
    return asked


def share(text: str) -> float:
    """Read a share that is written as 0.01 or as 1%; a bare 1 or more, which may mean either, is refused."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a share, expected one such as 1% or 0.01") from None
    if text.endswith("%"):
        return number / 100
    if 1 <= number < float("inf"):
        raise click.BadParameter(f"{text!r} may mean {text}% or {100 * number:g}%, expected which: 1% or 0.01")
    return number


# Paths are not checked by click: the readers say more about what is wrong, with the documented exit code.
instance_argument = click.argument("instance", type=click.Path(path_type=Path))
_placement_argument = click.argument("placement", type=click.Path(path_type=Path))
trace_option = click.option(
    "--trace",
    "traces",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Recorded routing (.npz with `topk`), one per domain; replaces the instance's traffic. Repeatable.",
)
gap_option = click.option(
    "--gap",
    default="0.1%",
    show_default=True,
    metavar="G",
    type=share,
    help="Stop a layer at this gap to its bound: 1% or 0.01.",
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["sglang", "vllm", "trtllm"]),
    help="Inference engine that is to load the placement; its rules on slots and replicas must hold.",
)
json_option = click.option(
    "--json", "json_", is_flag=True, help="Print one JSON object on standard output, nothing else."
)


executor_option = click.option(
    "--executor",
    metavar="NAME:...",
    help="What does the work: processes:N, loky:N, dask:local:N, dask:tcp://HOST:PORT, ray:local:N, ray:auto, mpi, or "
    "shard:I/N, the I-th of N parts.  [processes of this machine]",
)
work_option = click.option(
    "--work",
    metavar="W",
    type=float,
    help="Effort of the search, about CPU seconds, the same on every machine.  [from --time-limit]",
)
workers_option = click.option(
    "--workers", show_default="all cores; 1 if small", metavar="N", type=int, help="Worker processes.", default=None
)


def with_workers(limits: Limits, workers: int | None, instance: Instance) -> Limits:
    """Return limits with the workers that were asked for, or as many as shorten a solve of this instance."""
    from moe_placer.solve.estimate import useful_workers
    from moe_placer.workers import stated_workers

    if workers is None and limits.executor is not None and (stated := stated_workers(limits.executor)) is not None:
        return replace(limits, workers=stated)
    return limits if workers is not None else replace(limits, workers=useful_workers(instance))


def counted(count: int, noun: str) -> str:
    """Write a number with its noun: ``1 step``, ``2 steps``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def trace_words(traces: Iterable[Path]) -> list[str]:
    """Return the words of a command that give it these traces."""
    return [word for trace in traces for word in ("--trace", str(trace))]


def placed_arguments(command: Command) -> Command:
    """Give a command INSTANCE, PLACEMENT and --trace, in this order."""
    return instance_argument(_placement_argument(trace_option(command)))


def written_files(files: Iterable[Path]) -> FilesResult:
    """Return what ``--json`` prints of commands that only write files."""
    return {"schema": "moe-placer/files/1", "files": [str(path) for path in files]}


def open_instance(path: Path, traces: tuple[Path, ...], engine: Engine | None = None) -> Instance:
    """Read an instance; traces and an engine given on the command line replace its own."""
    from moe_placer.instance import load_instance

    instance = load_instance(path)
    instance = instance.with_traces(traces) if traces else instance
    return instance.with_engine(engine) if engine else instance


sharing_option = click.option(
    "--sharing",
    type=click.Choice(["exact", "fine", "coarse"]),
    default="fine",
    show_default=True,
    help="When links are shared out anew: where any flow starts or ends; the same, with ends that are close as one; "
    "in spans of 1% to 10% of a transfer's time, for large clusters (docs/network.md).",
)


def check_sharing_asked(simulates: bool, option: str) -> None:
    """Refuse ``--sharing`` of a command that simulates no step without ``option``, and was not given that."""
    given = click.get_current_context().get_parameter_source("sharing") is ParameterSource.COMMANDLINE
    if given and not simulates:
        raise UsageError(f"--sharing says how a step's links are shared out, and no step is simulated without {option}")


def shared_lines(sharing: Sharing | None) -> list[str]:
    """Say how simulated steps shared links out, where steps were simulated and that is not the default."""
    return [] if sharing in {None, "fine"} else [f"Steps were simulated with --sharing {sharing} (docs/network.md)."]


def open_verified(path: Path, placement: Path, traces: tuple[Path, ...]) -> tuple[Instance, Placement, Traffic]:
    """Read an instance, a placement of it and its traffic; what breaks a rule is refused."""
    return _opened(path, placement, traces, bounds=True)


def open_placed(path: Path, placement: Path, traces: tuple[Path, ...]) -> tuple[Instance, Placement, Traffic]:
    """Do the same without deriving bounds anew, for what no bound matters to."""
    return _opened(path, placement, traces, bounds=False)


def _opened(
    path: Path, placement: Path, traces: tuple[Path, ...], *, bounds: bool
) -> tuple[Instance, Placement, Traffic]:
    from moe_placer.errors import VerificationError
    from moe_placer.placement import load_placement
    from moe_placer.traffic import load_traffic
    from moe_placer.verifier import verify

    instance, placed = open_instance(path, traces), load_placement(placement)
    traffic = load_traffic(instance)
    verification = verify(instance, placed, traffic, bounds=bounds)
    if not verification.ok:
        raise VerificationError(f"{placement} is not used, since it breaks a rule: {verification.violations[0]}")
    return instance, placed, traffic


def refute_dags(instance: Instance, placement: Placement, traffic: Traffic) -> Callable[[Path], None]:
    """Return a check that raises where the verifier finds a DAG of a folder wrong: a defect of what draws."""
    from moe_placer.errors import VerificationError
    from moe_placer.verifier.dags import verify_dags

    def check(folder: Path) -> None:
        found = [breach for dag in verify_dags(instance, placement, folder, traffic) for breach in dag.violations]
        if found:
            more = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
            name, rules = found[0].dag, [breach.rule for breach in found]
            raise VerificationError(f"{name} fails verification, so it was not written: {found[0]}{more}", rules)

    return check
