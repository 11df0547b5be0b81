"""Runs SGLang's own EPLB, from the sources that `make engines` fetches: ``python engine_eplb.py SOURCES LOAD OUT ...``.

A process of the engines' environment, which has torch, and not moe_placer.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np

__all__ = ["main"]


def main(sources: str, load: str, out: str, slots: str, nodes: str, gpus: str) -> None:
    """Plan from loads [layers, experts]; write the expert of each slot [layers, slots], and print CPU seconds."""
    import torch

    torch.set_num_threads(1)
    file = Path(sources) / "sglang" / "srt" / "eplb" / "eplb_algorithms" / "deepseek.py"
    spec = importlib.util.spec_from_file_location("engine_original", file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    weight = torch.tensor(np.load(load))
    began = time.process_time()
    # Every expert is its own group, as in moe_placer's `eplb`: packed to nodes, replicated within them, packed to GPUs.
    expert_of_slot, _, _ = module.rebalance_experts(
        weight,
        num_replicas=int(slots),
        num_groups=weight.shape[1],
        num_nodes=int(nodes),
        num_gpus=int(gpus),
        enable_hierarchical=weight.shape[1] % int(nodes) == 0,
    )
    cpu_s = time.process_time() - began
    np.save(out, expert_of_slot.numpy())
    sys.stdout.write(json.dumps({"cpu_s": cpu_s}))


if __name__ == "__main__":
    main(*sys.argv[1:])
