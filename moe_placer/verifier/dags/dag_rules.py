"""The rules that a written DAG must keep, and how a breach is told."""

from __future__ import annotations

from dataclasses import dataclass

from moe_placer.errors import visible

__all__ = ["DAG_RULES", "TOLERANCE", "DagViolation", "differs"]

DAG_RULES: tuple[str, ...] = (
    "dag-form",  # operations and edges have the fields that they should have, of the right type
    "dag-twin",  # .dot and .json say the same
    "dag-acyclic",  # nothing waits for itself
    "dag-connected",  # every operation is on a path from an input to an output
    "dag-shapes",  # every tensor has one shape at both ends, and the bytes of that shape
    "dag-arithmetic",  # FLOPs, bytes and tokens of an operation follow from its inputs and the model
    "dag-layers",  # the layers are the model's, each with everything it needs
    "dag-gpus",  # every operation has GPUs, and they are those that should do it
    "dag-communication",  # tensors between GPUs pass an operation that communicates; MHA and gating are dashed
    "dag-experts",  # every expert replica of every MoE layer is there exactly once, on the GPUs of the placement
    "dag-traffic",  # tokens per edge, routes and link costs are those of the placement
    "dag-operators",  # operators are those of their operation, with shapes, costs, norms and residuals as they must be
)
TOLERANCE = 1e-6  # relative; files have twelve digits, and means over merged tensors nine


@dataclass(frozen=True)
class DagViolation:
    """One rule that a DAG breaks in one place.

    Attributes
    ----------
    rule : str
        One of `DAG_RULES`.
    dag : str
        Name of its file, without suffix.
    where : str
        Id of an operation, ``source -> target`` of an edge, or empty for the whole.
    message : str
        What is wrong, and what is required.
    """

    rule: str
    dag: str
    where: str
    message: str

    def __str__(self) -> str:
        place = f"{self.dag}, {self.where}" if self.where else self.dag
        return visible(f"[{self.rule}] {place}: {self.message}")


def differs(found: float, required: float) -> bool:
    """Whether two figures differ by more than rounding."""
    return not abs(found - required) <= TOLERANCE * max(1.0, abs(found), abs(required))
