"""The all-to-alls that are compared: placements of an instance, some of its layers, messages of several sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import PositiveFloat, PositiveInt

from benchmarks.simgrid.models import MODELS
from benchmarks.simgrid.run_simgrid import simulate
from moe_placer.experiments.compare.metrics import find_flows
from moe_placer.fabric import build_fabric, compile_routes
from moe_placer.instance import Instance, load_instance
from moe_placer.instance.schema import Section
from moe_placer.instance.sizes import dispatch_wire
from moe_placer.limits import Limits
from moe_placer.schedule.network import Network
from moe_placer.solve.solve import solve
from moe_placer.traffic import load_traffic

__all__ = ["Choice", "Settings", "open_instance", "rows_of", "run_case"]

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]
Case = list[tuple[float, Floats]]


class Choice(Section):
    """An instance file, relative to the settings; where another fabric is wanted, that section and a name for it."""

    file: str
    name: str | None = None
    fabric: dict[str, Any] | None = None


class Settings(Section):
    """What to compare.

    Attributes
    ----------
    instances : tuple of Choice
    methods : tuple of (solver, seeds)
        Placements: each solver's, with seeds 0 to seeds - 1.
    layers : int
        MoE layers of each placement, evenly over the model.
    tokens_per_gpu : tuple of float
        Sizes of messages.
    time_limit_s : float
        For each placement.
    """

    instances: tuple[Choice, ...]
    methods: tuple[tuple[str, PositiveInt], ...]
    layers: PositiveInt
    tokens_per_gpu: tuple[PositiveFloat, ...]
    time_limit_s: PositiveFloat


def open_instance(choice: Choice, folder: Path) -> Instance:
    """Load an instance, and give it the fabric and name that the settings ask for."""
    instance = load_instance(folder / choice.file)
    if choice.fabric is None:
        return instance
    content = instance.model_dump()
    content["name"] = choice.name or instance.name
    content["cluster"]["fabric"] = choice.fabric
    return Instance.model_validate(content)


def rows_of(instance: Instance, settings: Settings) -> Iterator[Row]:
    """Yield a row for every placement, layer and size, with the µs of our network and of each of SimGrid's models.

    ``network_us`` and ``simgrid_us`` are of the dispatch alone. ``both_us``, of the largest messages, are of a dispatch
    and, once its worst link would be half through, a combine (the dispatch reversed) beside it: each from its start.
    """
    routes = compile_routes(build_fabric(instance), instance.cluster.nodes)
    network = Network(instance, routes=routes)
    rows: list[Row] = []
    cases: list[tuple[Row, str, Case]] = []
    for row, sent in _dispatches(instance, settings):
        bottleneck = float((routes.shares @ sent.ravel() / network.capacity).max())
        crossed = sent > 0
        row |= {"flows": int(crossed.sum()), "mean_flow_bytes": _short(sent[crossed].mean())}
        rows.append(row | {"hops": int(routes.hops[crossed].max()), "bottleneck_us": _short(bottleneck)})
        cases.append((rows[-1], "alone", [(0.0, sent)]))
        if row["tokens_per_gpu"] == max(settings.tokens_per_gpu):
            cases.append((rows[-1], "both", [(0.0, sent), (bottleneck / 2, sent.T)]))
    transfers = [case for _, _, case in cases]
    with ThreadPoolExecutor() as pool:  # each model in a process of its own
        simulated = pool.map(lambda model: simulate(instance, model, transfers), MODELS.values())
        theirs = dict(zip(MODELS, simulated, strict=True))
    for number, (row, kind, case) in enumerate(cases):
        ours = run_case(Network(instance, routes=routes), case)
        lasted = {name: _lasted(case, ends[number]) for name, ends in theirs.items()}
        if kind == "both":
            row["both_us"] = {"network": ours, **lasted}
        else:
            exact = run_case(Network(instance, routes=routes, tolerance=0.0), case)
            row |= {"network_us": ours[0], "exact_us": exact[0]}
            row["simgrid_us"] = {name: values[0] for name, values in lasted.items()}
    yield from rows


def _dispatches(instance: Instance, settings: Settings) -> Iterator[tuple[Row, Floats]]:
    """Yield the facts and the bytes [nodes, nodes] of every dispatch."""
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
                    scale = tokens / instance.traffic.tokens_per_gpu * dispatch_wire(instance).token_bytes
                    yield facts, between[row] * scale


def run_case(network: Network, case: Case) -> list[float]:
    """Return how long each transfer of a case takes in our network, µs."""
    ends: dict[int, float] = {}

    def follow(until: float) -> None:
        while (coming := network.next_end()) is not None and coming[0] <= until:
            ends.update(dict.fromkeys(network.advance(coming[0]), coming[0]))

    for start, sent in case:
        follow(start)
        network.start(start, sent)
    follow(np.inf)
    return _lasted(case, [ends[number] for number in range(len(case))])


def _lasted(case: Case, ends: Sequence[float]) -> list[float]:
    return [_short(end - start) for end, (start, _) in zip(ends, case, strict=True)]


def _short(value: float) -> float:
    return float(f"{value:.7g}")
