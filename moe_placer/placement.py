"""The placement file: which GPUs hold which expert, and what is claimed about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeFloat, ValidationError
from pydantic_core import ErrorDetails

from moe_placer.errors import InputError, Mistake
from moe_placer.files import parse_json, read_bounded, write_atomically
from moe_placer.instance.yaml_reader import dotted

__all__ = [
    "SCHEMA",
    "AggregateRecord",
    "CompanionsRecord",
    "InstanceKey",
    "LayerRecord",
    "LayerTimeRecord",
    "MemoryRecord",
    "MutualRecord",
    "Placement",
    "Proof",
    "ReplanRecord",
    "SolverRecord",
    "SplitRecord",
    "load_placement",
    "parse_placement",
]

SCHEMA = "moe-placer/placement/1"
MAX_BYTES = 512_000_000
_EXPECTED = "a placement file"
_EXPECTED_AFTER_INSTANCE = f"{_EXPECTED} (.json; it comes after the instance)"
_GPU_DEPTH = 3  # gpu[l][e]

Proof = Literal[
    "dual",
    "hot-experts",
    "hot-replicas",
    "threshold",
    "companions",
    "weighted-companions",
    "mutual-companions",
    "best-split",
    "solver",
]
GpuId = Annotated[int, Field(ge=0, strict=True)]
Replicas = tuple[GpuId, ...] | tuple[tuple[GpuId, ...], ...]


class _Record(BaseModel):
    # Placement files may carry more keys than these; what is read is strict.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class InstanceKey(_Record):
    """Which instance and traffic a placement was made for."""

    name: str
    sha256: str
    traffic_sha256: str


class SolverRecord(_Record):
    """How a placement was made."""

    name: str
    version: str
    seed: int
    parameters: Mapping[str, Any] = Field(default_factory=dict)


class CompanionsRecord(_Record):
    """What proofs by companions need beside the hot replica or link weights; docs/bounds.md defines them.

    Attributes
    ----------
    depth : int
        How many members of a set are branched on: 0, 1 or 2.
    order : tuple of int
        Every expert once, in the order in which members are branched on; it does not matter with link weights.
    guess : nested tuples
        ``guess[v][e]`` lists the experts that are likely to save most of expert e's tokens, for the sources of view v.
    """

    depth: int = Field(ge=0, le=2)
    order: tuple[int, ...]
    guess: tuple[tuple[tuple[int, ...], ...], ...]


class MutualRecord(_Record):
    """What proofs by pairs of companions need beside link weights; docs/bounds.md defines them.

    Attributes
    ----------
    near : nested tuples
        ``near[v][e]`` lists pairs of another expert and how much of a companion it is to expert e, in 64ths, for the
        sources of view v; each pair once, at the expert of the lower index.
    prices : nested tuples of float
        ``prices[v][e]``: what one companion of expert e is worth, as a share of all tokens of the view.
    """

    near: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]
    prices: tuple[tuple[NonNegativeFloat, ...], ...]


class SplitRecord(_Record):
    """What proofs about the best split of tokens need beside link weights; docs/bounds.md defines them.

    Attributes
    ----------
    slot_prices : tuple of float
        Per node, what a replica pays for its slot there (tokens at node-link speed).
    paid : nested tuples
        ``paid[e][s]``: what node s's tokens for expert e cost at least, their part of slots included.
    """

    slot_prices: tuple[NonNegativeFloat, ...]
    paid: tuple[tuple[NonNegativeFloat, ...], ...]


class LayerRecord(_Record):
    """What is claimed about one MoE layer; docs/bounds.md defines the proofs.

    Attributes
    ----------
    layer : int
        Index in the model, dense layers counted.
    z : float
        Cost of the busiest link (tokens per step at node-link speed).
    bound : float
        No placement has a smaller z; proved as ``proof`` says.
    proof : str
        All but ``solver``, the solver's word, can be re-checked from this record.
    weights : mapping or None
        Link name to weight, for ``dual``, ``threshold``, ``weighted-companions``, ``mutual-companions`` and
        ``best-split``; they sum to 1.
    threshold : float or None
        For ``threshold``: what no placement beats.
    hot : (expert, replica) or None
        For ``hot-experts`` and ``companions``: the replica that some node must hold.
    companions : CompanionsRecord or None
        For ``companions`` and ``weighted-companions``.
    mutual : MutualRecord or None
        For ``mutual-companions``.
    split : SplitRecord or None
        For ``best-split``.
    any_copies : bool or None
        True where the bound holds for any number of replicas of each expert, not just the placement's (``dual``,
        ``mutual-companions``, and always ``hot-replicas`` and ``best-split``).
    bound_given_replicas : float or None
        Where how many replicas each expert has is a choice, and the proof does not hold for every choice: what it
        proves for the placement's; ``bound`` is 0 then.
    worst_link : str
        Name of the link with cost z; empty where no link carries anything.
    worst_link_tokens : float or None
        Plain tokens per step on that link; absent in files of older versions.
    solver_bound : float or None
        A higher bound that only the solver's own search proved.
    """

    layer: int = Field(ge=0)
    z: NonNegativeFloat
    bound: NonNegativeFloat
    proof: Proof
    weights: Mapping[str, NonNegativeFloat] | None = None
    threshold: FiniteFloat | None = None
    hot: tuple[int, int] | None = None
    companions: CompanionsRecord | None = None
    mutual: MutualRecord | None = None
    split: SplitRecord | None = None
    any_copies: bool | None = None
    bound_given_replicas: NonNegativeFloat | None = None
    worst_link: str = ""
    worst_link_tokens: NonNegativeFloat | None = None
    solver_bound: NonNegativeFloat | None = None


class AggregateRecord(_Record):
    """What is claimed of the largest cost of any link summed over the layers; docs/bounds.md defines the proof.

    Attributes
    ----------
    value : float
        Cost of that link over all layers (tokens per step at node-link speed).
    worst_link : str
        Its name; empty where no link carries anything.
    worst_link_tokens : float or None
        Plain tokens per step on that link over all layers; absent in files of older versions.
    bound : float or None
        No placement has a smaller value; absent where nothing is known.
    proof : "dual" or None
        There with a bound.
    weights : mapping or None
        Link name to weight, the same for all layers; they sum to 1.
    any_copies : bool or None
        As in `LayerRecord`.
    """

    value: NonNegativeFloat
    worst_link: str = ""
    worst_link_tokens: NonNegativeFloat | None = None
    bound: NonNegativeFloat | None = None
    proof: Literal["dual"] | None = None
    weights: Mapping[str, NonNegativeFloat] | None = None
    any_copies: bool | None = None


class MemoryRecord(_Record):
    """A bound on the sum over layers of z that counts memory; docs/bounds.md defines the proof.

    Attributes
    ----------
    bound : float
        No placement has a smaller sum (tokens at node-link speed).
    room_prices : tuple of float
        Per node, what a replica there pays; with link weights of every layer they prove the bound.
    weights : tuple of mapping or None
        Per MoE layer, link name to weight; absent in files of older versions, where those of the layers' records count.
    """

    bound: NonNegativeFloat
    room_prices: tuple[NonNegativeFloat, ...]
    weights: tuple[Mapping[str, NonNegativeFloat], ...] | None = None


class LayerTimeRecord(_Record):
    """What is claimed of the layers' times, where these are minimised; docs/bounds.md defines the bound.

    Attributes
    ----------
    value_us : float
        Sum over layers of dispatch, slowest GPU and combine (µs).
    bound_us : float
        No placement has less, by the bounds of the layers' records and by the loads of experts.
    """

    value_us: NonNegativeFloat
    bound_us: NonNegativeFloat


class ReplanRecord(_Record):
    """How far a placement may be from the one that ran before; docs/replanning.md defines the bound's proof.

    Attributes
    ----------
    current_sha256 : str
        `Placement.gpu_sha256` of the placement that ran before.
    moves : int
        (layer, expert, GPU) of this placement that the one before does not have.
    max_moves : int or None
        Moves that the budget allows; None for any number.
    inside_nodes : bool
        Whether only moves within a node were allowed.
    bound : float or None
        No placement with at most ``max_moves`` moves has a smaller sum of z; None where nothing is proved.
    price : float or None
        What a move to another place costs in the proof (tokens at node-link speed).
    weights : tuple of mapping or None
        Per MoE layer, link name to weight; each sums to 1.
    """

    current_sha256: str
    moves: int = Field(ge=0)
    max_moves: int | None = Field(None, ge=0)
    inside_nodes: bool = False
    bound: NonNegativeFloat | None = None
    price: NonNegativeFloat | None = None
    weights: tuple[Mapping[str, NonNegativeFloat], ...] | None = None


class Placement(_Record):
    """A placement of every expert of every MoE layer, as in the file.

    Attributes
    ----------
    gpu : nested tuples
        ``gpu[l][e]`` lists the global GPU ids of expert e's replicas in MoE layer l (l counts MoE layers in order);
        with ``expert_tp`` above 1, each replica is itself a tuple of the GPUs that hold its shards.
    layers : tuple of LayerRecord
        One per MoE layer, in order.
    aggregate : AggregateRecord or None
        Of all layers together; absent in files of older versions.
    memory : MemoryRecord or None
        There where memory binds over layers, and was divided among them with a proof.
    layer_time : LayerTimeRecord or None
        There where the times of layers were minimised.
    replan : ReplanRecord or None
        There where the placement was made from another one.
    versions, traffic, fabric, replicas : mapping
        Facts for a reader: program versions, what the traffic was, links and bandwidths, who chose the replicas.
    """

    schema_: Literal["moe-placer/placement/1"] = Field(alias="schema")
    instance: InstanceKey
    solver: SolverRecord
    gpu: tuple[tuple[Replicas, ...], ...]
    layers: tuple[LayerRecord, ...]
    aggregate: AggregateRecord | None = None
    memory: MemoryRecord | None = None
    layer_time: LayerTimeRecord | None = None
    replan: ReplanRecord | None = None
    versions: Mapping[str, str] = Field(default_factory=dict)
    traffic: Mapping[str, Any] = Field(default_factory=dict)
    fabric: Mapping[str, Any] = Field(default_factory=dict)
    replicas: Mapping[str, Any] = Field(default_factory=dict)

    def shards(self, layer: int, expert: int) -> tuple[tuple[int, ...], ...]:
        """GPUs of each replica of an expert, one tuple of shards per replica (of length 1 without sharding)."""
        return tuple((replica,) if isinstance(replica, int) else replica for replica in self.gpu[layer][expert])

    @property
    def gpu_sha256(self) -> str:
        """SHA-256 of ``gpu`` as JSON without spaces: which placement this is, whatever is stated of it."""
        text = json.dumps(self.gpu, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """Return the file's text: the same placement always gives the same bytes."""
        content = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        gpu, layers = content.pop("gpu"), content.pop("layers")
        head = json.dumps(content, indent=1, ensure_ascii=False)
        # One line per layer: small, and still readable in a diff.
        rows = ",\n".join("  " + json.dumps(row, separators=(",", ":")) for row in gpu)
        records = ",\n".join("  " + json.dumps(record, ensure_ascii=False) for record in layers)
        return f'{head[:-2]},\n "gpu": [\n{rows}\n ],\n "layers": [\n{records}\n ]\n}}\n'

    def write(self, path: Path) -> None:
        """Write the placement file atomically."""
        write_atomically(path, self.to_json())


