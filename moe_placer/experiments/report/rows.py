"""What a report folder holds, read strictly: a row that is damaged is named by its line."""

from __future__ import annotations

import json
import math
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moe_placer.errors import InputError, Mistake
from moe_placer.files import read_bounded, refuse_hidden_characters

__all__ = [
    "Comparison",
    "Config",
    "InstanceRow",
    "Link",
    "Metrics",
    "RunRow",
    "read_comparison",
    "read_config_file",
]

_MOST = 2_000_000_000  # bytes of results.jsonl; one run of 1,024 GPUs over 61 layers has about 3 MB
_ROW = "moe-placer/row/1"


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class Config(_Record):
    """The question of a comparison: `config.json`."""

    schema_: Literal["moe-placer/comparison/1"] = Field(alias="schema")
    name: str
    question: str | None = None
    instances: list[str]
    solvers: list[str]
    seeds: list[int] | int
    parameters: dict[str, Any]
    traces: list[str] = []
    held_out: list[str] = []
    next_window: bool = False
    current: list[str] = []
    leave_one_out: bool = False


class Link(_Record):
    """One directed link between vertices of the fabric; bandwidth in GB/s."""

    name: str
    source: str
    target: str
    bandwidth: float = Field(gt=0)


class InstanceRow(_Record):
    """One instance of the comparison; rows of older versions do not say their metric, which was always ``time``."""

    name: str
    sha256: str
    layers: int
    experts: int
    replicas: int | list[int]
    nodes: int
    gpus: int
    slots_per_gpu: int
    fabric: dict[str, Any]
    metric: Literal["time", "tokens"] = "time"
    bytes_per_token: float = Field(gt=0)
    node_bandwidth: float = Field(gt=0)
    dispatch: str
    replica_routing: str
    held_out: list[str] = []
    current: str | None = None
    layer_index: list[int]
    gpu_node: list[int]
    links: list[Link]
    nics: list[str] = []


class Metrics(_Record):
    """A placement's figures on one traffic; costs are tokens at node-link speed."""

    z_total: float
    z_largest: float
    z: list[float]
    worst_link: list[str]
    pair_total: float
    inter_node_tokens: float
    token_hops: float
    gpu_balancedness: float
    node_balancedness: float
    busiest_gpu_tokens: float
    busiest_node_tokens: float
    communication_us: float
    nic_total: float | None = None
    other_links_total: float | None = None
    step_us: float | None = None
    link_cost: list[list[float]]
    gpu_load: list[list[float]]


class Both(_Record):
    """Figures on the traffic that was solved for, and on traffic that was not seen."""

    solved_for: Metrics
    held_out: Metrics | None = None


class Seconds(_Record):
    """Seconds from the start of a run until it reached each milestone; None where it did not."""

    total: float | None = None
    first: float | None = None
    better: float | None = None
    bounded: float | None = None
    within_1_percent: float | None = None
    within_0_1_percent: float | None = None
    proved: float | None = None
    final: float | None = None


class Speed(_Record):
    """How a run came down to its bound: the primal integral (seconds), and layers bounded, with the time of one."""

    primal_integral: float | None = None
    bounded_layers: int | None = None
    seconds_per_bounded_layer: float | None = None


class Spread(_Record):
    """Bytes on the emptiest and on the fullest GPU."""

    smallest: float
    largest: float


class RunRow(_Record):
    """One run of a solver on an instance; what a placement gives is absent unless ``status`` is ok."""

    key: str
    instance: str
    instance_sha256: str
    solver: str
    version: str | None = None
    seed: int | None = None
    status: str
    reason: str | None = None
    seconds: Seconds = Seconds()
    speed: Speed = Speed()
    peak_bytes: float | None = None
    largest_process_bytes: float | None = None
    cores_used_by_others: float | None = None
    stop: dict[str, int] = {}
    z: list[float] = []
    bound: list[float | None] = []
    proof: list[str | None] = []
    recheckable: list[bool] = []
    covers_copies: bool = True
    gap_median: float | None = None
    gap_largest: float | None = None
    moves: int | None = None
    memory_bytes: Spread | None = None
    traffic: Both | None = None
    gpu: list[list[list[int | list[int]]]] = []
    trajectory: list[tuple[float, float, float | None]] = []

    @property
    def solved_for(self) -> Metrics:
        """Figures on the traffic that was solved for; only of runs that are ok."""
        assert self.traffic is not None
        return self.traffic.solved_for


