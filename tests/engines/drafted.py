"""Configs of models, small recordings, and instances that are drafted from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine_recordings import make, write_sglang_detail, write_sglang_stat

from moe_placer.engines.init import (
    Wishes,
    draft_instance,
    inspect_recordings,
    instance_text,
    read_model_config,
)
from moe_placer.engines.recordings import Options, read_recording, write_recording
from moe_placer.instance import Instance, load_instance

# As their makers publish them, but for fields that nothing here reads.
CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "first_k_dense_replace": 3,
        "moe_layer_freq": 1, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048, "intermediate_size": 18432, "num_attention_heads": 128, "v_head_dim": 128,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "kv_lora_rank": 512, "q_lora_rank": 1536, "n_group": 8,
        "topk_group": 4, "num_key_value_heads": 128, "vocab_size": 129280, "num_nextn_predict_layers": 1,
        "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    },
    "deepseek_v2": {
        "model_type": "deepseek_v2", "hidden_size": 2048, "num_hidden_layers": 27, "first_k_dense_replace": 1,
        "moe_layer_freq": 1, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
        "moe_intermediate_size": 1408, "intermediate_size": 10944, "num_attention_heads": 16, "v_head_dim": 128,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "kv_lora_rank": 512, "q_lora_rank": None, "n_group": 1,
        "topk_group": 1, "vocab_size": 102400, "torch_dtype": "bfloat16",
    },
    "kimi_k2": {
        "model_type": "kimi_k2", "hidden_size": 7168, "num_hidden_layers": 61, "first_k_dense_replace": 1,
        "moe_layer_freq": 1, "n_routed_experts": 384, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048, "intermediate_size": 18432, "num_attention_heads": 64, "v_head_dim": 128,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "kv_lora_rank": 512, "q_lora_rank": 1536, "n_group": 1,
        "topk_group": 1, "vocab_size": 163840,
        "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"},
    },
    "glm4_moe": {
        "model_type": "glm4_moe", "hidden_size": 5120, "num_hidden_layers": 92, "first_k_dense_replace": 3,
        "n_routed_experts": 160, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 1536,
        "intermediate_size": 12288, "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151552,
        "torch_dtype": "bfloat16",
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe", "hidden_size": 4096, "num_hidden_layers": 94, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 1536, "intermediate_size": 12288, "num_attention_heads": 64,
        "num_key_value_heads": 4, "head_dim": 128, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "vocab_size": 151936,
        "torch_dtype": "bfloat16",
    },
    "qwen2_moe": {
        "model_type": "qwen2_moe", "hidden_size": 3584, "num_hidden_layers": 28, "num_experts": 64,
        "num_experts_per_tok": 8, "moe_intermediate_size": 2560, "intermediate_size": 18944,
        "num_attention_heads": 28, "num_key_value_heads": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3],
        "vocab_size": 151936,
        "shared_expert_intermediate_size": 20480, "dtype": "bfloat16",
    },
    "olmoe": {
        "model_type": "olmoe", "hidden_size": 2048, "num_hidden_layers": 16, "num_experts": 64,
        "num_experts_per_tok": 8, "intermediate_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 16,
        "vocab_size": 50304,
        "torch_dtype": "bfloat16",
    },
    "mixtral": {
        "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32, "num_local_experts": 8,
        "num_experts_per_tok": 2, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": None, "sliding_window": None,
        "vocab_size": 32000, "torch_dtype": "float16",
    },
    "gpt_oss": {
        "model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 36, "num_local_experts": 128,
        "num_experts_per_tok": 4, "intermediate_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "sliding_window": 128,
        "vocab_size": 201088, "quantization_config": {"quant_method": "mxfp4"},
    },
}  # fmt: skip

# Layers, dense ones, experts, top-k, expert width, head dimension, precision.
EXPECTED: dict[str, tuple[Any, ...]] = {
    "deepseek_v3": (61, [0, 1, 2], 256, 8, 2048, 128, "fp8"),
    "deepseek_v2": (27, [0], 64, 6, 1408, 128, "bf16"),
    "kimi_k2": (61, [0], 384, 8, 2048, 128, "fp8"),
    "glm4_moe": (92, [0, 1, 2], 160, 8, 1536, 128, "bf16"),
    "qwen3_moe": (94, [], 128, 8, 1536, 128, "bf16"),
    "qwen2_moe": (28, sorted({*range(0, 28, 2), 3}), 64, 8, 2560, 128, "bf16"),
    "olmoe": (16, [], 64, 8, 1024, 128, "bf16"),
    "mixtral": (32, [], 8, 2, 14336, 128, "fp16"),
    "gpt_oss": (36, [], 128, 4, 2880, 64, "fp4"),
}

# Three layers of six experts, of which the first is dense: what `engine_recordings.make` draws.
SMALL = {**CONFIGS["deepseek_v2"], "num_hidden_layers": 3, "n_routed_experts": 6, "num_experts_per_tok": 2}


def write(folder: Path, name: str, content: Any) -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def recorded(folder: Path, name: str = "recording.npz", **truth: Any) -> Path:
    """Import a small per-token recording of all ranks."""
    files = write_sglang_detail(make(**truth), folder / "dump", by_token=True)
    write_recording(folder / name, read_recording(files, Options()))
    return folder / name


def stat(folder: Path, **truth: Any) -> Path:
    file = write_sglang_stat(make(**truth), folder / "stat.pt")
    write_recording(folder / "stat.npz", read_recording([file], Options()))
    return folder / "stat.npz"


def draft(folder: Path, recording: Path, config: dict[str, Any] = SMALL, **wishes: Any) -> Instance:
    """Draft an instance, write it, and read it back."""
    model = read_model_config(write(folder, "config.json", config))
    traffic = inspect_recordings([recording], model, tokens=wishes.get("dispatch") not in {None, "per-expert"})
    drafted = draft_instance(model, traffic, None, Wishes(**wishes), folder)
    (folder / "instance.yaml").write_text(instance_text(drafted))
    return load_instance(folder / "instance.yaml")
