"""Reads a system file of aiconfigurator (``systems/h100_sxm.yaml``): one kind of GPU, and what joins GPUs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moe_placer.errors import InputError, Mistake
from moe_placer.files import read_bounded
from moe_placer.instance.gpu_presets import GpuPreset

__all__ = ["System", "read_system"]

_KIND = "a system file of aiconfigurator, with `gpu` and `node`"
_MOST_BYTES = 1_000_000
_TERA, _GIGA = 1e12, 1e9
_PEAKS = {"bf16": "bfloat16_tc_flops", "fp8": "fp8_tc_flops", "fp4": "fp4_tc_flops"}
_MOST = 1e19  # of any figure; the fastest GPUs have 1e16 FLOP/s


@dataclass(frozen=True)
class System:
    """The GPU, node and network that a system file describes.

    Attributes
    ----------
    preset : GpuPreset
        The GPU and its node; ``node_gb_per_s`` is what joins nodes, of all GPUs of one together.
    nodes_per_rack : int or None
        Nodes that NVLink joins, where the file has racks.
    oversubscription : float or None
        What joins the nodes of a rack over what joins racks.
    """

    preset: GpuPreset
    nodes_per_rack: int | None
    oversubscription: float | None


def read_system(file: Path) -> System:
    """Read a system file; measured corrections and latencies in it have no place in an instance.

    Raises
    ------
    InputError
        It is missing, no YAML, or lacks figures that an instance needs; all of these are listed.
    """
    content = _parse(file)
    found = _Figures(file, content)
    memory, bandwidth = found.number("gpu.mem_capacity"), found.number("gpu.mem_bw")
    peaks = {name: found.number(f"gpu.{key}", optional=name != "bf16") for name, key in _PEAKS.items()}
    per_node = found.whole("node.num_gpus_per_node")
    inter, intra = found.number("node.inter_node_bw"), found.number("node.intra_node_bw")
    rack = found.whole("node.num_gpus_per_rack", optional=True)
    inter_rack = found.number("node.inter_rack_bw", optional=rack == 0)
    if rack and per_node and rack % per_node:
        found.wrong("node.num_gpus_per_rack", str(rack), f"a multiple of num_gpus_per_node ({per_node})")
    if found.mistakes:
        raise InputError(found.mistakes)
    preset = GpuPreset(
        name=file.stem.replace("_", "-"),
        source=f"aiconfigurator's system file {file.name}",
        memory_gb=memory / _GIGA,
        memory_bandwidth_tb_per_s=bandwidth / _TERA,
        tflops={name: peak / _TERA for name, peak in peaks.items() if peak},
        nvlink_gb_per_s=intra / _GIGA,
        gpus_per_node=per_node,
        node_gb_per_s=inter / _GIGA * per_node,
        nvlink_gpus=rack,
    )
    return System(preset, rack // per_node or None if rack else None, inter / inter_rack if rack else None)


def _parse(file: Path) -> Mapping[str, Any]:
    raw = read_bounded(file, _MOST_BYTES, _KIND)
    try:
        content = yaml.safe_load(raw.decode())
    except UnicodeDecodeError as error:
        raise InputError(Mistake(f"bytes that are no text (at byte {error.start})", _KIND, file=file)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        found = str(getattr(error, "problem", None) or "deeply nested text")
        raise InputError(Mistake(found, _KIND, file=file, line=mark.line + 1 if mark else None)) from None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("gpu", "node")):
        raise InputError(Mistake("other content", _KIND, file=file))
    return content


class _Figures:
    """Numbers of a file by their paths; what is wrong is collected."""

    def __init__(self, file: Path, content: Mapping[str, Any]) -> None:
        self.file, self.content = file, content
        self.mistakes: list[Mistake] = []

    def wrong(self, path: str, found: str, expected: str) -> None:
        self.mistakes.append(Mistake(found, expected, path, self.file))

    def number(self, path: str, *, optional: bool = False) -> float:
        """Return a number above 0; 0 where it is missing or wrong."""
        section, _, key = path.partition(".")
        value = self.content[section].get(key)
        if value is None and optional:
            return 0.0
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _MOST:
            self.wrong(path, "nothing" if value is None else repr(value)[:60], "a number above 0")
            return 0.0
        return float(value)

    def whole(self, path: str, *, optional: bool = False) -> int:
        """Return a whole number above 0; 0 where it is missing or wrong."""
        value = self.number(path, optional=optional)
        if value and (value > 1e6 or not math.isclose(value, round(value))):
            self.wrong(path, f"{value:g}", "a whole number up to 1,000,000")
            return 0
        return round(value)