def load_placement(path: str | Path) -> Placement:
    """Read a placement file.

    Raises
    ------
    InputError
        Missing, truncated, not JSON, or not of this schema; every mistake is listed.
    """
    file = Path(path)
    return parse_placement(read_bounded(file, MAX_BYTES, _EXPECTED), file)


def parse_placement(raw: bytes, file: Path) -> Placement:
    """Read the text of a placement file; the path is for messages.

    Raises
    ------
    InputError
        Truncated, not JSON, or not of this schema; every mistake is listed.
    """
    # pydantic's own JSON parser lets duplicate keys pass.
    content = parse_json(raw, _EXPECTED if file.suffix not in {".yaml", ".yml"} else _EXPECTED_AFTER_INSTANCE, file)
    try:
        return Placement.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise InputError(_mistakes(error, file)) from None


def _mistakes(error: ValidationError, file: Path) -> list[Mistake]:
    """Every mistake once: a wrong GPU list is no list of GPUs, nor one of shards; one sentence says both."""
    mistakes: dict[str, Mistake] = {}
    for detail in error.errors(include_url=False):
        mistake = _mistake(detail, file)
        mistakes.setdefault(mistake.path, mistake)
    return list(mistakes.values())


def _mistake(detail: ErrorDetails, file: Path) -> Mistake:
    loc, expected = detail["loc"], detail["msg"].removeprefix("Input should be ")
    expected = expected[:1].lower() + expected[1:]
    if loc[:1] == ("gpu",) and len(loc) > _GPU_DEPTH:
        loc = loc[:_GPU_DEPTH]
        expected = "GPU ids, one per replica (or per replica a list of them, where experts are sharded)"
    if detail["type"] == "missing":
        return Mistake("nothing", "this field", dotted(loc), file)
    if detail["type"] == "json_invalid":
        return Mistake(f"text that is not JSON ({expected})", _EXPECTED, file=file)
    shown = str(detail["input"])
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return Mistake(shown, expected, dotted(loc), file)
