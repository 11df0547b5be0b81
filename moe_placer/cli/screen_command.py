"""``moe-placer screen``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moe_placer.cli import log
from moe_placer.cli.init_command import CLUSTER_OPTIONS
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import json_option, open_instance, share, with_workers, workers_option
from moe_placer.errors import ScreenError, UsageError

if TYPE_CHECKING:
    from moe_placer.cli.results.deciding import ScreenResult
    from moe_placer.decisions.resampling import Interval
    from moe_placer.decisions.screen import Screening
    from moe_placer.instance import Instance

__all__ = ["screen"]

_PATH = click.Path(path_type=Path)
_EXIT_CODES = {"recommend_trial": 0, "not_recommended_now": 7, "insufficient_evidence": 8}
_SHOWN = 3

EXAMPLES = """
\b
Examples:
  moe-placer screen recording.npz --instance instance.yaml
  moe-placer screen recording.npz --model config.json --gpus 64 --redundant-slots 64 --solver eplb
"""


def _cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(CLUSTER_OPTIONS):
        command = option(command)
    return command


@click.command(epilog=EXAMPLES)
@click.argument("recordings", metavar="RECORDING...", nargs=-1, required=True, type=_PATH)
@click.option("--instance", metavar="INSTANCE", type=_PATH, help="Model, cluster and slots; its recordings are unused.")
@click.option(
    "--model", "config", metavar="FILE", type=_PATH, help="Instead of --instance: config.json, and the options of init."
)
@_cluster_options
@click.option("--current", metavar="PLACEMENT", type=_PATH, help="Placement file of what runs today.  [contiguous]")
@click.option("--solver", default="auto", show_default=True, metavar="NAME", help="Method whose plan is screened.")
@click.option("--time-limit", default=60.0, show_default=True, metavar="S", help="Seconds of the solver's search.")
@workers_option
@click.option("--seed", default=0, show_default=True, metavar="N", help="Seed of the search and of the draws.")
@click.option(
    "--min-gain", type=share, default="2%", show_default=True, metavar="X", help="Least gain that is worth a trial."
)
@click.option(
    "--confidence", type=share, default="95%", show_default=True, metavar="C", help="Confidence of all intervals."
)
@click.option(
    "--draws",
    type=int,
    default=1000,
    show_default=True,
    metavar="N",
    help="Bootstrap draws of windows, with replacement.",
)
@click.option("--horizon", type=float, metavar="STEPS", help="Steps within which loading the plan must be paid back.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on standard error.")
@json_option
def screen(
    recordings: tuple[Path, ...],
    instance: Path | None,
    config: Path | None,
    current: Path | None,
    solver: str,
    time_limit: float,
    workers: int | None,
    seed: int,
    min_gain: float,
    confidence: float,
    draws: int,
    horizon: float | None,
    quiet: bool,
    json_: bool,
    **wishes: Any,
) -> None:
    """Say whether placing pays, before anything is switched on: plan on some windows, score on the others.

    Gains are of layer time (dispatch, busiest GPU, combine), against what runs today, with intervals from drawing the
    scored windows or sequences again and again. Exit code 0: recommend_trial; 7: not_recommended_now; 8:
    insufficient_evidence.
    """
    from moe_placer.decisions.screen import ScreenSettings
    from moe_placer.decisions.screen import screen as judge
    from moe_placer.limits import Limits
    from moe_placer.placement import load_placement

    limits = Limits(time_s=time_limit, workers=1 if workers is None else workers)
    opened = _instance(recordings, instance, config, wishes)
    limits = with_workers(limits, workers, opened)
    settings = ScreenSettings(solver, limits, seed, min_gain, confidence, draws, horizon)
    before = None if current is None else load_placement(current)
    if not log.silent(quiet, json_):
        log.info(f"{opened.name}: planning with {solver}, at most {time_limit:g} s", instance=opened.name)
    found = judge(opened, recordings, before, settings)
    if json_:
        click.echo(as_json(_content(opened, settings.min_gain, settings.confidence, found)))
    else:
        for line in _lines(opened, settings.confidence, found):
            click.echo(line)
    code = _EXIT_CODES[found.verdict]
    if code:
        raise ScreenError(f"{found.verdict}: {found.reason}", code)


def _instance(
    recordings: tuple[Path, ...], instance: Path | None, config: Path | None, wishes: dict[str, Any]
) -> Instance:
    """Open the instance, or draft one from the model and what is said of the cluster."""
    said = [f"--{name.replace('_', '-')}" for name, value in wishes.items() if value is not None]
    if (instance is None) == (config is None):
        raise UsageError("screen needs --instance INSTANCE, or --model config.json and --gpus N")
    if instance is not None:
        if said:
            raise UsageError(f"{said[0]} goes with --model; --instance says all of the cluster")
        return open_instance(instance, ())
    from moe_placer.engines.init import Wishes, draft_instance, inspect_recordings, read_model_config, read_system
    from moe_placer.instance import Instance

    assert config is not None
    model = read_model_config(config, wishes.pop("dtype"))
    wishes["system"] = read_system(wishes["system"]) if wishes["system"] else None
    tokens = wishes["dispatch"] not in {None, "per-expert"}
    draft = draft_instance(model, inspect_recordings(recordings, model, tokens), None, Wishes(**wishes), Path())
    return Instance.model_validate(draft.data)


def _gain(found: Interval, confidence: float) -> str:
    return f"{found.gain:+.1%} ({confidence:.0%}: {found.low:+.1%} to {found.high:+.1%})"


def _lines(instance: Instance, confidence: float, found: Screening) -> list[str]:
    lines = []
    cut: dict[str, list[str]] = {}
    for units in found.units:
        parts = f"planned on {len(units.plan)} {units.kind}, scored on {len(units.score)} others"
        cut.setdefault(parts if units.score else "nothing to tell apart", []).append(units.name)
    for parts, names in cut.items():
        lines.append(f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {parts}")
    if getattr(instance.traffic, "sources", "mix") == "recorded" and len(found.units) == 1 < instance.cluster.nodes:
        lines.append(
            "  nodes         taken alike: counts of windows do not tell source ranks apart, whole tokens would"
        )
    if found.time and found.links and found.gpus and found.migration and found.solution:
        placed, moved = found.solution.placement.solver.name, found.migration
        lines.append(f"  {instance.name}: {placed} against {found.current}; gains are shares saved, losses below 0")
        lines.append(f"  layer time    {_gain(found.time, confidence)}")
        lines.append(f"  links         {_gain(found.links, confidence)}")
        lines.append(f"  busiest GPUs  {_gain(found.gpus, confidence)}")
        sure = sum(layer.time.low > 0 for layer in found.layers)
        worse = sum(layer.time.high < 0 for layer in found.layers)
        lines.append(
            f"  layers        {sure} of {len(found.layers)} faster with that confidence, {worse} slower; the least:"
        )
        least = sorted(found.layers, key=lambda layer: layer.time.gain)[:_SHOWN]
        lines += [f"    layer {layer.layer:<4}  {_gain(layer.time, confidence)}" for layer in least]
        steps = moved.payback_steps
        paid = "never paid back" if steps is None else f"paid back after {max(1.0, steps):,.1f} steps"
        lines.append(
            f"  migration     {moved.replicas:,} replicas, {moved.total_gb:,.1f} GB, at most "
            f"{moved.largest_gpu_gb:,.2f} GB on a GPU: {moved.ms:,.1f} ms of its NIC; {paid}"
        )
    return [*lines, f"Verdict: {found.verdict}: {found.reason}."]


def _content(instance: Instance, min_gain: float, confidence: float, found: Screening) -> ScreenResult:
    return {
        "schema": "moe-placer/screen/1",
        "verdict": found.verdict.value,
        "reason": found.reason,
        "instance": {"name": instance.name, "sha256": instance.sha256},
        "min_gain": min_gain,
        "confidence": confidence,
        "recordings": [
            {"name": one.name, "kind": one.kind, "planned_on": len(one.plan), "scored_on": len(one.score)}
            for one in found.units
        ],
        "current": found.current or None,
        "solver": found.solution.placement.solver.name if found.solution else None,
        "time": found.time,
        "links": found.links,
        "gpus": found.gpus,
        "layers": list(found.layers),
        "migration": found.migration,
    }
