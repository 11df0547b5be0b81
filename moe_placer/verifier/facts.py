"""What a placement file says beside its placement, for readers: true, false, or not checked, and then named as such."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_placer.instance import Instance
from moe_placer.instance.schema import Dragonfly, SharedSlots
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier.loads import Network
from moe_placer.verifier.proofs import replicas_are_free
from moe_placer.verifier.verification import Violation

__all__ = ["Facts", "check_facts"]

ROUNDING = 1e-9  # relative


@dataclass(frozen=True)
class Facts:
    """The facts of a placement file: which were checked and found true, and which cannot be checked.

    Attributes
    ----------
    checked, not_checked : tuple of str
        Names such as ``fabric.links``.
    violations : tuple of Violation
        What is not so.
    """

    checked: tuple[str, ...]
    not_checked: tuple[str, ...]
    violations: tuple[Violation, ...]


def check_facts(instance: Instance, traffic: Traffic, network: Network, placement: Placement) -> Facts:
    """Rule ``facts``: what is said of traffic, fabric and replicas is so; how it was solved cannot be checked.

    Parameters
    ----------
    instance : Instance
    traffic : Traffic
        Routing statistics of the instance's sources.
    network : Network
        Links, routes and bandwidths, as the verifier reads them.
    placement : Placement
    """
    checked: list[str] = []
    not_checked = ["solver", *(["versions"] if placement.versions else [])]
    violations = []
    known = {
        "traffic": _traffic_facts(instance, traffic),
        "fabric": _fabric_facts(instance, network),
        "replicas": _replica_facts(instance, placement),
    }
    for block, expected in known.items():
        for key, value in getattr(placement, block).items():
            name = f"{block}.{str(key)[:60]}"
            if key not in expected:
                not_checked.append(name)
            elif _alike(_without_names(value) if key == "recordings" else value, expected[key]):
                checked.append(name)
            else:
                message = f"says {name}: {_short(value)}, required is {_short(expected[key])}"
                violations.append(Violation("facts", message))
            if key == "recordings":
                not_checked.append(f"{name}.name")
    return Facts(tuple(checked), tuple(not_checked), tuple(violations))


def _traffic_facts(instance: Instance, traffic: Traffic) -> dict[str, Any]:
    return {
        "kind": instance.traffic.kind,
        "tokens_per_gpu": instance.traffic.tokens_per_gpu,
        "recordings": [{"tokens": float(recording.tokens.max())} for recording in traffic.recordings],
        "mix": traffic.mix.tolist(),
    }


def _without_names(recordings: Any) -> Any:
    """Leave out names: files may be renamed, the traffic's hash says whether they are the same."""
    if not isinstance(recordings, list):
        return recordings
    return [{k: v for k, v in one.items() if k != "name"} if isinstance(one, dict) else one for one in recordings]


def _fabric_facts(instance: Instance, network: Network) -> dict[str, Any]:
    fabric = instance.cluster.fabric
    kinds: dict[str, dict[str, float]] = {}
    for name, bandwidth in zip(network.links, network.bandwidth.tolist(), strict=True):
        entry = kinds.setdefault(_kind(instance, name), {"links": 0, "gb_per_s": bandwidth})
        entry["links"] += 1
    return {
        "kind": fabric.kind,
        "node_gb_per_s": fabric.node_gb_per_s,
        "metric": instance.objective.metric,
        "links": kinds,
    }


def _kind(instance: Instance, link: str) -> str:
    """Name a link's kind: its ends without their numbers; between routers, whether they are of one group."""
    kind, fabric = re.sub(r"\d+", "", link), instance.cluster.fabric
    if kind != "router->router" or not isinstance(fabric, Dragonfly):
        return kind
    first, last = (int(number) // fabric.routers_per_group for number in re.findall(r"\d+", link))
    return f"{kind} ({'local' if first == last else 'global'})"


def _replica_facts(instance: Instance, placement: Placement) -> dict[str, Any]:
    """Return what can be said of the replicas without knowing who chose them."""
    each, budget = [sum(map(len, row)) for row in placement.gpu], instance.placement.replicas
    facts: dict[str, Any] = {"per_layer": each[0] if each and each == each[:1] * len(each) else each}
    if isinstance(budget, SharedSlots):
        facts["redundant_slots_in_all"] = budget.redundant_slots_in_all
        facts["redundant_in_all"] = sum(len(replicas) - 1 for row in placement.gpu for replicas in row)
    if budget == "dp":
        facts["copies"] = "given by the instance"
    covers = not replicas_are_free(instance) or all(record.any_copies for record in placement.layers)
    return facts | {"bound_covers_choice_of_copies": covers}


def _alike(stated: Any, expected: Any) -> bool:
    """Compare what JSON can say, numbers up to rounding."""
    if isinstance(expected, bool) or isinstance(stated, bool):
        return stated is expected
    if isinstance(expected, int | float):
        return isinstance(stated, int | float) and math.isclose(stated, expected, rel_tol=ROUNDING)
    if isinstance(expected, Mapping):
        same = isinstance(stated, Mapping) and stated.keys() == expected.keys()
        return same and all(_alike(stated[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        same = isinstance(stated, list | tuple) and len(stated) == len(expected)
        return same and all(map(_alike, stated, expected))
    return bool(stated == expected)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
