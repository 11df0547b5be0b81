"""What `moe-placer export` and `moe-placer check-file` do, as functions."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moe_placer.engines.plans.form import MAX_BYTES, PlanForm, Start
from moe_placer.engines.plans.forms import FORMS
from moe_placer.engines.plans.from_placement import plan_from_placement
from moe_placer.engines.plans.plan import Deployment, Plan, read_deployment
from moe_placer.engines.plans.rank_costs import WARNINGS, check_rank_costs, encode_rank_costs, rank_costs
from moe_placer.engines.plans.sglang import SERVER, parallel_flags
from moe_placer.errors import InputError, Mistake, UsageError
from moe_placer.files import read_bounded
from moe_placer.instance import Instance
from moe_placer.placement import Placement

__all__ = ["FORMATS", "RANK_COSTS", "CheckedFile", "Export", "check_file", "export_plan"]

RANK_COSTS = "rank-cost-matrix"
FORMATS = (*FORMS, RANK_COSTS)


@dataclass(frozen=True)
class Export:
    """An engine's file, and what its user must know.

    Attributes
    ----------
    content : bytes
        The file.
    engine : str
        Engine and version.
    start : Start
        How to start the engine with it.
    warnings : tuple of str
    deployment : Deployment
        Ranks and layers.
    plan : Plan or None
        None for a matrix of costs.
    """

    content: bytes
    engine: str
    start: Start
    warnings: tuple[str, ...]
    deployment: Deployment
    plan: Plan | None


@dataclass(frozen=True)
class CheckedFile:
    """A file that an engine can load.

    Attributes
    ----------
    engine : str
        Engine and version.
    plan : Plan or None
        None for a matrix of costs.
    ranks_known : bool
        False where nothing says which slots are on which rank.
    ranks : int
    raw : bytes
        The file as it is.
    warnings : tuple of str
    """

    engine: str
    plan: Plan | None
    ranks_known: bool
    ranks: int
    raw: bytes
    warnings: tuple[str, ...]


def export_plan(
    instance: Instance,
    placement: Placement | None,
    form: str,
    file: str | Path,
    mtp_layers: int = 0,
) -> Export:
    """Return a placement as an engine's file; nothing is written.

    Parameters
    ----------
    instance : Instance
    placement : Placement or None
        None only for a matrix of costs, which has no placement in it.
    form : str
        One of `FORMATS`.
    file : path
        Where the file will be, for the flags.
    mtp_layers : int
        Layers for multi-token prediction to add, where the engine takes them from the file.

    Raises
    ------
    UsageError
        The format does not go with the file's name, the placement's absence, or such layers.
    VerificationError
        The placement breaks a constraint of the instance.
    InputError
        The engine cannot load such a plan.
    """
    file = Path(file)
    if form == RANK_COSTS:
        if mtp_layers:
            raise UsageError(f"--mtp-layers has no meaning for {form}")
        return _export_costs(instance, file)
    if placement is None:
        raise UsageError(f"--format {form} needs a PLACEMENT")
    chosen = FORMS[form]
    if chosen.suffix and file.suffix != chosen.suffix:
        raise UsageError(f"{chosen.rules.label} reads only files whose names end in {chosen.suffix}: {file.name}")
    if mtp_layers and chosen.mtp:
        raise UsageError(f"--mtp-layers does not go with --format {form}: {chosen.mtp}")
    plan, deployment = plan_from_placement(instance, placement, chosen)
    return Export(
        content=chosen.encode(plan, deployment, mtp_layers),
        engine=chosen.reader,
        start=chosen.start(plan, deployment, file),
        warnings=(
            *chosen.warnings(plan, deployment),
            *_routing(chosen, plan, deployment),
            *_dispatch(chosen, deployment),
            *_repeats(plan),
        ),
        deployment=deployment,
        plan=plan,
    )


def _export_costs(instance: Instance, file: Path) -> Export:
    deployment = read_deployment(instance)
    topology = f"--eplb-topology {shlex.quote(str(file.resolve()))}"
    flags = (*parallel_flags(deployment), "--enable-eplb", "--eplb-algorithm topology_aware", topology)
    return Export(
        content=encode_rank_costs(rank_costs(instance)),
        engine="SGLang with pull request #37923 (open)",
        start=Start(SERVER, flags),
        warnings=WARNINGS,
        deployment=deployment,
        plan=None,
    )


def _routing(form: PlanForm, plan: Plan, deployment: Deployment) -> Sequence[str]:
    """Say where the engine picks replicas by another rule than the plan was made for."""
    rules = form.rules
    if rules.follows(deployment.replica_routing) or plan.slots_by_layer == (plan.experts,) * plan.layers:
        return ()
    rule = form.rules.routing_rule
    counted = f": `moe-placer evaluate --routing {rule}` counts them" if rule else ""
    return (
        f"The plan was made for replica_routing: {deployment.replica_routing}. {form.rules.label} picks a replica "
        f"otherwise ({form.rules.replica_rule}), so that loads of links and GPUs will differ from the plan's{counted}.",
    )


def _dispatch(form: PlanForm, deployment: Deployment) -> Sequence[str]:
    """Say which of the engine's kernels send tokens as the plan counts them."""
    units, planned = form.rules.dispatch, deployment.dispatch
    if not units:
        return ()
    same = " or ".join(kernel for kernel, unit in units.items() if unit == planned)
    others = ", ".join(f"{kernel} {unit}" for kernel, unit in units.items() if unit != planned)
    sends = f"as {same} sends them" if same else f"as no kernel of {form.rules.title} sends them"
    return (
        f"The plan counts tokens {planned}, {sends} (others: {others}; `moe-placer evaluate --dispatch` counts such).",
    )


def _repeats(plan: Plan) -> Sequence[str]:
    repeats = sum(1 for _ in plan.duplicates())
    if not repeats:
        return ()
    return (f"{repeats:,} slots repeat an expert of their own rank: they take memory and spread no load.",)


def check_file(form: str, file: str | Path, instance: Instance | None = None) -> CheckedFile:
    """Check a file that an engine is to load, whoever made it.

    Parameters
    ----------
    form : str
        One of `FORMATS`.
    file : path
    instance : Instance, optional
        What the plan should fit; without it, layers, ranks and the number of experts go unchecked where the file does
        not state them.

    Raises
    ------
    InputError
        The engine would refuse the file, or serve wrong answers; every kind of fault once.
    """
    file = Path(file)
    raw = read_bounded(file, MAX_BYTES, f"a plan file of format {form}")
    deployment = None if instance is None else read_deployment(instance)
    if form == RANK_COSTS:
        costs = check_rank_costs(raw, deployment, file)
        return CheckedFile("SGLang with pull request #37923 (open)", None, True, len(costs), raw, WARNINGS)
    chosen = FORMS[form]
    try:
        plan = chosen.decode(raw, deployment, file)
    except InputError as error:
        raise InputError([_by_engine(mistake, chosen) for mistake in error.mistakes]) from None
    known = deployment is not None or plan.ranks > 1
    warnings = list(_repeats(plan)) if known else []
    if chosen.suffix and file.suffix not in {chosen.suffix, *chosen.also_read}:
        warnings.append(f"{chosen.rules.label} reads only files whose names end in {chosen.suffix}.")
    return CheckedFile(chosen.reader, plan, known, plan.ranks, raw, tuple(warnings))


def _by_engine(mistake: Mistake, form: PlanForm) -> Mistake:
    """Name the engine where a message does not yet."""
    if form.rules.title in mistake.expected:
        return mistake
    return replace(mistake, expected=f"{mistake.expected}: {form.reader} reads nothing else")
