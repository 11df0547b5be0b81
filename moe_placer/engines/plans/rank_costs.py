"""What it costs to send from rank to rank: the topology file of SGLang's open pull request #37923."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.engines.plans.checks import refuse
from moe_placer.engines.plans.plan import Deployment, read_deployment
from moe_placer.fabric import routes_between
from moe_placer.files import parse_json
from moe_placer.instance import Instance

__all__ = ["WARNINGS", "check_rank_costs", "encode_rank_costs", "rank_costs"]

_KEY = "rank_cost_matrix"
_EXPECTED = f'a JSON object {{"{_KEY}": [[cost from rank to rank]]}}'

WARNINGS = (
    "Pull request #37923 is open: SGLang 0.5.23 does not know --eplb-topology.",
    "It refuses redundant experts, so that SGLang plans for as many slots as there are experts.",
)


def rank_costs(instance: Instance) -> npt.NDArray[np.float64]:
    """Return how many times longer than over NVLink a rank's traffic to another rank keeps links busy.

    A link on the way counts with the share of the traffic that crosses it, times how long one GB from every GPU, spread
    evenly over the other nodes, keeps it busy. So a link that many GPUs share costs more than one of their own.

    Returns
    -------
    float array [ranks, ranks]
        0 on the diagonal, 1 within a node, or where NVLink joins two.

    Raises
    ------
    InputError
        Engines cannot number this instance's GPUs.
    """
    deployment = read_deployment(instance)
    nodes, per_node = instance.cluster.nodes, deployment.gpus_per_node
    routes = routes_between(instance)
    even = np.asarray(routes.shares.sum(axis=1)).ravel() * per_node / max(1, nodes - 1)
    busy = even / routes.bandwidth * instance.cluster.nvlink_gb_per_s
    between = (routes.shares.T @ busy).reshape(nodes, nodes)
    between[routes.hops == 0] = 1.0  # by NVLink
    working = list(deployment.nodes)
    costs = np.kron(between[np.ix_(working, working)], np.ones((per_node, per_node)))
    np.fill_diagonal(costs, 0.0)
    return costs


def encode_rank_costs(costs: npt.NDArray[np.float64]) -> bytes:
    """Return the file's bytes."""
    rows = (json.dumps([round(cost, 6) for cost in row]) for row in costs.tolist())
    return ('{"' + _KEY + '": [\n' + ",\n".join(rows) + "\n]}\n").encode()


def check_rank_costs(raw: bytes, deployment: Deployment | None, file: Path) -> npt.NDArray[np.float64]:
    """Return the costs [ranks, ranks] in a file.

    Raises
    ------
    InputError
        It is not a square of finite numbers of 0 and more with a diagonal of 0, or not of the deployment's ranks.
    """
    content = parse_json(raw, _EXPECTED, file)
    if not isinstance(content, dict) or set(content) != {_KEY}:
        raise refuse("other content", f"{_EXPECTED}, no other key", "", file)
    rows = content[_KEY]
    ranks = deployment.ranks if deployment else (len(rows) if isinstance(rows, list) else 0)
    if not isinstance(rows, list) or len(rows) != ranks or not rows:
        found = f"{len(rows)} rows" if isinstance(rows, list) else "no list of rows"
        raise refuse(found, f"{ranks or 'some'}, one for every rank", _KEY, file)
    for index, row in enumerate(rows):
        _check_row(row, index, ranks, file)
    return np.array(rows, dtype=np.float64)


def _check_row(row: Any, index: int, ranks: int, file: Path) -> None:
    path = f"{_KEY}[{index}]"
    if not isinstance(row, list) or len(row) != ranks:
        found = f"{len(row)} costs" if isinstance(row, list) else "no list of costs"
        raise refuse(found, f"{ranks}, one for every rank", path, file)
    for at, cost in enumerate(row):
        number = isinstance(cost, int | float) and not isinstance(cost, bool)
        if not number or not math.isfinite(cost) or cost < 0:
            raise refuse(str(cost)[:40], "a finite number of 0 or more", f"{path}[{at}]", file)
    if row[index] != 0:
        raise refuse(str(row[index])[:40], "0: a rank reaches itself for nothing", f"{path}[{index}]", file)
