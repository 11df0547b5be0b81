"""What others measured and published: figures, where they are from, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DEEPEP", "LOW_LATENCY", "NORMAL", "SYSTEMS", "System"]

DEEPEP = (
    "[DeepEP, README of version 1](https://github.com/deepseek-ai/DeepEP/blob/main/docs/legacy.md): H800, one CX7 400 "
    "Gbit/s per GPU"
)
_LMSYS = (
    "[LMSYS, Deploying DeepSeek with PD Disaggregation and Large-scale Expert Parallelism on 96 H100 GPUs, 2025-05-05]"
    "(https://lmsys.org/blog/2025-05-05-large-scale-ep/)"
)
_BLOG = (
    "[DeepSeek, DeepSeek-V3/R1 Inference System Overview, 2025-03-01](https://github.com/deepseek-ai/open-infra-index/"
    "blob/main/202502OpenSourceWeek/day_6_one_more_thing_deepseekV3R1_inference_system_overview.md)"
)

# GPUs to µs of dispatch and combine: 128 tokens per GPU, hidden 7168, top-8 of 256, fp8 out and bf16 back.
LOW_LATENCY: Mapping[int, tuple[float, float]] = {
    8: (77.0, 114.0),
    16: (118.0, 195.0),
    32: (155.0, 273.0),
    64: (173.0, 314.0),
    128: (192.0, 369.0),
    256: (194.0, 360.0),
}
# GPUs to GB/s of dispatch and combine: 4,096 tokens per GPU, top-8 from the 4 best groups of a node's experts each.
# Counted are, in one node, a token and each of its GPUs; between nodes a token and each of its nodes, its own too.
NORMAL: Mapping[int, tuple[float, float]] = {8: (153.0, 158.0), 16: (43.0, 43.0), 32: (58.0, 57.0), 64: (51.0, 50.0)}


@dataclass(frozen=True)
class System:
    """A deployment of DeepSeek-V3 whose throughput was published.

    Attributes
    ----------
    name, short : str
        The latter for the heads of tables.
    tokens_per_s : float
        Per node of 8 GPUs.
    nodes : int
    gpu : str
    phase : str
        ``prefill`` or ``decode``.
    tokens_per_gpu, context : float
        Tokens that start on each GPU, and what they attend to.
    slots : int
        Experts and redundant replicas of a layer.
    balanced : bool
        Whether every expert got as many tokens; else real requests, with experts placed by EPLB.
    source, sure : str
        Where the figure is from, and how sure it is.
    """

    name: str
    short: str
    tokens_per_s: float
    nodes: int
    gpu: str
    phase: str
    tokens_per_gpu: float
    context: float
    slots: int
    balanced: bool
    source: str
    sure: str


SYSTEMS: tuple[System, ...] = (
    System(
        "SGLang prefill EP32, 4k prompts", "SGLang prefill 4k",
        50_302, 4, "H100", "prefill", 16_384, 4096, 288, False, _LMSYS,
        "measured; the distribution of experts is not published, balanced in-distribution",
    ),
    System(
        "SGLang prefill EP32, 4k prompts, balanced", "SGLang prefill balanced",
        59_337, 4, "H100", "prefill", 16_384, 4096, 256, True, _LMSYS,
        "measured with random experts from the best groups",
    ),
    System(
        "SGLang prefill EP32, 2k prompts", "SGLang prefill 2k",
        52_300, 4, "H100", "prefill", 16_384, 2000, 288, False, _LMSYS,
        "measured end to end; the prefill phase alone has 54,543 in the same text",
    ),
    System(
        "SGLang decode EP72, 256 per GPU", "SGLang EP72",
        22_282, 9, "H100", "decode", 256, 2000, 288, False, _LMSYS,
        "measured; mean context between 2,000 and 2,100",
    ),
    System(
        "DeepSeek decode EP144, 88 per GPU", "DeepSeek EP144",
        14_800, 18, "H800", "decode", 88, 4989, 288, False, _BLOG,
        "a day's mean in production; 88 follows from 20 to 22 tokens/s per user, the LMSYS blog assumes 128",
    ),
    System(
        "DeepSeek decode EP128 profile, 128 per GPU", "DeepSeek EP128",
        18_598, 16, "H800", "decode", 128, 4096, 256, True, _LMSYS,
        "estimated by LMSYS from a picture of DeepSeek's profile, with balanced routing",
    ),
    System(
        "DeepSeek prefill EP32 profile", "DeepSeek prefill",
        62_713, 4, "H800", "prefill", 16_384, 4096, 256, True, _LMSYS,
        "estimated by LMSYS from DeepSeek's profile, with balanced routing",
    ),
)  # fmt: skip
