"""Instances from 128 to 16,384 GPUs after ``scale-1024``, and the rows that solving them gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.checkouts import REPOSITORY, Checkout
from benchmarks.kept_runs import Row

__all__ = ["FAMILIES", "LAYERS", "instance_of", "ladder_rows"]


FAMILIES = ("two replicas", "redundant slots")
LAYERS = 4
_GPUS_PER_NODE, _MOST_EXPERTS = 8, 512
_SCRIPT = Path(__file__).with_name("measured_solve.py")


def instance_of(family: str, gpus: int, layers: int = LAYERS) -> dict[str, Any]:
    """Return the content of an instance: some layers, one slot a GPU, 8 GPUs a node, 8 nodes a leaf, leaves 2:1.

    ``two replicas`` has half as many experts as GPUs, and two DP groups that use a replica each, as ``scale-1024`` has.
    ``redundant slots`` has 512 experts (half as many as GPUs where these are fewer), and a replica in every slot, as
    many of each expert as the solver chooses.
    """
    content: dict[str, Any] = yaml.safe_load((REPOSITORY / "instances" / "scale-1024.yaml").read_text("utf-8"))
    content["name"] = f"{family.replace(' ', '-')}-{gpus}"
    content["model"]["layers"] = layers
    content["cluster"]["nodes"] = gpus // _GPUS_PER_NODE
    if family == "two replicas":
        content["model"]["experts"] = gpus // 2
        return content
    content["model"]["experts"] = min(_MOST_EXPERTS, gpus // 2)
    content["parallelism"]["dp"] = 1
    content["placement"]["replicas"] = {"redundant_slots": gpus - content["model"]["experts"]}
    content["placement"]["replica_routing"] = "even"
    return content


def ladder_rows(
    checkout: Checkout, sizes: Sequence[int], scratch: Path, time_limit_s: float, layers: int = LAYERS
) -> Iterator[Row]:
    """Yield a row for every family and size, each from a process of its own on one core.

    Parameters
    ----------
    checkout : Checkout
        Whose code is measured.
    sizes : sequence of int
        GPUs.
    scratch : Path
        A folder for instances.
    time_limit_s : float
        Seconds for each solve.
    layers : int
        Of each instance.
    """
    for family in FAMILIES:
        for gpus in sizes:
            file = scratch / f"{family.replace(' ', '-')}-{gpus}.yaml"
            file.write_text(yaml.safe_dump(instance_of(family, gpus, layers)), encoding="utf-8")
            head = {"commit": checkout.commit, "family": family, "gpus": gpus, "layers": layers}
            yield head | _measured(checkout, file, time_limit_s)


def _measured(checkout: Checkout, file: Path, time_limit_s: float) -> Row:
    tiny = REPOSITORY / "instances" / "tiny.yaml"
    command = [sys.executable, str(_SCRIPT), str(checkout.folder), str(tiny), str(file), str(time_limit_s)]
    environment = {**os.environ, "PYTHONPATH": str(checkout.folder), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]}
    found: Row = json.loads(done.stdout)
    return found
