"""Solvers that fail or lie, installed as another package's plug-ins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["environment_with_plug_ins"]

_CLASSES = {
    "silent": "Silent",
    "invalid": "Invalid",
    "crowded": "Crowded",
    "wrong-z": "WrongZ",
    "false-bound": "FalseBound",
    "above-z": "AboveZ",
    "infeasible": "Infeasible",
    "nothing": "Nothing",
    "raises": "Raises",
    "leaves": "Leaves",
    "killed": "Killed",
    "memory": "Memory",
    "hang": "Hang",
    "once": "Once",
    "eats": "Eats",
    "detaches": "Detaches",
    "short": "Short",
    "nowhere": "Nowhere",
    "no-number": "NoNumber",
    "word": "Word",
    "garbles": "Garbles",
    "refuses": "Refuses",
    "lacking": "Lacking",
}


def environment_with_plug_ins(folder: Path) -> dict[str, str]:
    """Install the plug-ins in a folder; return an environment whose Python finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parent / "misbehaving" / "plugs.py", folder / "plugs.py")
    info = folder / "plugs-2.5.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugs\nVersion: 2.5\n")
    points = [f"{name} = plugs:{found}" for name, found in {**_CLASSES, "broken": "Broken"}.items()]
    (info / "entry_points.txt").write_text("[moe_placer.solvers]\n" + "\n".join(points) + "\n")
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *([before] if before else [])])}
