"""The deployment DAG as arrays: what every operation costs, on which streams it runs, and what it waits for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.dag.build import add_step
from moe_placer.dag.flows import Flows, read_flows
from moe_placer.dag.operation import Kind, Operation
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.schedule.ledger import Ledger
from moe_placer.schedule.nic_ends import Ends, NicEnds, shares_of_ports
from moe_placer.traffic.recording import Traffic

__all__ = ["COLLECTIVES", "COMPUTATION", "HEAD", "JOINED", "ONCE", "SENDS", "STREAMS", "Program", "compile_program"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

STREAMS = ("compute", "nvlink", "network")  # of every GPU; stream id = GPU * 3 + index
COMPUTATION = frozenset({"embedding", "attention", "mlp", "gate", "expert", "aggregate", "norm", "head", "sample"})
REDUCES = frozenset({"embedding_reduce", "attention_reduce", "mlp_reduce", "expert_reduce", "sample_reduce"})
# Small, and between two collectives: on their stream, so that one micro-batch's tokens leave while the other attends.
GATING = frozenset({"gate", "gate_scatter"})
COLLECTIVES = REDUCES | {"gate_scatter", "split", "gather"}
SENDS = frozenset({"dispatch_send", "combine_send"})
HEAD = frozenset({"norm", "head", "sample"})  # what makes a token of a hidden state
JOINED = HEAD | {"sample_reduce"}  # once, too, in engines that join micro-batches behind the last layer
ONCE = frozenset({"input", "split", "gather", "output"})  # in a step, however many micro-batches it has


@dataclass(frozen=True, eq=False)
class Program:
    """The P operations of one step, in the order of the DAG; amounts are for the instance's own tokens per GPU.

    Attributes
    ----------
    instance : Instance
    names, kinds : tuple of str
        Id and kind of each operation.
    gpus : tuple of tuple of int
        Global GPU ids of each.
    layer : int array [P]
        Index in the model; -1 outside the layers.
    flops : float array [P]
        On each of its GPUs; without what attention does with the context.
    weights : float array [P]
        Bytes of weights that each of its GPUs reads, however many tokens there are.
    fed : float array [P]
        Bytes of tensors that each of its GPUs reads.
    attending : float array [P]
        Tokens of an attention's tensor-parallel group; 0 elsewhere.
    nvlink, network : float array [P]
        Bytes that come to an operation over NVLink and over the network (all its GPUs together), dispatch and combine
        excepted; what a send moves within its node, with ``per-node`` what the node receives and forwards included.
    sent : dict
        Index of a dispatch or combine send to the bytes that leave its node for each node [N].
    home : int array [P]
        Node of a send; -1 elsewhere.
    after : tuple of tuple of int
        Operations that wait for each.
    expert_tokens : float array [layers, GPUs]
        Tokens that the experts of each GPU receive in each layer.
    tokens : float array [P]
        What each works on; a token that a send sends to several experts counts for each.
    experts : tuple of tuple of (expert, replica)
        Those that each computes.
    ends : dict
        Index of a send to the NICs at both of its ends; empty where no NIC receives for single GPUs.
    """

    instance: Instance
    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    gpus: tuple[tuple[int, ...], ...]
    layer: Ints
    flops: Floats
    weights: Floats
    fed: Floats
    attending: Floats
    nvlink: Floats
    network: Floats
    sent: dict[int, Floats]
    home: Ints
    after: tuple[tuple[int, ...], ...]
    expert_tokens: Floats
    tokens: Floats
    experts: tuple[tuple[tuple[int, int], ...], ...]
    ends: dict[int, Ends]

    def __len__(self) -> int:
        return len(self.names)

    def of_kinds(self, kinds: frozenset[str]) -> npt.NDArray[np.bool_]:
        """Mask [P] of the operations of some kinds."""
        return np.array([kind in kinds for kind in self.kinds])

    def streams(self, operation: int) -> tuple[int, ...]:
        """Return the streams that an operation occupies: one of each of its GPUs, or none."""
        kind = self.kinds[operation]
        if kind in REDUCES or kind in GATING:
            stream = 1
        elif kind in COMPUTATION:
            stream = 0
        elif kind in SENDS or kind in COLLECTIVES:
            stream = 2
        else:
            return ()  # inputs, outputs, and receivers, which only wait
        return tuple(len(STREAMS) * gpu + stream for gpu in self.gpus[operation])


def compile_program(instance: Instance, placement: Placement, traffic: Traffic, *, stand_ins: bool = False) -> Program:
    """Sum up the deployment DAG of a placement as arrays, without its graph.

    Parameters
    ----------
    instance : Instance
    placement : Placement
    traffic : Traffic
        Routing statistics of the instance's sources.
    stand_ins : bool
        Whether replicas of one expert on the same GPUs are one replica that stands in for others, as what-ifs have
        them.

    Raises
    ------
    InputError
        Placement or traffic do not fit the instance.
    """
    flows = read_flows(instance, placement, traffic, stand_ins=stand_ins)
    ledger = Ledger(instance, flows)
    add_step(ledger, range(instance.model.layers))
    operations = ledger.operations
    forwarders = _forwarders(ledger)
    size = np.array([len(op.gpus) for op in operations], dtype=np.float64)
    fed, own = np.array(ledger.fed), np.array([op.bytes_read for op in operations])
    looked_up = np.array([op.kind == "embedding" for op in operations])  # rows, one for every token
    arriving = np.array(ledger.first_in)
    tokens = np.where(np.isnan(arriving), ledger.first_out, arriving)
    tokens[list(ledger.made)] = list(ledger.made.values())
    per_node = instance.cluster.gpus_per_node
    return Program(
        instance=instance,
        names=tuple(ledger.index),
        kinds=tuple(op.kind for op in operations),
        gpus=tuple(op.gpus for op in operations),
        layer=np.array([-1 if op.layer is None else op.layer for op in operations]),
        flops=np.array([op.flops for op in operations]) / size,
        weights=np.where(looked_up, 0.0, own) / size,
        fed=np.where(looked_up, own + fed, fed) / size,
        attending=np.where([op.kind == "attention" for op in operations], arriving, 0.0),
        nvlink=_over_nvlink(ledger, forwarders),
        network=np.array(ledger.network),
        sent=ledger.sent,
        home=np.array([op.gpus[0] // per_node if op.kind in SENDS else -1 for op in operations]),
        after=_after(ledger, forwarders),
        expert_tokens=_expert_tokens(instance, operations, tokens),
        tokens=tokens,
        experts=tuple(op.experts for op in operations),
        ends=_ends(instance, operations, flows),
    )


def _ends(instance: Instance, operations: list[Operation], flows: Flows) -> dict[int, Ends]:
    """Find the NICs at both ends of every send, where these receive for single GPUs."""
    nics, known = flows.receivers, NicEnds.of(instance)
    if nics is None or known is None:
        return {}
    row = {layer: index for index, layer in enumerate(instance.moe_layers)}
    shares: dict[int, Floats] = {}
    found = {}
    for p, op in enumerate(operations):
        if op.kind in SENDS and op.layer is not None:
            if op.layer not in shares:
                shares = {op.layer: shares_of_ports(flows, nics, row[op.layer])}  # operations come layer by layer
            home, there = op.gpus[0] // instance.cluster.gpus_per_node, shares[op.layer]
            dispatch = op.kind == "dispatch_send"
            found[p] = known.dispatch(home, there[home]) if dispatch else known.combine(home, there[:, home])
    return found


def _forwarders(ledger: Ledger) -> dict[int, int]:
    """Find for every receiver that forwards tokens over NVLink the dispatch send of its node, which is when it does."""
    per_node = ledger.instance.cluster.gpus_per_node
    sends = {
        (op.layer, op.gpus[0] // per_node): p for p, op in enumerate(ledger.operations) if op.kind == "dispatch_send"
    }
    receivers = {p: ledger.operations[p] for p in ledger.forwarded}
    return {p: sends[op.layer, op.gpus[0] // per_node] for p, op in receivers.items()}


def _after(ledger: Ledger, forwarders: dict[int, int]) -> tuple[tuple[int, ...], ...]:
    """List the operations that wait for each: those with its tensors; a receiver also for what it forwards."""
    after = ledger.after
    for receiver, send in forwarders.items():
        after[send].append(receiver)
    return tuple(tuple(dict.fromkeys(some)) for some in after)


def _over_nvlink(ledger: Ledger, forwarders: dict[int, int]) -> Floats:
    """Bytes that come to every operation over NVLink; what a send moves within its node.

    A node forwards what it receives while it arrives: next to what its send moves inside the node. Every GPU of a
    sharded expert gets a copy.
    """
    nvlink = np.array(ledger.nvlink)
    for send, (over_nvlink, on_gpu) in ledger.stays.items():
        nvlink[send] += over_nvlink if forwarders else over_nvlink + on_gpu
    for receiver, send in forwarders.items():
        nvlink[send] += ledger.forwarded[receiver]
    return nvlink


def _expert_tokens(instance: Instance, operations: list[Operation], tokens: Floats) -> Floats:
    found = np.zeros((instance.model.layers, instance.gpus))
    experts = [(op, n) for op, n in zip(operations, tokens.tolist(), strict=True) if op.kind == "expert"]
    at = [(op.layer, gpu) for op, _ in experts if op.layer is not None for gpu in op.gpus]
    arriving = [n for op, n in experts if op.layer is not None for _ in op.gpus]
    layer, on = np.array(at, dtype=np.int64).reshape(-1, 2).T
    np.add.at(found, (layer, on), arriving)
    return found
