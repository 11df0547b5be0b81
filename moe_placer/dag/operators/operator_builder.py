"""Builds the graph of operators: adds an operator with its costs, and tensors whole or in parts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from moe_placer.dag.graph_builder import DASHED
from moe_placer.dag.operation import Dag, Edge, Kind, Operation, Shape, value_bytes
from moe_placer.instance import Instance
from moe_placer.instance.model_parts import Part, dtype_of, part_bytes

__all__ = ["Attended", "OperatorBuilder"]


@dataclass(frozen=True)
class Attended:
    """What tokens attend to, which an instance does not state.

    Attributes
    ----------
    phase : str
        ``prefill``: those before it in a sequence of ``context`` tokens; ``decode``: ``context`` tokens in the cache.
    context : float
        Tokens.
    """

    phase: str = "prefill"
    context: float = 4096.0

    @property
    def seen(self) -> float:
        """Tokens that a token attends to, on average: with a causal mask half of a sequence."""
        return self.context if self.phase == "decode" else (self.context + 1) / 2


class OperatorBuilder:
    """Builds a graph of operators from the coarse graph that it refines.

    Attributes
    ----------
    exits : dict
        Id of a coarse operation to the operator that makes its result.
    """

    def __init__(self, coarse: Dag, instance: Instance, attended: Attended) -> None:
        self.coarse, self.instance, self.attended = coarse, instance, attended
        self.dag = Dag(coarse.name, dict(coarse.facts), coarse.routes)
        self.dtype, self.precision = dtype_of(instance.model, "activations"), part_bytes(instance.model, "activations")
        self.exits: dict[str, Operation] = {}
        self._normed: dict[str, Operation] = {}

    def add(
        self,
        whole: Operation,
        kind: Kind,
        module: str,
        function: str,
        *,
        weight: Shape = (),
        of: Part = "activations",
        flops: float = 0.0,
        vector_flops: float = 0.0,
        cache_bytes: float = 0.0,
        name: str = "",
        part: bool = True,
    ) -> Operation:
        """Add an operator of a coarse operation, on its GPUs.

        Parameters
        ----------
        whole : Operation
            The coarse operation.
        kind : str
            What it does.
        module, function : str
            Name as in Megatron-Core, below ``decoder.layers.N.``, and the PyTorch operator that computes it.
        weight : tuple of float
            Shape of the weight on each GPU, as PyTorch has it: outputs, inputs.
        of : str
            Part of the model that the weight belongs to, which has its precision.
        flops, vector_flops : float
            Of all GPUs: multiplications and additions of matrices, which the coarse level counts, and others.
        cache_bytes : float
            Keys or values read, on all GPUs.
        name : str
            Id; empty: the coarse operation's with the kind behind it.
        part : bool
            Whether the coarse level counts it.
        """
        op = Operation(
            name or f"{whole.id}.{kind}", kind, whole.gpus, whole.layer, whole.group, flops, experts=whole.experts
        )
        op.bytes_read = math.prod(weight) * part_bytes(self.instance.model, of) * (len(whole.gpus) if weight else 0)
        if part:
            op.detail["part_of"] = whole.id
        layer = "" if whole.layer is None else f"decoder.layers.{whole.layer}."
        op.detail |= {"module": f"{layer}{module}", "op": function}
        if weight:
            op.detail["weight"] = tuple(weight)
        op.detail |= {
            key: value for key, value in (("vector_flops", vector_flops), ("cache_bytes", cache_bytes)) if value
        }
        return self.dag.add(op)

    def link(self, source: Operation, target: Operation, tensor: str, shape: Shape, *, parts: int = 1) -> None:
        """Hand a tensor on between operators of the same GPUs.

        Parameters
        ----------
        source, target : Operation
        tensor : str
        shape : tuple of float
            Of one part.
        parts : int
            GPUs that it is divided over; 1: every GPU has all of it.
        """
        size = math.prod(shape) * parts * value_bytes(self.dtype, self.precision)
        self.connect(Edge(source.id, target.id, tensor, shape, self.dtype, size, "same-gpu", parts=parts))

    def connect(self, edge: Edge) -> None:
        """Add a tensor, and count it among what its target reads; dashed is what a collective of MHA or gating ends."""
        ends = {self.dag.operation(edge.source).kind, self.dag.operation(edge.target).kind}
        self.dag.connect(replace(edge, dashed=bool(ends & DASHED)))
        self.dag.operation(edge.target).bytes_read += edge.bytes

    def copy(self, op: Operation, module: str = "", function: str = "") -> None:
        """Take an operation over as it is, with all that comes into it."""
        kept = replace(op, inputs={}, outputs={}, detail={})
        kept.bytes_read = op.bytes_read - sum(edge.bytes for edge in self.coarse.incoming(op.id))
        if module:
            kept.detail |= {"module": module, "op": function}
        self.exits[op.id] = self.dag.add(kept)
        for edge in self.coarse.incoming(op.id):
            self.bring(edge, kept)

    def bring(self, edge: Edge, target: Operation, source: Operation | None = None) -> None:
        """Bring a tensor of the coarse graph to the operator that needs it."""
        source = source or self.source_of(edge)
        self.connect(replace(edge, source=source.id, target=target.id))

    def source_of(self, edge: Edge) -> Operation:
        """Return what makes a tensor of the coarse graph; before an MLP, gate or dispatch, the norm of it."""
        made = self.exits[edge.source]
        wants_norm = edge.tensor.partition(".")[0] in {"attended", "leaving"}
        if wants_norm and self.coarse.operation(edge.target).kind != "aggregate":
            return self.norm(made, "pre_mlp_layernorm", self.coarse.operation(edge.source))
        return made

    def norm(self, made: Operation, kind: Kind, whole: Operation) -> Operation:
        """Return the norm of what an operator makes, added where it is not there yet.

        Parameters
        ----------
        made : Operation
            Makes the hidden states.
        kind : str
            Which norm.
        whole : Operation
            Coarse operation whose GPUs and layer it has.
        """
        key = f"{made.id}>{kind}"
        if key not in self._normed:
            tokens, width, group = self.tokens(whole), self.instance.model.hidden_size, whole.id.rpartition(".")[2]
            name = f"L{whole.layer}.{kind}.{group}"
            op = self.add(whole, kind, kind, "aten::rms_norm", vector_flops=4 * tokens * width, name=name, part=False)
            op.bytes_read, op.detail["weight"] = width * self.precision, (float(width),)
            self.link(made, op, f"{kind}_in.{group}", (tokens, width))
            self._normed[key] = op
        return self._normed[key]

    def add_residual(self, whole: Operation, kind: Kind, block: Operation, residual: Operation) -> Operation:
        """Add what a block makes to what went into it.

        Parameters
        ----------
        whole : Operation
            Coarse operation whose GPUs it is on.
        kind : str
            ``self_attn_bda`` or ``mlp_bda``.
        block, residual : Operation
            What makes the two.
        """
        tokens, width = self.tokens(whole), self.instance.model.hidden_size
        group = whole.id.rpartition(".")[2]
        name = f"L{whole.layer}.{kind}.{group}"
        op = self.add(whole, kind, kind, "aten::add", vector_flops=tokens * width, name=name, part=False)
        self.link(block, op, f"{kind}_block.{group}", (tokens, width))
        self.link(residual, op, f"{kind}_residual.{group}", (tokens, width))
        return op

    def tokens(self, op: Operation) -> float:
        """Tokens of a coarse operation's results, or of what comes into it where nothing comes out yet."""
        shapes = op.outputs or op.inputs
        return next(shape[0] for name, shape in shapes.items() if name.partition(".")[0] != "leaving")
