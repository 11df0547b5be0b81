"""Puts the checks of written DAGs together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moe_placer.errors import InputError
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic import load_traffic
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier.dags.agreement import (
    check_communication,
    check_experts,
    check_gpus,
    check_layers,
    check_traffic,
)
from moe_placer.verifier.dags.arithmetic import check_arithmetic
from moe_placer.verifier.dags.dag_rules import DagViolation
from moe_placer.verifier.dags.keys import check_groups, check_keys, check_steps
from moe_placer.verifier.dags.operators import check_operator_dag, operator_dags
from moe_placer.verifier.dags.read_back import DagFile, compare_twins, find_dags, read_dag
from moe_placer.verifier.dags.structure import check_acyclic, check_connected, check_shapes
from moe_placer.verifier.dags.travel import check_hot, check_travel
from moe_placer.verifier.deployment import Deployment
from moe_placer.verifier.sending import find_dispatch_mistakes

__all__ = ["DagCheck", "verify_dags"]


@dataclass(frozen=True)
class DagCheck:
    """What was read of one DAG, and what is wrong with it.

    Attributes
    ----------
    name : str
        Of its files, without suffix.
    operations, edges : int
        Well-formed ones that were checked.
    violations : tuple of DagViolation
        Empty for a good one.
    """

    name: str
    operations: int
    edges: int
    violations: tuple[DagViolation, ...]


def verify_dags(
    instance: Instance, placement: Placement, folder: Path, traffic: Traffic | None = None
) -> tuple[DagCheck, ...]:
    """Read every DAG of a folder back, .dot and .json, and check it against a placement that `verify` found good.

    Parameters
    ----------
    instance : Instance
    placement : Placement
    folder : Path
        Where ``*_dag.json`` and ``*_dag.dot`` are, and ``*_operators.json`` and ``.dot``; no DAG there is no mistake.
    traffic : Traffic, optional
        Absent: what the instance names.

    Raises
    ------
    InputError
        A file is no DAG that ``moe-placer dag`` could have written, or one of .dot and .json is missing; or the
        traffic does not say which experts tokens choose together, and dispatch depends on it.
    """
    names, of_operators = find_dags(folder), operator_dags(folder)
    if not names and not of_operators:
        return ()
    deployment = Deployment(instance, placement, traffic if traffic is not None else load_traffic(instance))
    if mistakes := find_dispatch_mistakes(instance, deployment.traffic):
        raise InputError(mistakes)
    checks = [_check(folder / name, deployment) for name in names]
    for name in of_operators:
        dag, wrong = check_operator_dag(folder / name, deployment, _rules)
        checks.append(DagCheck(dag.name, len(dag.operations), len(dag.edges), tuple(wrong)))
    return tuple(checks)


def _check(stem: Path, deployment: Deployment) -> DagCheck:
    dag = read_dag(stem.with_name(f"{stem.name}.json"))
    wrong = list(dag.wrong)
    wrong += compare_twins(dag, stem.with_name(f"{stem.name}.dot"))
    # Where rows are missing, everything else would be told as a consequence.
    if not any(violation.rule == "dag-form" for violation in dag.wrong):
        wrong += _rules(dag, deployment)
    return DagCheck(dag.name, len(dag.operations), len(dag.edges), tuple(wrong))


def _rules(dag: DagFile, deployment: Deployment) -> list[DagViolation]:
    instance = deployment.instance
    return [
        *check_acyclic(dag),
        *check_connected(dag),
        *check_shapes(dag, instance),
        *check_arithmetic(dag, instance),
        *check_keys(dag, deployment),
        *check_layers(dag, deployment),
        *check_steps(dag),
        *check_gpus(dag, deployment),
        *check_groups(dag, deployment),
        *check_communication(dag, deployment),
        *check_travel(dag, deployment),
        *check_experts(dag, deployment),
        *check_traffic(dag, deployment),
        *check_hot(dag, deployment),
    ]
