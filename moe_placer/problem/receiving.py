"""Links that load by GPU: the NICs of GPUs that receive what other nodes send to the experts on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.fabric import Receivers
from moe_placer.problem.coverage import Coverage, Sending

__all__ = ["with_arrivals"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def with_arrivals(
    nics: Receivers, token: float, node: Ints, tables: tuple[Ints, Floats, Floats], coverage: tuple[Coverage, ...]
) -> dict[str, Any]:
    """Add NICs as further links to a problem whose nodes are GPUs.

    Parameters
    ----------
    nics : Receivers
    token : float
        Cost of one token on a NIC.
    node : int array [GPUs]
        Node of each GPU.
    tables : tuple of array
        ``affected``, ``_reference`` and ``_change`` of the problem.
    coverage : tuple of Coverage
        Of the problem; may be empty.

    Returns
    -------
    dict
        These four by name, and ``home``.
    """
    affected, reference, change = tables
    links, groups = len(reference), len(nics.links)
    # What a node sends to itself arrives at no NIC; [GPUs that receive, GPUs that send].
    costs = np.where(node[:, None] != node[None, :], token / nics.alike, 0.0)
    others = np.where(affected == links, links + groups, affected)  # what stands for no link is the last one
    return {
        "affected": np.hstack([others, links + nics.group[:, None]]),
        "_reference": np.vstack([reference, np.zeros((groups, len(node)))]),
        "_change": np.concatenate([change, costs[:, None, :]], axis=1),
        "coverage": tuple(replace(c, sending=_with_nics(c.sending, nics.group, costs)) for c in coverage),
        "home": node,
    }


def _with_nics(sending: Sending, group: Ints, costs: Floats) -> Sending:
    """Add a link for every group of GPUs: what arrives at any of them."""
    target, source = np.nonzero(costs)
    at = (group[target], source * len(group) + target)
    rows = sparse.csr_array((costs[target, source], at), shape=(int(group.max()) + 1, len(group) ** 2))
    return replace(sending, shares=sparse.csr_array(sparse.vstack([sending.shares, rows])))