@dataclass(frozen=True)
class Comparison:
    """A report folder's content.

    Attributes
    ----------
    environment : dict
        What it ran on, as `environment.json` has it.
    instances : list of InstanceRow
        In the order of their first rows.
    runs : list of RunRow
        By instance, solver in the order of the configuration, and seed; of one key, the last row.
    """

    config: Config
    environment: dict[str, Any]
    instances: list[InstanceRow]
    runs: list[RunRow]

    def runs_of(self, instance: InstanceRow) -> list[RunRow]:
        """Return the instance's runs that gave a verified placement."""
        return [run for run in self.runs if run.instance_sha256 == instance.sha256 and run.status == "ok"]

    @property
    def solvers(self) -> list[str]:
        """All solvers that have a run, in their order; the place of each is its colour."""
        return list(dict.fromkeys(run.solver for run in self.runs))

    @property
    def failed(self) -> list[RunRow]:
        """The runs that gave none."""
        return [run for run in self.runs if run.status != "ok"]


def read_comparison(folder: Path) -> Comparison:
    """Read `config.json`, `environment.json` and `results.jsonl` of a report folder.

    Raises
    ------
    InputError
        One is missing, truncated or contradicts itself; of results, with the line.
    """
    config = read_config_file(folder / "config.json")
    environment = _object(folder / "environment.json")
    file = folder / "results.jsonl"
    instances: dict[str, InstanceRow] = {}
    runs: dict[str, tuple[int, RunRow]] = {}
    text = _text(file, "one JSON object a line")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _parsed(line, file, number)
        if row.get("schema") != _ROW or row.get("kind") not in {"instance", "run"}:
            found = f"schema {row.get('schema')!r}, kind {row.get('kind')!r}"
            raise InputError(Mistake(found, f"schema {_ROW!r}, kind 'instance' or 'run'", file=file, line=number))
        if row["kind"] == "instance":
            instance = _checked(InstanceRow, row, file, number)
            _check_instance(instance, file, number)
            instances[instance.sha256] = instance
        else:
            run = _checked(RunRow, row, file, number)
            runs[run.key] = (number, run)
    if not instances:
        raise InputError(Mistake("no instance", "rows that `moe-placer compare` wrote", file=file))
    for number, run in runs.values():
        _check_run(run, instances, file, number)
    return Comparison(config, environment, list(instances.values()), _ordered(config, list(instances), runs))


def read_config_file(file: Path) -> Config:
    """Read what a comparison asked.

    Raises
    ------
    InputError
        The file is missing, truncated or wrong.
    """
    return _checked(Config, _object(file), file, None)


def _ordered(config: Config, instances: list[str], runs: dict[str, tuple[int, RunRow]]) -> list[RunRow]:
    """Sort by instance, solver and seed, so that the order in which workers finished does not matter."""
    solvers = {name: place for place, name in enumerate(config.solvers)}

    def place(run: RunRow) -> tuple[int, int, str, int, str]:
        seed = -1 if run.seed is None else run.seed
        return (
            instances.index(run.instance_sha256),
            solvers.get(run.solver, len(solvers)),
            run.solver,
            seed,
            run.key,
        )

    return sorted((run for _, run in runs.values()), key=place)


def _text(file: Path, expected: str) -> str:
    try:
        return read_bounded(file, _MOST, expected).decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(Mistake("bytes that are no UTF-8", expected, file=file, line=line)) from None


def _object(file: Path) -> dict[str, Any]:
    return _parsed(_text(file, "a JSON object, as comparisons write it"), file, None)


def _parsed(text: str, file: Path, line: int | None) -> dict[str, Any]:
    try:
        row = json.loads(text, parse_constant=_refuse)
        refuse_hidden_characters(text, row, "names", file, line)
    except json.JSONDecodeError as error:
        found = f"what is not JSON or was cut off ({error.msg}, character {error.colno})"
        raise InputError(Mistake(found, "a JSON object", file=file, line=line or error.lineno)) from None
    except (ValueError, RecursionError) as error:
        found = str(error) if isinstance(error, ValueError) else "lists nested too deeply"
        raise InputError(Mistake(found, "a JSON object of finite numbers", file=file, line=line)) from None
    if not isinstance(row, dict):
        raise InputError(Mistake(f"a {type(row).__name__}", "a JSON object", file=file, line=line))
    return row


