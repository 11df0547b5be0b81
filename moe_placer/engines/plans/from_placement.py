"""From a placement to the slots of an engine, once its constraints and the engine's rules are seen to hold."""

from __future__ import annotations

from collections.abc import Iterator

from moe_placer.engines.layouts import EngineRules, slots_mistake
from moe_placer.engines.plans.form import PlanForm
from moe_placer.engines.plans.plan import Deployment, Plan, plan_of, read_deployment
from moe_placer.errors import InputError, Mistake, VerificationError
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.verifier import rules as constraints
from moe_placer.verifier.verification import Violation

__all__ = ["plan_from_placement"]


def plan_from_placement(instance: Instance, placement: Placement, form: PlanForm) -> tuple[Plan, Deployment]:
    """Return a placement as the engine's slots; on every rank experts are in ascending order.

    Parameters
    ----------
    instance : Instance
        What the placement was made for.
    placement : Placement
        Its constraints are checked here; its figures are not (`moe_placer.verify` does), since engines do not see them.
    form : PlanForm
        Whose engine's rules the plan must keep.

    Raises
    ------
    VerificationError
        The placement breaks a constraint, or is for another instance.
    InputError
        The engine cannot load such a plan; every rule that stands against it is named.
    """
    violations = list(_violations(instance, placement))
    if violations:
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        message = f"the placement is not exported, since it breaks a rule: {violations[0]}{more}"
        raise VerificationError(message, [violation.rule for violation in violations])
    deployment = read_deployment(instance)
    plan = plan_of(placement, deployment)
    mistakes = list(_against(plan, deployment, form.rules))
    if mistakes:
        raise InputError(mistakes)
    return plan, deployment


def _violations(instance: Instance, placement: Placement) -> Iterator[Violation]:
    if placement.instance.sha256 != instance.sha256:
        yield Violation("instance", f"it was made for {placement.instance.name[:200]!r}, or for other content of it")
    replicas = constraints.read_replicas(instance, placement)
    broken = [*constraints.check_counts(instance, placement), *constraints.check_places(instance, replicas)]
    yield from broken
    if not broken:
        yield from constraints.check_slots(instance, replicas)
        yield from constraints.check_memory(instance, constraints.gpu_memory(instance, replicas))
        yield from constraints.check_apart(instance, replicas)
        yield from constraints.check_failed(instance, replicas)
        yield from constraints.check_pinned(instance, replicas)


def _against(plan: Plan, deployment: Deployment, rules: EngineRules) -> Iterator[Mistake]:
    """Say which of an engine's rules a plan breaks."""
    counts = plan.slots_by_layer
    different = next((layer for layer, count in enumerate(counts) if count != counts[0]), None)
    if rules.one_count and different is not None:
        first, other = deployment.moe_layers[0], deployment.moe_layers[different]
        found = f"{counts[0]} slots in layer {first}, {counts[different]} in layer {other}"
        expected = f"as many in every layer ({rules.label} has one {rules.slots_word}): use redundant_slots"
        yield Mistake(found, expected, "placement.replicas")
        return
    uneven = slots_mistake(rules, plan.experts, counts[0], plan.ranks)
    if uneven:
        yield Mistake(*uneven, "placement.replicas")
        return
    if rules.equal_slots:
        yield from _check_even(plan, deployment, rules)
    if not rules.twice_on_a_gpu:
        for layer, rank, expert in plan.duplicates():
            found = f"expert {expert} twice on GPU {deployment.gpu_of(rank)} in layer {deployment.moe_layers[layer]}"
            yield Mistake(found, f"at most one replica on a GPU: {rules.label} would serve wrong experts", "gpu")
            return


def _check_even(plan: Plan, deployment: Deployment, rules: EngineRules) -> Iterator[Mistake]:
    each = plan.slots_by_layer[0] // plan.ranks
    for layer, ranks in enumerate(plan.slots):
        for rank, held in enumerate(ranks):
            if len(held) != each:
                found = f"{len(held)} experts on GPU {deployment.gpu_of(rank)} in layer {deployment.moe_layers[layer]}"
                expected = (
                    f"{each} on every GPU ({rules.label} gives all as many slots): set placement.slots_per_gpu to "
                    f"{each} and solve again"
                )
                yield Mistake(found, expected, "gpu")
                return
