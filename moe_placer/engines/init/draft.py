"""Drafts an instance from a model's config, recordings, a topology and a few wishes, and says what it assumed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moe_placer.engines.init.aiconfigurator import System
from moe_placer.engines.init.model_config import ConfigModel
from moe_placer.engines.init.recorded_traffic import RecordedTraffic
from moe_placer.engines.topology.topology import Topology
from moe_placer.errors import InputError, Mistake
from moe_placer.instance import Instance
from moe_placer.instance.engine_rules import ENGINES
from moe_placer.instance.gpu_presets import PRESETS, GpuPreset

__all__ = ["Draft", "Wishes", "draft_instance"]


@dataclass(frozen=True)
class Wishes:
    """What the user sets of an instance; None where the user sets nothing."""

    name: str | None = None
    engine: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    gpus_per_node: int | None = None
    slots_per_gpu: int | None = None
    redundant_slots: int | None = None
    attention_tp: int | None = None
    tokens_per_gpu: float | None = None
    node_gb_per_s: float | None = None
    nodes_per_leaf: int | None = None
    spines: int | None = None
    oversubscription: float | None = None
    dispatch: str | None = None
    system: System | None = None
    """What aiconfigurator's system file says; instead of ``gpu``."""


@dataclass
class Draft:
    """An instance's content, section by section, and the comments that belong to it.

    Attributes
    ----------
    data : dict
        As the instance file has it.
    comments : dict
        Path of a field or section to what stands beside it.
    head, assumed : list of str
        Lines at the top of the file, and what is an assumption, in sentences.
    """

    data: dict[str, Any] = field(default_factory=dict)
    comments: dict[tuple[str, ...], str] = field(default_factory=dict)
    head: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    def put(self, section: str, key: str, value: Any, comment: str = "", assumed: bool = False) -> None:
        """Set a field, and say why; what is assumed is also listed.

        Parameters
        ----------
        section : str
            Section of the instance.
        key : str
            Field of the section.
        value : Any
            What to set it to.
        comment : str
            Why, in words.
        assumed : bool
            Whether nothing that was read says so.
        """
        here = self.data.setdefault(section, {})
        here[key] = value
        if comment:
            self.comments[section, key] = f"assumed: {comment}" if assumed else comment
        if assumed:
            self.assumed.append(f"{section}.{key}: {value}: {comment}")


def draft_instance(
    model: ConfigModel,
    traffic: RecordedTraffic,
    topology: Topology | None,
    wishes: Wishes,
    folder: Path,
) -> Draft:
    """Draft an instance that is valid, with its comments.

    Parameters
    ----------
    model : ConfigModel
    traffic : RecordedTraffic
        What the recordings hold.
    topology : Topology or None
        The cluster's network, where it is known.
    wishes : Wishes
    folder : Path
        Where the instance file will be: recordings are named relative to it.

    Raises
    ------
    InputError
        What is given does not make an instance; every contradiction is listed, with the option that can change it.
    """
    draft = Draft()
    if wishes.system and wishes.gpu:
        raise InputError(Mistake(f"{wishes.gpu}", "one of --gpu and --system", "--gpu"))
    preset = wishes.system.preset if wishes.system else PRESETS[(wishes.gpu or "h100").lower()]
    nodes, per_node = _cluster_size(preset, topology, wishes)
    engine = wishes.engine or traffic.engine
    draft.data["name"] = wishes.name or f"{model.name.replace('_', '-')}-{nodes * per_node}x{preset.name.lower()}"
    if engine:
        draft.data["engine"] = engine
        said = "--engine" if wishes.engine else "as it wrote the recording (--engine)"
        draft.comments["engine",] = f"{said}: its rules on slots and replicas hold"
    _put_model(draft, model)
    _put_cluster(draft, preset, topology, wishes, (nodes, per_node))
    _put_parallelism(draft, wishes)
    _put_placement(draft, model, wishes, nodes * per_node, engine)
    _put_wires(draft, model)
    _put_traffic(draft, traffic, wishes, nodes, folder)
    draft.data["objective"] = {"metric": "time"}
    why = "what kernels of DeepEP and an engine's launches charge in simulated steps; plain: neither"
    draft.put("schedule", "kernels", {"preset": "deepep"}, why, assumed=True)
    _check(draft)
    return draft


