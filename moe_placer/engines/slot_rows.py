"""The rows of a plan for vLLM's plug-in: read from a file, and held to what the engine asks for.

An engine's process imports this before anything is known: nothing but the standard library is used.
"""

from __future__ import annotations

import json

__all__ = ["mismatch", "plan_rows"]


def plan_rows(raw: bytes) -> list[list[int]]:
    """Return the rows of a plan: one for all MoE layers, or one for each.

    Raises
    ------
    ValueError
        It is not a list of whole numbers, or a list of such lists of one length.
    """
    content = json.loads(raw)
    rows = content if isinstance(content, list) and content and isinstance(content[0], list) else [content]
    for row in rows:
        if not isinstance(row, list) or not row or not all(type(entry) is int for entry in row):
            raise ValueError("it holds something other than lists of whole numbers")
        if len(row) != len(rows[0]):
            raise ValueError("its rows differ in length")
    return rows


def mismatch(rows: list[list[int]], layers: int, experts: int, slots: int, ranks: int) -> str:
    """Say why a plan does not fit what vLLM asks for; empty where it does.

    Parameters
    ----------
    rows : list of lists
    layers, experts, slots, ranks : int
        MoE layers, logical experts, physical experts, expert-parallel ranks.
    """
    if len(rows) not in (1, layers):
        return f"it has {len(rows)} rows, and the model {layers} MoE layers"
    if len(rows[0]) != slots:
        return f"it has {len(rows[0])} slots in a layer, and vLLM {slots} physical experts"
    if slots % ranks:
        return f"{slots} slots are no multiple of {ranks} ranks"
    for layer, row in enumerate(rows):
        if min(row) < 0 or max(row) >= experts:
            return f"row {layer} names an expert that is not among 0 to {experts - 1}"
        if len(set(row)) != experts:
            return f"row {layer} lacks {experts - len(set(row))} of {experts} experts"
    return ""
