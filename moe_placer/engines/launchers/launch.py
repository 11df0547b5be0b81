"""Writes which host runs which rank, so that GPU g of a plan is rank g."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_placer.engines.plans.plan import Deployment
from moe_placer.errors import UsageError

__all__ = ["LAUNCHERS", "Launch", "plan_launch"]

LAUNCHERS = ("slurm", "mpi", "kubernetes")

# Engines that start one process for each node, and number ranks from its node rank; the others get one for each GPU.
_BY_NODE = {"sglang", "vllm", "vllm-ascend", "omni"}


@dataclass(frozen=True)
class Launch:
    """A launcher's file.

    Attributes
    ----------
    ending : str
        Of the file's name.
    content : str
    usage : tuple of str
        How it is used, with ``{file}`` where its name belongs.
    """

    ending: str
    content: str
    usage: tuple[str, ...]

    def usage_of(self, file: Path) -> list[str]:
        """Return how it is used, once it has a name."""
        return [line.replace("{file}", shlex.quote(str(file.resolve()))) for line in self.usage]


def plan_launch(
    launcher: str, deployment: Deployment, hosts: Sequence[str], engine: str, cores_per_node: int | None = None
) -> Launch:
    """Return the file that puts ranks on hosts in the plan's order.

    Parameters
    ----------
    launcher : str
        One of `LAUNCHERS`.
    deployment : Deployment
    hosts : sequence of str
        The i-th runs node i of the plan; those of failed nodes are left out.
    engine : str
        Key of `ENGINES`: whether it starts a process for each node or for each GPU.
    cores_per_node : int, optional
        For ``mpi``, whose rankfile gives every process its cores.

    Raises
    ------
    UsageError
        ``mpi`` without cores, or with too few.
    """
    working = [hosts[node] for node in deployment.nodes]
    each = 1 if engine in _BY_NODE else deployment.gpus_per_node
    if launcher == "slurm":
        return _slurm(working, each)
    if launcher == "mpi":
        return _mpi(working, each, cores_per_node)
    return _kubernetes(working, deployment)


def _slurm(hosts: Sequence[str], each: int) -> Launch:
    """Slurm's arbitrary distribution: task i runs on the host of line i."""
    lines = [host for host in hosts for _ in range(each)]
    rank = "Task i is node i of the plan: NODE_RANK=$SLURM_PROCID." if each == 1 else "Task i is rank i of the plan."
    usage = (
        f"SLURM_HOSTFILE={{file}} srun --nodes={len(hosts)} --ntasks={len(lines)} --distribution=arbitrary "
        f"--nodelist={','.join(hosts)} ...",
        rank,
    )
    return Launch("hostfile", "".join(f"{host}\n" for host in lines), usage)


def _mpi(hosts: Sequence[str], each: int, cores: int | None) -> Launch:
    """Open MPI's rankfile, which also binds every process to cores."""
    if cores is None or cores < each:
        least = f"at least {each}" if each > 1 else "1 or more"
        raise UsageError(f"--launcher mpi needs --cores-per-node ({least}): a rankfile binds every process to cores")
    share = cores // each
    lines = []
    for node, host in enumerate(hosts):
        for local in range(each):
            first, last = local * share, (local + 1) * share - 1
            slots = str(first) if first == last else f"{first}-{last}"
            lines.append(f"rank {node * each + local}={host} slot={slots}\n")
    names = ",".join(f"{host}:{each}" for host in hosts)
    usage = [f"mpirun -n {len(lines)} --host {names} --map-by rankfile:file={{file}} ..."]
    if each == 1:
        usage.append("Process i is node i of the plan: NODE_RANK=$OMPI_COMM_WORLD_RANK.")
    return Launch("rankfile", "".join(lines), tuple(usage))


def _kubernetes(hosts: Sequence[str], deployment: Deployment) -> Launch:
    """Labels for nodes, and a ConfigMap from which a pod reads the rank of the node that it is on."""
    name = "moe-placer-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in deployment.name.lower()).strip(
        "-"
    )
    name = name[:60].strip("-")
    documents: list[Mapping[str, object]] = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": host, "labels": {"moe-placer/plan": name, "moe-placer/node-rank": str(rank)}},
        }
        for rank, host in enumerate(hosts)
    ]
    ranks = {host: str(rank) for rank, host in enumerate(hosts)}
    documents.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": ranks})
    # JSON is YAML, and quotes what YAML would take for a number.
    content = "".join(f"---\n{json.dumps(document, indent=1)}\n" for document in documents)
    usage = (
        "kubectl apply --server-side -f {file}",
        f"LeaderWorkerSet: size {len(hosts)}, {deployment.gpus_per_node} GPUs for each pod.",
        f'leaderTemplate: nodeSelector {{moe-placer/plan: {name}, moe-placer/node-rank: "0"}}.',
        f"workerTemplate: nodeSelector {{moe-placer/plan: {name}}}.",
        f"In both: NODE_NAME from spec.nodeName, ConfigMap {name} mounted at /etc/moe-placer, and "
        "NODE_RANK=$(cat /etc/moe-placer/$NODE_NAME).",
    )
    return Launch("kubernetes.yaml", content, usage)