def _cluster_size(preset: GpuPreset, topology: Topology | None, wishes: Wishes) -> tuple[int, int]:
    """Return nodes, and GPUs of each."""
    found = topology.gpus_per_node if topology else None
    per_node = wishes.gpus_per_node or found or min(preset.gpus_per_node, wishes.gpus or preset.gpus_per_node)
    known = len(topology.nodes) if topology else 0
    gpus = wishes.gpus or known * per_node
    if not gpus:
        raise InputError(Mistake("nothing", "the number of GPUs, or a topology that has it", "--gpus"))
    if gpus % per_node:
        raise InputError(Mistake(f"{gpus} GPUs", f"a multiple of {per_node} (--gpus-per-node)", "--gpus"))
    if known and gpus != known * per_node:
        expected = f"{known * per_node}: {known} nodes of {per_node} GPUs in the topology; --hosts chooses among them"
        raise InputError(Mistake(f"{gpus}", expected, "--gpus"))
    return gpus // per_node, per_node


def _put_model(draft: Draft, model: ConfigModel) -> None:
    draft.comments["model",] = f"from the config of {model.name}"
    for key, value in model.fields.items():
        draft.put("model", key, value, model.comments.get(key, ""))
    draft.assumed += model.notes


def _put_cluster(
    draft: Draft, preset: GpuPreset, topology: Topology | None, wishes: Wishes, size: tuple[int, int]
) -> None:
    nodes, per_node = size
    draft.put("cluster", "nodes", nodes)
    draft.put("cluster", "gpus_per_node", per_node)
    peak, of = preset.peak(draft.data["model"]["dtype"])
    gpu = {"name": preset.name, "memory_gb": preset.memory_gb, "peak_tflops": peak, "mfu": 0.6}
    gpu |= {"memory_bandwidth_tb_per_s": preset.memory_bandwidth_tb_per_s, "memory_utilization": 0.8}
    if "dtypes" in draft.data["model"]:
        gpu["dtype_tflops"] = dict(preset.tflops)
    draft.put("cluster", "gpu", gpu, f"{preset.source}; peak of {of}; mfu and memory_utilization are assumed")
    kind = "" if wishes.gpu or wishes.system else f"{preset.name} (--gpu); "
    draft.assumed.append(
        f"cluster.gpu: {kind}mfu 0.6 and memory_utilization 0.8 of the peaks, as fit an H100 (docs/kernels.md)"
    )
    draft.put("cluster", "nvlink_gb_per_s", preset.nvlink_gb_per_s, "one direction")
    domain = _put_domain(draft, preset, wishes, size)
    fabric, why, assumed = _fabric(preset, topology, wishes, nodes, domain)
    draft.put("cluster", "fabric", fabric, why)
    if topology and topology.nics:
        count = topology.nics[0]
        nics = {"per_node": count, "gb_per_s": fabric["node_gb_per_s"] / count, "receive": "source-rail"}
        draft.put("cluster", "nics", nics, "a rail for each; a copy stays on the rail that it starts on")
    if assumed:
        draft.assumed.append(
            f"cluster.fabric: {why.removeprefix('assumed: ')} (--topology, --nodes-per-leaf, --node-gb-per-s)"
        )
    if topology:
        draft.head.append(f"Nodes in order ({topology.format}): {topology.host_list}")
        draft.assumed += topology.notes


