"""Links that load by GPU: the NICs of GPUs that receive what other nodes send to the experts on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.fabric import Receivers
from moe_placer.problem.coverage import Coverage, Sending

__all__ = ["delta_by_gpu", "with_arrivals"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def with_arrivals(
    nics: Receivers,
    token: float,
    node: Ints,
    named: tuple[tuple[str, ...], tuple[int, ...], Floats],
    tables: tuple[Ints, Floats, Floats],
    coverage: tuple[Coverage, ...],
) -> dict[str, Any]:
    """Add NICs as further links to a problem whose nodes are GPUs.

    Parameters
    ----------
    nics : Receivers
    token : float
        Cost of one token on a NIC.
    node : int array [GPUs]
        Node of each GPU.
    named : tuple
        ``links``, ``multiplicity`` and ``token_cost`` of the problem.
    tables : tuple of array
        ``affected``, ``_reference`` and ``_change`` of the problem.
    coverage : tuple of Coverage
        Of the problem; may be empty.

    Returns
    -------
    dict
        All of these by name, and ``home``.
    """
    affected, reference, change = tables
    links, groups = len(reference), len(nics.links)
    # What a node sends to itself arrives at no NIC; [GPUs that receive, GPUs that send].
    costs = np.where(node[:, None] != node[None, :], token / nics.alike, 0.0)
    others = np.where(affected == links, links + groups, affected)  # what stands for no link is the last one
    names, multiplicity, token_cost = named
    return {
        "links": (*names, *nics.links),
        "multiplicity": (*multiplicity, *(nics.alike,) * groups),
        "token_cost": np.append(token_cost, np.full(groups, token)),
        "affected": np.hstack([others, links + nics.group[:, None]]),
        "_reference": np.vstack([reference, np.zeros((groups, len(node)))]),
        "_change": np.concatenate([change, costs[:, None, :]], axis=1),
        "coverage": tuple(replace(c, sending=_with_nics(c.sending, nics.group, costs)) for c in coverage),
        "home": node,
    }


def delta_by_gpu(of_nodes: Floats, tokens: Floats, arrival: Floats) -> Floats:
    """Return what items on GPUs add to links, the NIC of the GPU last, given what they add on nodes.

    Parameters
    ----------
    of_nodes : float array [items, nodes, M]
    tokens : float array [nodes, items]
        From each node to each item.
    arrival : float array [GPUs that receive, GPUs that send]
        Cost of a token on the NIC of the GPU that receives it.
    """
    size = len(arrival) // len(tokens)
    away = np.maximum(0.0, tokens.sum(axis=0)[:, None] - tokens.T)  # [items, nodes]
    on_nic = np.repeat(away, size, axis=1) * arrival.max(axis=1, initial=0.0)
    return np.concatenate([np.repeat(of_nodes, size, axis=1), on_nic[:, :, None]], axis=2)


def _with_nics(sending: Sending, group: Ints, costs: Floats) -> Sending:
    """Add a link for every group of GPUs: what arrives at any of them."""
    target, source = np.nonzero(costs)
    at = (group[target], source * len(group) + target)
    rows = sparse.csr_array((costs[target, source], at), shape=(int(group.max()) + 1, len(group) ** 2))
    return replace(sending, shares=sparse.csr_array(sparse.vstack([sending.shares, rows])))
