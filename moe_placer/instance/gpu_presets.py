"""GPUs by name, with the figures that their makers state and where these stand.

Peaks are dense: where a data sheet states them with sparsity, half of it. Bandwidths are of one direction: half of
the sum of both that data sheets state. Network figures are of the maker's reference node: change them to what the
cluster has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NAMES", "PRESETS", "GpuPreset", "with_preset"]


@dataclass(frozen=True)
class GpuPreset:
    """One kind of GPU, and the node that its maker sells it in.

    Attributes
    ----------
    name : str
    source : str
        Title of the document that the figures are from.
    memory_gb, memory_bandwidth_tb_per_s : float
        In 1e9 bytes, and 1e12 bytes per second.
    tflops : mapping
        Dense peak by precision, TFLOP/s; a precision that is not there runs as the next larger one.
    nvlink_gb_per_s : float
        To the other GPUs of the node, one direction, GB/s.
    gpus_per_node : int
    node_gb_per_s : float
        NICs of the node together, one direction, GB/s.
    nvlink_gpus : int
        GPUs that NVLink joins, where these are more than a node has: a rack; else 0.
    """

    name: str
    source: str
    memory_gb: float
    memory_bandwidth_tb_per_s: float
    tflops: Mapping[str, float]
    nvlink_gb_per_s: float
    gpus_per_node: int
    node_gb_per_s: float
    nvlink_gpus: int = 0

    def peak(self, dtype: str) -> tuple[float, str]:
        """Return the peak of a precision, and the precision that it is of."""
        wider = {"fp4": ("fp4", "fp8", "bf16"), "fp8": ("fp8", "bf16"), "fp16": ("bf16",), "fp32": ("fp32",)}
        used = next(kind for kind in (*wider.get(dtype, ()), "bf16") if kind in self.tflops)
        return self.tflops[used], used

    def figures(self, dtype: str) -> dict[str, Any]:
        """Return the fields of ``cluster.gpu`` for a model of this precision; what is reached of them is left open."""
        return {
            "name": self.name,
            "memory_gb": float(self.memory_gb),
            "peak_tflops": self.peak(dtype)[0],
            "memory_bandwidth_tb_per_s": self.memory_bandwidth_tb_per_s,
        }


_HOPPER = {"fp8": 1979.0, "bf16": 989.0, "fp32": 67.0}

PRESETS: dict[str, GpuPreset] = {
    preset.name.lower(): preset
    for preset in (
        GpuPreset(
            "A100", "NVIDIA A100 data sheet (80GB SXM), DGX A100: 8 x 200 Gbit/s", 80, 2.039,
            {"bf16": 312.0, "fp32": 19.5}, 300, 8, 200,
        ),
        GpuPreset("H100", "NVIDIA H100 data sheet (SXM), DGX H100: 8 x 400 Gbit/s", 80, 3.35, _HOPPER, 450, 8, 400),
        GpuPreset("H200", "NVIDIA H200 data sheet (SXM), DGX H200: 8 x 400 Gbit/s", 141, 4.8, _HOPPER, 450, 8, 400),
        GpuPreset(
            "H20", "NVIDIA HGX H20, as resellers quote it (there is no public data sheet): 8 x 400 Gbit/s", 96, 4.0,
            {"fp8": 296.0, "bf16": 148.0, "fp32": 44.0}, 450, 8, 400,
        ),
        GpuPreset(
            "B200", "NVIDIA Blackwell architecture brief (HGX B200), DGX B200: 1,440 GB, 8 x 400 Gbit/s", 180, 8.0,
            {"fp4": 9000.0, "fp8": 4500.0, "bf16": 2250.0, "fp32": 80.0}, 900, 8, 400,
        ),
        GpuPreset(
            "GB200", "NVIDIA Blackwell architecture brief (GB200 NVL72): trays of 4 GPUs, 4 x 400 Gbit/s", 186, 8.0,
            {"fp4": 10000.0, "fp8": 5000.0, "bf16": 2500.0, "fp32": 90.0}, 900, 4, 200, 72,
        ),
        GpuPreset(
            "MI300X", "AMD Instinct MI300X data sheet; nodes of 8 with 8 x 400 Gbit/s", 192, 5.3,
            {"fp8": 2614.9, "bf16": 1307.4, "fp32": 163.4}, 448, 8, 400,
        ),
    )
}  # fmt: skip

# What the first deployment plan of this project assumes of an H100, beside what it says is reached of these numbers.
_SEED = {
    "name": "H100 (seed plan)",
    "memory_gb": 64.0,
    "peak_tflops": 400.0,
    "mfu": 0.60,
    "memory_bandwidth_tb_per_s": 1.8,
    "memory_utilization": 0.80,
}
_SEED_NVLINK_GB_PER_S = 450.0
_SXM = {f"{name}-sxm": name for name in ("a100", "h100", "h200")}  # which these are
NAMES = ("h100-seed", *sorted([*PRESETS, *_SXM]))


def with_preset(sections: Any) -> Any:
    """Put the figures of a GPU in the place of its name, ``cluster.gpu: h100-sxm``; what is no such name stays.

    The peak is that of ``model.dtype``; where parts of the model have others, all peaks are taken. NVLink's bandwidth
    is taken where the cluster has none of its own.
    """
    cluster = sections.get("cluster") if isinstance(sections, Mapping) else None
    if not isinstance(cluster, Mapping):
        return sections
    name = cluster.get("gpu")
    if not isinstance(name, str) or name.lower() not in NAMES:
        return sections
    if name.lower() == "h100-seed":
        gpu, nvlink = dict(_SEED), _SEED_NVLINK_GB_PER_S
    else:
        preset = PRESETS[_SXM.get(name.lower(), name.lower())]
        model = sections.get("model")
        dtype = model.get("dtype", "bf16") if isinstance(model, Mapping) else getattr(model, "dtype", "bf16")
        gpu, nvlink = preset.figures(dtype if isinstance(dtype, str) else "bf16"), preset.nvlink_gb_per_s
        if isinstance(model, Mapping) and model.get("dtypes"):
            gpu["dtype_tflops"] = dict(preset.tflops)
    return {**sections, "cluster": {"nvlink_gb_per_s": nvlink, **cluster, "gpu": gpu}}