def _put_domain(draft: Draft, preset: GpuPreset, wishes: Wishes, size: tuple[int, int]) -> bool:
    """Set the nodes that NVLink joins, where it joins several; return whether they are set."""
    nodes, per_node = size
    domain = min(nodes, preset.nvlink_gpus // per_node)
    if domain < 2:
        return False
    joins = f"NVLink joins {preset.nvlink_gpus} GPUs ({preset.source})"
    if wishes.dispatch == "per-node":
        expected = f"a node for each token's copy is a rack there: --gpus-per-node {preset.nvlink_gpus}"
        draft.assumed.append(f"cluster.nvlink_domain_nodes is left out with --dispatch per-node: {joins}; {expected}")
        return False
    draft.put("cluster", "nvlink_domain_nodes", domain, f"{joins}: no link of the fabric between these nodes")
    return True


def _fabric(
    preset: GpuPreset, topology: Topology | None, wishes: Wishes, nodes: int, domain: bool
) -> tuple[dict[str, Any], str, bool]:
    """Return the section, what stands beside it, and whether some of it is assumed.

    Parameters
    ----------
    preset : GpuPreset
    topology : Topology or None
    wishes : Wishes
    nodes : int
    domain : bool
        Whether racks are NVLink domains of the cluster; else those of a system file are leaves.
    """
    measured = topology.node_gb_per_s if topology else None
    known = topology if topology and topology.nodes_per_leaf else None
    system = wishes.system if wishes.system and wishes.system.nodes_per_rack and not topology else None
    racks = None if domain else system
    leaf = wishes.nodes_per_leaf or (known.nodes_per_leaf if known else racks.nodes_per_rack if racks else None)
    spines = wishes.spines or (known.spines if known else None)
    over = wishes.oversubscription or (known.oversubscription if known else racks.oversubscription if racks else None)
    said, assumed = [], []
    for option, value in (("--oversubscription", wishes.oversubscription), ("--spines", wishes.spines)):
        if leaf is None and value is not None:
            raise InputError(Mistake(f"{value:g}", "--nodes-per-leaf or --topology with it", option))
    if leaf is None:
        assumed.append("all nodes on one switch that never blocks, so that the nodes' NICs alone count")
        leaf, spines, over = nodes, 1, 1.0
    elif racks and not wishes.nodes_per_leaf:
        said.append(f"leaves are racks, joined by inter_rack_bw of {preset.source}")
    elif known:
        said.append(f"switches as in {known.format}")
    if over is None:
        assumed.append("no oversubscription (--oversubscription)")
    if spines is None:
        said.append("4 spines, whose number changes no cost, since ECMP is even")
    if not wishes.node_gb_per_s:
        source = topology.format if topology and measured else preset.source
        (said if measured else assumed).append(f"node_gb_per_s as in {source}")
    node = preset.node_gb_per_s / ((system.oversubscription or 1.0) if system and domain else 1.0)
    fabric = {
        "kind": "fat-tree",
        "nodes_per_leaf": min(leaf, nodes),
        "spines": spines or 4,
        "node_gb_per_s": wishes.node_gb_per_s or measured or node,  # of a system with racks, what joins racks
        "oversubscription": over or 1.0,
        "link_utilization": 0.9,  # fits DeepEP's tables (docs/kernels.md)
    }
    fabric |= _pods(None if wishes.nodes_per_leaf else known, assumed)
    if assumed:
        said.append(f"assumed: {', '.join(assumed)}")
    return fabric, "; ".join(said), bool(assumed)


def _pods(known: Topology | None, assumed: list[str]) -> dict[str, Any]:
    """Return what a third level of switches adds to the section, and note what is assumed of it."""
    if known is None or known.leaves_per_pod is None:
        return {}
    if known.pod_oversubscription is None:
        assumed.append("no oversubscription above pods (cluster.fabric.pod_oversubscription)")
    return {
        "kind": "fat-tree-3",
        "leaves_per_pod": known.leaves_per_pod,
        "cores": known.cores or 1,
        "pod_oversubscription": known.pod_oversubscription or 1.0,
    }


def _put_parallelism(draft: Draft, wishes: Wishes) -> None:
    draft.put("parallelism", "dp", 1)
    comment = "GPUs that share attention; 1 is data-parallel attention, where each GPU starts tokens of its own"
    if wishes.attention_tp is None:
        draft.put("parallelism", "attention_tp", 1, f"{comment} (--attention-tp)", assumed=True)
    else:
        draft.put("parallelism", "attention_tp", wishes.attention_tp, comment)


def _put_placement(draft: Draft, model: ConfigModel, wishes: Wishes, gpus: int, engine: str | None) -> None:
    experts = model.fields["experts"]
    if wishes.redundant_slots is not None and wishes.slots_per_gpu is not None:
        expected = "one of them: slots = experts + redundant slots = GPUs x slots per GPU"
        raise InputError(Mistake("both", expected, "--redundant-slots, --slots-per-gpu"))
    if wishes.redundant_slots is not None:
        extra = wishes.redundant_slots
        slots = -(-(experts + extra) // gpus)
    else:
        slots = wishes.slots_per_gpu or -(-experts // gpus)
        extra = slots * gpus - experts
    said = f"{slots * gpus} slots" if slots * gpus == experts + extra else f"{experts + extra} of {slots * gpus} slots"
    draft.put("placement", "slots_per_gpu", slots, f"{gpus} GPUs: {said}")
    chosen = wishes.redundant_slots is not None or wishes.slots_per_gpu is not None
    if extra < 0:
        found = f"{slots} on {gpus} GPUs: {slots * gpus} slots for {experts} experts"
        raise InputError(Mistake(found, f"at least {-(-experts // gpus)}", "--slots-per-gpu"))
    comment = "replicas beyond one of each expert, in every layer" + (
        "" if chosen else ", so many that all slots are full"
    )
    draft.put("placement", "replicas", {"redundant_slots": extra}, comment, assumed=not chosen)
    routing, own = "a token takes any replica with equal chance", ENGINES[engine] if engine else None
    if own is not None and own.replica_routing != "even":
        does = "prefers near replicas" if own.replica_routing == "near-first" else "has one replica for each rank"
        instead = f" ({own.routing_rule} plans for that)" if own.routing_rule else ""
        draft.put("placement", "replica_routing", "even", f"{routing}; {own.title} {does}{instead}", True)
    else:
        draft.put("placement", "replica_routing", "even", routing)
    draft.put("placement", "replicas_apart", "gpu")
    what = {"per-expert": "expert", "per-gpu": "GPU with an expert", "per-node": "node with an expert"}
    dispatch = wishes.dispatch or "per-expert"
    sent = f"between nodes, a token is sent once for every {what[dispatch]} that it chose"
    kernels = ", ".join(f"{kernel}: {unit}" for kernel, unit in ENGINES[engine].dispatch.items()) if engine else ""
    comment = f"{sent} ({kernels})" if kernels else sent
    draft.put("placement", "dispatch", dispatch, comment, assumed=wishes.dispatch is None)


def _put_wires(draft: Draft, model: ConfigModel) -> None:
    """Say in which precision tokens travel, where the model has several."""
    if "dtypes" in model.fields:
        there = "fp8" if model.fields["dtype"] == "fp8" else "bf16"
        draft.put("placement", "dispatch_dtype", there, "as DeepEP sends tokens to experts of this precision", True)
        draft.put("placement", "combine_dtype", "bf16", "results come back in the precision of hidden states", True)


def _put_traffic(draft: Draft, traffic: RecordedTraffic, wishes: Wishes, nodes: int, folder: Path) -> None:
    draft.comments["traffic",] = traffic.comment
    draft.put("traffic", "kind", traffic.kind, traffic.kind_comment)
    names = [Path(os.path.relpath(file, folder)).as_posix() for file in traffic.files]
    draft.put("traffic", "files", names)
    if len(traffic.files) == 1 and traffic.sources and traffic.sources % nodes == 0:
        comment = f"{traffic.sources} source ranks: each node has the traffic of its own"
        draft.put("traffic", "sources", "recorded", comment)
    elif traffic.sources:
        draft.assumed.append(
            f"traffic: the recording's {traffic.sources} source ranks do not fit {nodes} nodes: all alike"
        )
    tokens = wishes.tokens_per_gpu
    comment = "that start on each GPU in one step (--tokens-per-gpu)"
    draft.put("traffic", "tokens_per_gpu", 1024.0 if tokens is None else tokens, comment, assumed=tokens is None)


# The option that changes a field.
_OPTIONS: Mapping[str, str] = {
    "placement.replicas.redundant_slots": "--redundant-slots",
    "placement.slots_per_gpu": "--slots-per-gpu",
    "cluster.nodes": "--gpus",
    "cluster.gpus_per_node": "--gpus-per-node",
    "cluster.fabric.node_gb_per_s": "--node-gb-per-s",
    "cluster.fabric.nodes_per_leaf": "--nodes-per-leaf",
    "cluster.fabric.oversubscription": "--oversubscription",
    "cluster.fabric.spines": "--spines",
    "parallelism.attention_tp": "--attention-tp",
    "traffic.tokens_per_gpu": "--tokens-per-gpu",
    "name": "--name",
}


def _check(draft: Draft) -> None:
    """Refuse what would not be an instance, naming the options that say so."""
    try:
        Instance.model_validate(draft.data)
    except InputError as error:
        mistakes: Sequence[Mistake] = error.mistakes
    except ValidationError as error:
        mistakes = [
            Mistake(str(detail["input"])[:60], detail["msg"][:1].lower() + detail["msg"][1:], _dotted(detail["loc"]))
            for detail in error.errors(include_url=False)
        ]
    else:
        return
    raise InputError([Mistake(m.found, m.expected, _OPTIONS.get(m.path, m.path)) for m in mistakes])


def _dotted(path: Sequence[int | str]) -> str:
    """Write a path of pydantic's without the names of alternatives, which are no fields."""
    return ".".join(str(part) for part in path if part not in {"fat-tree", "full-mesh", "load", "trace", "budget"})