def _refuse(constant: str) -> float:
    raise ValueError(f"the number {constant}")


_R = TypeVar("_R", bound=_Record)


def _checked(kind: type[_R], row: dict[str, Any], file: Path, line: int | None) -> _R:
    try:
        return kind.model_validate_json(json.dumps(row))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = ".".join(map(str, first["loc"]))
        found = "nothing" if first["type"] == "missing" else repr(first["input"])[:60]
        raise InputError(Mistake(found, first["msg"].lower(), path=path, file=file, line=line)) from None


def _check_instance(row: InstanceRow, file: Path, line: int) -> None:
    _check_length(row.layer_index, row.layers, "layer_index", file, line)
    _check_length(row.gpu_node, row.gpus, "gpu_node", file, line)
    if not row.links:
        raise InputError(Mistake("no link", "the fabric's links", path="links", file=file, line=line))
    reached = row.fabric.get("link_utilization", 1.0)
    if not isinstance(reached, int | float) or not 0 < reached <= 1:
        path = "fabric.link_utilization"
        raise InputError(Mistake(repr(reached)[:60], "a share above 0, at most 1", path=path, file=file, line=line))
    if not all(0 <= node < row.nodes for node in row.gpu_node):
        raise InputError(Mistake("a node that is not", f"0 to {row.nodes - 1}", path="gpu_node", file=file, line=line))


def _check_run(run: RunRow, instances: dict[str, InstanceRow], file: Path, line: int) -> None:
    """Refuse a run whose lists do not fit its instance."""
    instance = instances.get(run.instance_sha256)
    if instance is None:
        found = f"{run.instance!r} with hash {run.instance_sha256!r}"
        raise InputError(Mistake(found, "an instance that has a row", path="instance", file=file, line=line))
    if run.status != "ok":
        return
    if run.traffic is None:
        raise InputError(Mistake("nothing", "figures, since the status is ok", path="traffic", file=file, line=line))
    for name in ("z", "bound", "proof", "recheckable", "gpu"):
        _check_length(getattr(run, name), instance.layers, name, file, line)
    _check_metrics("solved_for", run.traffic.solved_for, instance, file, line)
    if run.traffic.held_out is not None:
        _check_metrics("held_out", run.traffic.held_out, instance, file, line)
    _check_placement(run, instance, file, line)


def _check_metrics(name: str, metrics: Metrics, instance: InstanceRow, file: Path, line: int) -> None:
    path = f"traffic.{name}"
    for field in ("z", "worst_link", "link_cost", "gpu_load"):
        _check_length(getattr(metrics, field), instance.layers, f"{path}.{field}", file, line)
    if unknown := sorted(set(metrics.worst_link) - {link.name for link in instance.links} - {""}):
        found = f"the link {unknown[0][:60]!r}"
        raise InputError(Mistake(found, "links of the instance", path=f"{path}.worst_link", file=file, line=line))
    for layer, (costs, loads) in enumerate(zip(metrics.link_cost, metrics.gpu_load, strict=True)):
        _check_length(costs, len(instance.links), f"{path}.link_cost.{layer}", file, line)
        _check_length(loads, instance.gpus, f"{path}.gpu_load.{layer}", file, line)


def _check_placement(run: RunRow, instance: InstanceRow, file: Path, line: int) -> None:
    for layer, experts in enumerate(run.gpu):
        _check_length(experts, instance.experts, f"gpu.{layer}", file, line)
        wrong = [gpu for expert in experts for gpu in _flat(expert) if not 0 <= gpu < instance.gpus]
        if wrong:
            mistake = Mistake(f"GPU {wrong[0]}", f"0 to {instance.gpus - 1}", path=f"gpu.{layer}", file=file, line=line)
            raise InputError(mistake)


def _check_length(values: Sized, length: int, path: str, file: Path, line: int) -> None:
    if len(values) != length:
        raise InputError(Mistake(f"{len(values)} entries", str(length), path=path, file=file, line=line))


def _flat(replicas: list[int | list[int]]) -> list[int]:
    """Return the GPUs of an expert's replicas, those of shards one by one."""
    return [gpu for replica in replicas for gpu in (replica if isinstance(replica, list) else [replica])]


def ratio(value: float, base: float) -> float | None:
    """Return ``value / base``; 1 where both are 0, None where only the base is."""
    if base == 0:
        return 1.0 if value == 0 else None
    quotient = value / base
    return quotient if math.isfinite(quotient) else None
