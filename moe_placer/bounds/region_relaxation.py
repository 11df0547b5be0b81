"""Link weights of a large layer from its relaxation with leaves as places, which has as many fewer variables."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.clustered import relax_clustered
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.regions import Region, innermost, merge

__all__ = ["weights_by_region"]


def weights_by_region(
    layer: LayerProblem, region: Region, time_limit_s: float | None = None
) -> npt.NDArray[np.float64] | None:
    """Return link weights [K] that are even over the nodes of each innermost region; None if time ran out.

    Whatever weights prove is proved of single nodes: regions only lead to them.
    """
    merged = merge(layer, innermost(region), np.arange(layer.items), outside=True)
    found = relax_clustered(merged.layer, time_limit_s)
    return None if found is None else merged.spread(found[1], layer.links)
