"""The instance: everything a placement problem states, checked as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from moe_placer.errors import InputError, Mistake
from moe_placer.instance import schema
from moe_placer.instance.contradictions import find_contradictions
from moe_placer.instance.gpu_presets import with_preset

__all__ = ["Instance"]

# Fields that are younger than the first placement files: what is absent does not change the hash.
_YOUNGER = {
    "model": (
        *("attention", "dtypes", "dense_matrices", "shared_expert_hidden_size"),
        *("expert_groups", "top_groups"),
    ),
    "cluster": ("nics", "nvlink_domain_nodes"),
    "placement": ("dispatch_dtype", "combine_dtype", "drained_gpus"),
    "objective": ("windows",),
}


# The same where the default is a word, or the section may be without the field; beside it, what goes with it.
_YOUNGER_WORDS = (
    ("placement", "survives", "none", ()),
    ("objective", "minimise", "layers", ()),
    ("objective", "scenarios", "mix", ()),
    ("objective", "take", "worst", ("sigmas",)),
    ("traffic", "sources", "mix", ()),
    ("traffic", "sample_tokens", None, ()),
)


def _leave_out_younger(content: dict[str, Any]) -> None:
    """Leave out fields of later versions that have their defaults, so that hashes of older instances stay."""
    for section, fields in _YOUNGER.items():
        for field in fields:
            if not content[section][field]:
                del content[section][field]
    for section, field, default, others in _YOUNGER_WORDS:
        if field in content[section] and content[section][field] == default:
            for name in (field, *others):
                del content[section][name]
    fabric, gpu = content["cluster"]["fabric"], content["cluster"]["gpu"]
    if fabric.get("uplinks") == "spray":
        del fabric["uplinks"], fabric["flows_per_pair"]
    if not gpu["dtype_tflops"]:
        del gpu["dtype_tflops"]


class Instance(schema.Section):
    """A model, a cluster, a fabric, routing statistics, and what a placement must respect.

    Immutable; `moe_placer.load_instance` reads one from a YAML file. Field names are those of the file.
    """

    # Names a folder, and stands in every page: no path, and nothing that is acted on instead of shown.
    name: str = Field(min_length=1, max_length=200, pattern=rf"^[^\s/\\.{schema.ACTS}][^/\\{schema.ACTS}]*$")
    model: schema.Model
    cluster: schema.Cluster
    parallelism: schema.Parallelism = schema.Parallelism()
    placement: schema.Placement = schema.Placement()
    traffic: schema.AnyTraffic
    objective: schema.Objective = schema.Objective()
    schedule: schema.Schedule = schema.Schedule()
    engine: schema.Engine | None = Field(
        None, description="Inference engine that is to load the placement: its rules on slots and replicas must hold."
    )

    _directory: Path = PrivateAttr(default=Path())

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices in the model of its MoE layers, in order."""
        dense = set(self.model.dense_layers)
        return tuple(layer for layer in range(self.model.layers) if layer not in dense)

    @property
    def gpus(self) -> int:
        """GPUs of the cluster, failed ones included."""
        return self.cluster.nodes * self.cluster.gpus_per_node

    @property
    def leaves(self) -> int:
        """Leaf switches of a fat tree; 0 for other fabrics."""
        per_leaf = self.nodes_per_leaf
        return 0 if per_leaf is None else -(-self.cluster.nodes // per_leaf)

    @property
    def nodes_per_leaf(self) -> int | None:
        """Nodes that fail with a leaf switch; None where there is none, or where a node keeps other rails."""
        fabric = self.cluster.fabric
        return fabric.nodes_per_leaf if isinstance(fabric, schema.FatTree | schema.ThreeLevelTree) else None

    @property
    def replicas_per_layer(self) -> int:
        """Expert replicas that one layer has in all; the most of `replicas_by_layer`."""
        return max(self.replicas_by_layer)

    @property
    def replicas_by_layer(self) -> tuple[int, ...]:
        """Expert replicas of each MoE layer; of a budget over all layers, equal shares (the first get the rest)."""
        replicas, layers, experts = self.placement.replicas, len(self.moe_layers), self.model.experts
        if replicas == "dp":
            return (experts * self.parallelism.dp,) * layers
        if isinstance(replicas, schema.RedundantSlots):
            return (experts + replicas.redundant_slots,) * layers
        share, rest = divmod(replicas.redundant_slots_in_all, layers)
        return tuple(experts + share + (layer < rest) for layer in range(layers))

    @property
    def redundant_slots(self) -> int:
        """Replicas beyond one of each expert that go to any: of each layer, or of all layers where these share them."""
        replicas = self.placement.replicas
        if replicas == "dp":
            return 0
        return (
            replicas.redundant_slots if isinstance(replicas, schema.RedundantSlots) else replicas.redundant_slots_in_all
        )

    @property
    def trace_files(self) -> tuple[Path, ...]:
        """The traffic's files, resolved against the folder of the instance file."""
        files: Sequence[str] = getattr(self.traffic, "files", ())
        return tuple(self._directory / name for name in files)

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical content: comments, order and trace paths do not change it, defaults count."""
        content = self.model_dump(mode="json")
        content["traffic"].pop("files", None)
        del content["schedule"]  # what is expected of a step, not of a placement
        del content["engine"]  # it only forbids; what is allowed costs the same with and without it
        _leave_out_younger(content)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def with_traces(self, files: Sequence[str | Path]) -> Self:
        """Return this instance with its traffic taken from recorded traces, one per domain, as ``--trace`` does."""
        traffic = schema.TraceTraffic(
            kind="trace",
            tokens_per_gpu=self.traffic.tokens_per_gpu,
            files=tuple(str(Path(file).absolute()) for file in files),
            mix=getattr(self.traffic, "mix", None),
            sample_tokens=getattr(self.traffic, "sample_tokens", None),
        )
        return self._copied(traffic=traffic)

    def with_recordings(self, keep: Sequence[int], name: str) -> Self:
        """Return this instance, under another name, with some of its recordings; nodes mix these as they did before.

        A node that had tokens of others only has these evenly.
        """
        mix = getattr(self.traffic, "mix", None)
        if mix is not None:
            kept = [[row[index] for index in keep] for row in mix]
            mix = tuple(tuple(x / sum(row) if sum(row) else 1 / len(row) for x in row) for row in kept)
        files = tuple(self.traffic.files[index] for index in keep) if hasattr(self.traffic, "files") else ()
        traffic = self.traffic.model_copy(update={"files": files, "mix": mix})
        return self._copied(traffic=traffic, name=name)

    def on_the_mix(self) -> Self:
        """Return this instance with layers judged on the mixed traffic, whatever scenarios its objective has."""
        of_mix = {"scenarios": "mix", "windows": None, "take": "worst", "sigmas": 0.0}
        return self._copied(objective=self.objective.model_copy(update=of_mix))

    def over_windows(self, count: int) -> Self:
        """Return this instance with layers judged on so many windows of time of its recordings, as ``--windows`` does.

        Raises
        ------
        InputError
            Its recordings have no order of tokens, or its objective, dispatch or NICs do not go with scenarios.
        """
        return self._changed(objective=self.objective.model_copy(update={"scenarios": "windows", "windows": count}))

    def with_serving(self, routing: str | None = None, dispatch: str | None = None) -> Self:
        """Return this instance with another ``replica_routing`` or ``dispatch``; None keeps its own.

        Raises
        ------
        InputError
            There is no such rule or unit, or the instance cannot be served by it.
        """
        given = {"replica_routing": routing, "dispatch": dispatch}
        changes = {name: value for name, value in given.items() if value is not None}
        if not changes:
            return self
        try:
            placement = schema.Placement.model_validate({**self.placement.model_dump(), **changes})
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            field = str(wrong["loc"][0])
            expected = wrong["msg"].removeprefix("Input should be ")
            raise InputError(Mistake(str(changes.get(field)), expected, f"placement.{field}")) from None
        return self._changed(placement=placement)

    def with_receive(self, receive: str | None) -> Self:
        """Return this instance with NICs that receive so; None keeps its own.

        Where it says nothing of NICs, every GPU has one, and together they are what a node has.

        Raises
        ------
        InputError
            There is no such habit, or the instance cannot be served by it.
        """
        if receive is None:
            return self
        each, count = self.cluster.fabric.node_gb_per_s, self.cluster.gpus_per_node
        own = self.cluster.nics.model_dump() if self.cluster.nics else {"per_node": count, "gb_per_s": each / count}
        try:
            nics = schema.Nics.model_validate({**own, "receive": receive})
        except ValidationError as error:
            expected = error.errors(include_url=False)[0]["msg"].removeprefix("Input should be ")
            raise InputError(Mistake(receive, expected, "cluster.nics.receive")) from None
        return self._changed(cluster=self.cluster.model_copy(update={"nics": nics}))

    def with_kernels(self, preset: str | None) -> Self:
        """Return this instance with the kernels of a preset, and no parameters of its own; None keeps its own."""
        if preset is None:
            return self
        kernels = schema.Kernels.model_validate({"preset": preset})
        return self._copied(schedule=self.schedule.model_copy(update={"kernels": kernels}))

    def with_engine(self, engine: schema.Engine | None) -> Self:
        """Return this instance for an engine, as ``--engine`` does, or for none in particular.

        Raises
        ------
        InputError
            The instance breaks the engine's rules.
        """
        return self._changed(engine=engine)

    def with_hardware(self, added_nodes: int, failed_gpus: Sequence[int], drained_gpus: Sequence[int] = ()) -> Self:
        """Return this instance with nodes added after the last one, and with these GPUs marked as failed.

        Where ``traffic.mix`` says what nodes' tokens are like, those of new nodes are like the mean of all others.
        ``drained_gpus`` are those of ``failed_gpus`` that still send what they hold.

        Raises
        ------
        InputError
            The instance cannot be so.
        """
        cluster = self.cluster.model_copy(update={"nodes": self.cluster.nodes + added_nodes})
        out = {"failed_gpus": tuple(failed_gpus), "drained_gpus": tuple(drained_gpus)}
        placement = self.placement.model_copy(update=out)
        traffic, mix = self.traffic, getattr(self.traffic, "mix", None)
        if mix and added_nodes:
            mean = tuple(sum(column) / len(mix) for column in zip(*mix, strict=True))
            traffic = traffic.model_copy(update={"mix": (*mix, *[mean] * added_nodes)})
        return self._changed(cluster=cluster, placement=placement, traffic=traffic)

    def with_redundant_slots(self, count: int) -> Self:
        """Return this instance with another number of redundant slots in every layer."""
        replicas = schema.RedundantSlots(redundant_slots=count)
        return self._changed(placement=self.placement.model_copy(update={"replicas": replicas}))

    def _copied(self, **fields: Any) -> Self:
        """Return this instance with other fields, whose files are where they were."""
        copy = self.model_copy(update=fields)
        copy._directory = self._directory
        return copy

    def _changed(self, **sections: Any) -> Self:
        """Return this instance with other sections, unless these contradict each other."""
        copy = self._copied(**sections)
        copy._refuse_contradictions()
        return copy

    @model_validator(mode="before")
    @classmethod
    def _look_up_gpu(cls, sections: Any) -> Any:
        return with_preset(sections)

    @model_validator(mode="after")
    def _check_as_a_whole(self) -> Self:
        self._refuse_contradictions()
        return self

    def _refuse_contradictions(self) -> None:
        mistakes = find_contradictions(dict(self))
        if mistakes:
            raise InputError(mistakes)
