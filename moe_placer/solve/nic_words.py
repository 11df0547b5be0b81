"""Lines and JSON about NICs: floors that no placement can beat, where they bind, and what redundant slots change."""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_placer.bounds.nic_floors import NicFloors, nic_floors
from moe_placer.errors import InfeasibleError
from moe_placer.fabric import nics_among
from moe_placer.instance import Instance
from moe_placer.problem.compile import compile_problem
from moe_placer.traffic import Traffic
from moe_placer.verifier import Verification

__all__ = ["busiest_nics", "floors_of", "nic_facts", "nic_lines"]


def floors_of(instance: Instance, traffic: Traffic | None) -> NicFloors | None:
    """Work out the floors where NICs receive for single GPUs, and the traffic is known."""
    if traffic is None or not instance.cluster.receives_by_gpu:
        return None
    try:
        return nic_floors(compile_problem(instance, traffic))
    except InfeasibleError:
        return None  # which is said elsewhere


def nic_facts(instance: Instance, floors: NicFloors | None) -> dict[str, Any] | None:
    """Return the figures for JSON; None where a node's NICs are one pipe without further figures."""
    nics = instance.cluster.nics
    if nics is None:
        return None
    facts: dict[str, Any] = {"per_node": nics.per_node, "gb_per_s": nics.gb_per_s, "receive": nics.receive}
    facts["floors"] = None
    if floors is not None:
        facts["floors"] = {
            "hottest_replica": floors.hottest.tolist(),
            "sending": floors.sending.tolist(),
            "binding_layers": floors.binding,
            "redundant_slots_needed": [int(one) if np.isfinite(one) else None for one in floors.redundant_slots],
        }
    return facts


def nic_lines(instance: Instance, floors: NicFloors | None) -> list[str]:
    """Say which NIC receives, what no placement can take off it, where that binds, and what slots change."""
    nics = instance.cluster.nics
    if nics is None:
        return []
    has = f"NICs: {nics.per_node} of {nics.gb_per_s:g} GB/s on each node"
    if nics.receive == "shared":
        return [f"{has}, one pipe."]
    if nics.receive == "source-rail":
        return [
            f"{has}; a copy arrives on its source's rail, so every NIC has an equal share, as busy as its node's link."
        ]
    lines = [f"{has}; a copy arrives at the NIC of its expert's GPU."]
    if floors is None:
        return lines
    hottest, sending = float(np.median(floors.hottest)), float(np.median(floors.sending))
    lines.append(
        f"NIC floors: the hottest replica costs its NIC at least {hottest:,.0f} in the median layer "
        f"({floors.hottest.max():,.0f} at most), whatever the placement. {_bind(floors, sending)}"
    )
    return lines


def _bind(floors: NicFloors, sending: float) -> str:
    if not sending:
        return "What starts on a node depends on which experts share a GPU."
    layers, needed = len(floors.hottest), floors.redundant_slots
    starts = f"What starts on a node costs its link, and each of its NICs, at least {sending:,.0f}"
    if not np.isfinite(needed).all():
        return f"{starts}; the former binds in {floors.binding} of {layers} layers."
    slots = f"{np.median(needed):,.0f} redundant slots (median layer; {needed.max():,.0f} at most)"
    return f"{starts}; the hottest replica binds in {floors.binding} of {layers} layers, and with {slots} in none."


def busiest_nics(found: Verification) -> str | None:
    """Say what the busiest NICs and the busiest other links of a placement cost; None where no NIC is a link."""
    nic = nics_among(found.links)
    if not nic.any():
        return None
    nics, others = found.cost[:, nic].max(axis=1), found.cost[:, ~nic].max(axis=1, initial=0.0)
    worse = int((nics > others * (1 + 1e-9)).sum())
    return (
        f"Busiest NICs: a cost of {nics.sum():,.0f} over all layers, the busiest other links {others.sum():,.0f}; "
        f"a NIC is the busiest link of {worse} of {len(nics)} layers."
    )
