"""Says why layers stay above their bounds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.fabric import link_words
from moe_placer.instance import Instance
from moe_placer.problem.compile import compile_problem
from moe_placer.result import OPTIMAL_GAP, Stop
from moe_placer.solve.solve import Solution
from moe_placer.verifier.loads import read_network

__all__ = ["shares_of_worst_link", "why_above_bound"]

Floats = npt.NDArray[np.float64]


def why_above_bound(instance: Instance, solution: Solution) -> str | None:
    """Say how many layers stay above the gap, and how many replicas load the busiest link of the furthest of them.

    The bound lets replicas be divided over nodes. Where a link carries few of them, a placement cannot come as close,
    however long one searches. Where a token goes once to a node, the bound knows its experts' best companions instead.
    None where every layer is within the gap, or has no bound to speak of.
    """
    asked = float(str(solution.placement.solver.parameters["gap"]))
    above = np.isfinite(solution.gaps) & (solution.gaps > max(asked, OPTIMAL_GAP))
    if not above.any():
        return None
    settled = int((solution.solver_gaps[above] <= max(asked, OPTIMAL_GAP)).sum())
    index = int(np.where(above, solution.gaps, -1.0).argmax())
    check = solution.verification.layers[index]
    lines = [f"{above.sum()} of {len(above)} layers above the gap of {asked:.2%} that was asked for"]
    if settled:
        lines.append(f" (for {settled}, by the solver's word, nothing better exists)")
    lines.append(f"; furthest is layer {check.layer}, {solution.gaps[index]:.2%} above its bound. ")
    if instance.objective.take == "mean":  # of which no single link is to blame
        return "".join(lines).rstrip()
    carries = link_words(check.worst_link_tokens, check.worst_link_us, check.z)
    lines.append(f"Its busiest link, {check.worst_link}, carries {carries}")
    if instance.placement.dispatch == "per-expert":
        lines.append(_to_which(shares_of_worst_link(instance, solution, index)))
    else:
        lines.append("; the bound may give every expert its best companions, a placement cannot.")
    if solution.stop[index] in {Stop.TIME, Stop.WORK}:
        lines.append(f" A larger {'--time-limit' if solution.stop[index] is Stop.TIME else '--work'} may find more.")
    return "".join(lines)


def _to_which(shares: Floats) -> str:
    if len(shares) == 1:
        return " to 1 expert replica, which the bound may divide over nodes and a placement cannot."
    most = f"{shares.min():.1%} to {shares.max():.1%} of them to each"
    return f" to {len(shares)} expert replicas, {most}; the bound may divide replicas over nodes, a placement cannot."


def shares_of_worst_link(instance: Instance, solution: Solution, index: int) -> Floats:
    """Return each expert replica's share of the tokens on the busiest link of a MoE layer; only shares above 0.

    ``c[i, n, k] / cost[k]`` of docs/bounds.md, for the n of the placement and the k of the busiest link.
    """
    rows = solution.placement.gpu[index]
    replicas = np.array([len(row) for row in rows])
    problem = compile_problem(instance, solution.traffic)
    link, _, scenario = solution.verification.layers[index].worst_link.partition("@")
    problem = problem.scenarios[int(scenario)] if scenario else problem.by_node or problem
    expert, replica = problem.items(index, replicas)
    first = [solution.placement.shards(index, e)[r][0] for e, r in zip(expert.tolist(), replica.tolist(), strict=True)]
    network = read_network(instance).whole
    size = instance.gpus // len(network.home)  # GPUs of a place
    on_way = network.link == network.links.index(link)
    crossing = np.zeros((instance.cluster.nodes, len(network.home)))  # [source, destination]
    crossing[network.source[on_way], network.target[on_way]] = network.share[on_way]
    tokens = (problem.item_demand(index, expert, replica) * crossing[:, np.array(first) // size]).sum(axis=0)
    return np.asarray(tokens[tokens > 0] / tokens.sum())
