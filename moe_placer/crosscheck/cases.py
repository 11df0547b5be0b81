"""The all-to-alls that are compared: placements of an instance, some of its layers, messages of several sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.compare.metrics import find_flows
from moe_placer.crosscheck.models import MODELS
from moe_placer.crosscheck.simulate import simulate
from moe_placer.fabric import build_fabric, compile_routes
from moe_placer.instance import Instance, load_instance
from moe_placer.instance.sizes import token_bytes
from moe_placer.schedule.network import Network
from moe_placer.solver import Limits
from moe_placer.solving import solve
from moe_placer.traffic import load_traffic

__all__ = ["Settings", "open_instance", "rows_of"]

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What to compare.

    Attributes
    ----------
    instances : sequence of mappings
        ``file``, and, where another fabric is wanted, a new ``name`` and the ``fabric``'s section.
    methods : sequence of (solver, seeds)
        Placements: each solver's, with seeds 0 to seeds - 1.
    layers : int
        MoE layers of each placement, evenly over the model.
    tokens_per_gpu : sequence of float
        Sizes of messages.
    time_limit_s : float
        For each placement.
    """

    instances: list[dict[str, Any]]
    methods: list[tuple[str, int]]
    layers: int
    tokens_per_gpu: list[float]
    time_limit_s: float


@dataclass(frozen=True, eq=False)
class _Case:
    facts: Row
    sent: Floats


def open_instance(entry: dict[str, Any], folder: Path) -> Instance:
    """Load an instance, and give it the fabric and name that the settings ask for."""
    instance = load_instance(folder / entry["file"])
    if "fabric" not in entry:
        return instance
    content = instance.model_dump()
    content["name"] = entry["name"]
    content["cluster"]["fabric"] = entry["fabric"]
    return Instance.model_validate(content)


def rows_of(instance: Instance, settings: Settings) -> Iterator[Row]:
    """Yield a row for every placement, layer and size, with the µs of our network and of each of SimGrid's models."""
    cases = list(_cases(instance, settings))
    routes = compile_routes(build_fabric(instance), instance.cluster.nodes)
    transfers = [case.sent for case in cases]
    simulated = {name: simulate(instance, model, transfers) for name, model in MODELS.items()}
    for number, case in enumerate(cases):
        network = Network(instance, routes=routes)
        bottleneck = float((routes.shares @ case.sent.ravel() / network.capacity).max())
        crossed = case.sent > 0
        yield {
            **case.facts,
            "flows": int(crossed.sum()),
            "mean_flow_bytes": _short(case.sent[crossed].mean()),
            "hops": int(routes.hops[crossed].max()),
            "bottleneck_us": _short(bottleneck),
            "network_us": _short(_end(network, case.sent)),
            "exact_us": _short(_end(Network(instance, routes=routes, together=0.0), case.sent)),
            "simgrid_us": {name: _short(lasted[number]) for name, lasted in simulated.items()},
        }


def _cases(instance: Instance, settings: Settings) -> Iterator[_Case]:
    traffic = load_traffic(instance)
    rows = np.unique(np.linspace(0, len(instance.moe_layers) - 1, settings.layers).round().astype(int)).tolist()
    limits = Limits(time_s=settings.time_limit_s)
    for solver, seeds in settings.methods:
        for seed in range(seeds):
            solution = solve(instance, traffic, solver=solver, limits=limits, seed=seed)
            between = find_flows(instance, solution.placement, traffic).between
            for row in rows:
                for tokens in settings.tokens_per_gpu:
                    facts = {
                        "instance": instance.name,
                        "solver": solver,
                        "seed": seed,
                        "layer": instance.moe_layers[row],
                        "z": _short(solution.verification.layers[row].z),
                        "tokens_per_gpu": tokens,
                    }
                    scale = tokens / instance.traffic.tokens_per_gpu * token_bytes(instance)
                    yield _Case(facts, between[row] * scale)


def _end(network: Network, sent: Floats) -> float:
    network.start(0.0, sent)
    coming = network.next_end()
    assert coming is not None
    return coming[0]


def _short(value: float) -> float:
    return float(f"{value:.7g}")
