"""What `moe-placer init` reads: configs of models, GPUs by name, recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drafted import CONFIGS, EXPECTED, SMALL, draft, recorded, write
from engine_recordings import make, write_routed_experts
from hypothesis import given, settings
from hypothesis import strategies as st
from model_figures import parameters

from moe_placer.engines.init import PRESETS, read_model_config
from moe_placer.engines.init.model_config import FAMILIES
from moe_placer.engines.recordings import Options, read_recording, write_recording
from moe_placer.errors import InputError
from moe_placer.instance.model_parts import kv_values
from moe_placer.instance.schema import Model
from moe_placer.traffic import load_traffic

# --- models --------------------------------------------------------------------------------------------------------


def test_every_family_is_tried() -> None:
    assert set(CONFIGS) == set(EXPECTED) == set(FAMILIES)


@pytest.mark.parametrize("name", CONFIGS)
def test_model_configs(tmp_path: Path, name: str) -> None:
    fields = read_model_config(write(tmp_path, "config.json", CONFIGS[name])).fields
    keys = ("layers", "dense_layers", "experts", "top_k", "expert_hidden_size", "head_dim", "dtype")
    assert tuple(fields[key] for key in keys) == EXPECTED[name]
    assert fields["hidden_size"] == CONFIGS[name]["hidden_size"]
    assert fields.get("dense_hidden_size") == (CONFIGS[name]["intermediate_size"] if fields["dense_layers"] else None)


# 1e9 parameters in all and those that a token meets, as their makers state them (model cards and reports).
STATED = {
    "deepseek_v3": (671.0, 37.0),
    "deepseek_v2": (15.7, 2.61),  # V2-Lite; the report counts 2.4, without the embedding's 0.21
    "kimi_k2": (1026.0, 32.9),
    "glm4_moe": (355.0, 32.0),
    "qwen3_moe": (235.0, 22.0),
    "olmoe": (6.9, 1.3),
    "mixtral": (46.7, 12.9),
    "gpt_oss": (116.8, 5.68),  # the card counts 5.1, without the embedding's 0.58
}


@pytest.mark.parametrize("name", STATED)
def test_configs_come_to_the_parameters_that_their_makers_state(tmp_path: Path, name: str) -> None:
    model = Model.model_validate(read_model_config(write(tmp_path, "config.json", CONFIGS[name])).fields)
    assert parameters(model) == pytest.approx(STATED[name], rel=0.055)  # rounded to whole 1e9, the embedding in or out


def test_attention_groups_and_precisions_are_those_of_the_config(tmp_path: Path) -> None:
    def fields(name: str) -> dict[str, Any]:
        return read_model_config(write(tmp_path, "config.json", CONFIGS[name])).fields

    assert fields("deepseek_v3")["attention"] == {
        "kind": "mla", "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "q_lora_rank": 1536,
    }  # fmt: skip
    assert "q_lora_rank" not in fields("deepseek_v2")["attention"]
    assert fields("qwen3_moe")["attention"] == {"kind": "gqa", "kv_heads": 4}
    assert fields("olmoe")["attention"] == {"kind": "mha"}
    shared = {name: fields(name).get("shared_expert_hidden_size") for name in CONFIGS}
    assert {name: width for name, width in shared.items() if width} == {
        "deepseek_v3": 2048, "deepseek_v2": 2816, "kimi_k2": 2048, "glm4_moe": 1536, "qwen2_moe": 20480,
    }  # fmt: skip
    assert (fields("deepseek_v3")["expert_groups"], fields("deepseek_v3")["top_groups"]) == (8, 4)
    assert "expert_groups" not in fields("kimi_k2")  # one group: any expert
    whole = {**CONFIGS["deepseek_v2"], "n_group": 8, "topk_group": 3, "q_lora_rank": 1536}  # V2, of which Lite has none
    of_v2 = read_model_config(write(tmp_path, "v2.json", whole)).fields
    assert (of_v2["expert_groups"], of_v2["top_groups"], of_v2["attention"]["q_lora_rank"]) == (8, 3, 1536)
    parts = {name: fields(name).get("dtypes") for name in ("deepseek_v3", "gpt_oss", "olmoe")}
    assert parts["olmoe"] is None
    assert parts["deepseek_v3"] is not None
    assert "attention" not in parts["deepseek_v3"]
    assert parts["gpt_oss"] is not None
    assert parts["gpt_oss"]["attention"] == "bf16"


def test_an_fp8_model_brings_both_peaks_and_both_wires(tmp_path: Path) -> None:
    np.savez(tmp_path / "load.npz", load=np.ones((58, 256)))
    instance = draft(tmp_path, tmp_path / "load.npz", CONFIGS["deepseek_v3"], gpus=32, engine="sglang")
    assert instance.cluster.gpu.dtype_tflops == {"fp8": 1979, "bf16": 989, "fp32": 67}
    assert (instance.placement.dispatch_dtype, instance.placement.combine_dtype) == ("fp8", "bf16")
    assert "multi-token prediction is left out" in (tmp_path / "instance.yaml").read_text()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_becomes_an_instance(tmp_path: Path, name: str) -> None:
    layers, dense, experts, top_k = EXPECTED[name][:4]
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "load.npz", load=rng.integers(1, 1000, (layers - len(dense), experts)))
    instance = draft(tmp_path, tmp_path / "load.npz", CONFIGS[name], gpus=32, engine="vllm")
    assert (len(instance.moe_layers), instance.model.top_k) == (layers - len(dense), top_k)
    assert instance.replicas_per_layer % 32 == 0
    assert load_traffic(instance).recordings[0].load.shape == (layers - len(dense), experts)


def test_models_of_text_and_images(tmp_path: Path) -> None:
    config = {"model_type": "kimi_k25", "text_config": CONFIGS["kimi_k2"], "vision_config": {}}
    assert read_model_config(write(tmp_path, "config.json", config)).fields["experts"] == 384
    moved = {key: value for key, value in CONFIGS["kimi_k2"].items() if key != "quantization_config"}
    config = {"model_type": "kimi_k25", "text_config": moved, "quantization_config": {"quant_method": "fp8"}}
    assert read_model_config(write(tmp_path, "config.json", config)).fields["dtype"] == "fp8"


@pytest.mark.parametrize(
    ("content", "path", "says"),
    [
        ("", "", "not JSON"),
        ("[" * 100_000, "", "not JSON"),
        ("[]", "", "no JSON object"),
        ({}, "model_type", "found none, expected one of deepseek_v2"),
        ({"model_type": "llama"}, "model_type", "found llama"),
        ({**SMALL, "hidden_size": None}, "hidden_size", "found nothing, expected a whole number of 1 or more"),
        ({**SMALL, "hidden_size": "7168"}, "hidden_size", "found '7168'"),
        ({**SMALL, "n_routed_experts": 0}, "n_routed_experts", "found 0"),
        ({**SMALL, "num_hidden_layers": 10**12}, "num_hidden_layers", "found 1000000000000"),
        ({**SMALL, "first_k_dense_replace": -1}, "first_k_dense_replace", "found -1, expected a whole number of 0"),
        ({**SMALL, "torch_dtype": "int8"}, "torch_dtype", "found int8, expected one of bfloat16"),
        ({**SMALL, "quantization_config": {"quant_method": "awq"}}, "quantization_config.quant_method", "--dtype"),
        ({**CONFIGS["qwen3_moe"], "mlp_only_layers": "all"}, "mlp_only_layers", "no list of layers"),
    ],
)
def test_wrong_configs(tmp_path: Path, content: Any, path: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read_model_config(write(tmp_path, "config.json", content))
    (mistake,) = caught.value.mistakes
    assert mistake.path == path
    assert says in str(mistake)


def test_all_mistakes_of_a_config_are_listed_and_dtype_helps(tmp_path: Path) -> None:
    broken = {**SMALL, "hidden_size": -1, "vocab_size": [], "torch_dtype": "x"}
    file = write(tmp_path, "config.json", broken)
    with pytest.raises(InputError) as caught:
        read_model_config(file)
    assert {mistake.path for mistake in caught.value.mistakes} == {"hidden_size", "vocab_size", "torch_dtype"}
    awq = write(tmp_path, "config.json", {**SMALL, "quantization_config": {"quant_method": "awq"}})
    assert read_model_config(awq, "fp4").fields["dtype"] == "fp4"


@settings(max_examples=40, deadline=None)
@given(
    key=st.sampled_from(sorted(SMALL)),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.lists(st.integers(), max_size=3),
)
def test_any_config_is_read_or_refused(tmp_path: Path, key: str, value: Any) -> None:
    file = write(tmp_path, "config.json", {**SMALL, key: value})
    try:
        assert read_model_config(file).fields["experts"] > 0
    except InputError as found:
        assert all("\n" not in str(mistake) for mistake in found.mistakes)  # noqa: PT017


# --- GPUs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_their_source_and_make_sense(name: str) -> None:
    preset = PRESETS[name]
    assert len(preset.source) > 20
    assert preset.tflops["bf16"] > preset.tflops["fp32"]
    assert preset.node_gb_per_s <= preset.nvlink_gb_per_s * preset.gpus_per_node
    for dtype in ("fp32", "bf16", "fp16", "fp8", "fp4"):
        peak, of = preset.peak(dtype)
        assert peak == preset.tflops[of]


@pytest.mark.parametrize(
    ("wishes", "domain"),
    [
        ({"gpus": 144}, 18),  # two racks of 18 trays
        ({"gpus": 8}, 2),  # all of a small cluster
        ({"gpus": 144, "gpus_per_node": 8}, 9),
        ({"gpus": 144, "gpus_per_node": 72}, None),  # a rack is a node
        ({"gpus": 4}, None),
        ({"gpus": 144, "dispatch": "per-node"}, None),
    ],
)
def test_racks_of_gb200_are_nvlink_domains(tmp_path: Path, wishes: dict[str, Any], domain: int | None) -> None:
    instance = draft(tmp_path, recorded(tmp_path), gpu="gb200", slots_per_gpu=2, **wishes)
    assert instance.cluster.nvlink_domain_nodes == domain
    text = (tmp_path / "instance.yaml").read_text()
    assert ("NVLink joins 72 GPUs (NVIDIA Blackwell" in text) == (domain is not None or "dispatch" in wishes)


# What attention keeps of a token in a layer, in values, and the kind that says so.
KEPT = {
    "deepseek_v3": ("mla", 576), "deepseek_v2": ("mla", 576), "kimi_k2": ("mla", 576), "glm4_moe": ("gqa", 2048),
    "qwen3_moe": ("gqa", 1024), "qwen2_moe": ("gqa", 1024), "olmoe": ("mha", 4096), "mixtral": ("gqa", 2048),
    "gpt_oss": ("gqa", 1024),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_fills_attention_mlps_and_peaks(tmp_path: Path, name: str) -> None:
    layers, dense, experts = EXPECTED[name][:3]
    np.savez(tmp_path / "load.npz", load=np.ones((layers - len(dense), experts)))
    instance = draft(tmp_path, tmp_path / "load.npz", CONFIGS[name], gpus=32, slots_per_gpu=-(-experts // 32))
    model, config = instance.model, CONFIGS[name]
    assert model.attention is not None
    assert (model.attention.kind, kv_values(model)) == KEPT[name]
    assert model.expert_matrices == 3  # all of them are gated
    assert model.vocab_size == config["vocab_size"]
    assert (model.expert_groups, model.top_groups) == ((8, 4) if name == "deepseek_v3" else (None, None))
    assert (model.dtypes is not None) == (EXPECTED[name][-1] in {"fp8", "fp4"})
    assert bool(instance.cluster.gpu.dtype_tflops) == (model.dtypes is not None)
    assert instance.schedule.kernels is not None
    assert instance.schedule.kernels.preset == "deepep"


def test_peaks_of_precisions_that_a_gpu_lacks() -> None:
    assert PRESETS["a100"].peak("fp8") == (312.0, "bf16")
    assert PRESETS["h100"].peak("fp4") == (1979.0, "fp8")
    assert PRESETS["b200"].peak("fp4") == (9000.0, "fp4")


# --- recordings that are not of the model --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "config", "says"),
    [
        ({"layers": 4}, SMALL, "found 3 MoE layers, expected 2"),
        ({"dense": (1,)}, SMALL, "layers 0, 1 as MoE or dense"),
        ({"experts": 7}, SMALL, "found 7 experts, expected 6 experts of deepseek_v2"),
        ({"top_k": 3}, SMALL, "found top-3, expected top-2"),
    ],
)
def test_recordings_of_other_models(tmp_path: Path, truth: dict[str, Any], config: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        draft(tmp_path, recorded(tmp_path, **truth), config, gpus=2)
    assert says in str(caught.value)


def test_recordings_that_do_not_know_their_experts(tmp_path: Path) -> None:
    truth = make(experts=5)
    file = write_routed_experts(truth, tmp_path, "npy", with_dense=True)
    write_recording(tmp_path / "r.npz", read_recording([file], Options()))
    with pytest.raises(InputError, match="import it again with --experts 6"):
        draft(tmp_path, tmp_path / "r.npz", gpus=2)
    write_recording(tmp_path / "r.npz", read_recording([file], Options(experts=6)))
    assert draft(tmp_path, tmp_path / "r.npz", gpus=2).model.experts == 6


@pytest.mark.parametrize("about", [b"", b"{", b"[]", b'{"schema": "other"}', b'{"schema": "moe-placer/recording/1"}'])
def test_what_a_recording_says_of_itself_is_checked(tmp_path: Path, about: bytes) -> None:
    np.savez(tmp_path / "r.npz", load=np.ones((2, 6), int), about=np.frombuffer(about, np.uint8))
    if b"recording/1" in about:
        assert draft(tmp_path, tmp_path / "r.npz", gpus=2, gpus_per_node=1).engine is None
        return
    with pytest.raises(InputError, match="what no `moe-placer import` wrote"):
        draft(tmp_path, tmp_path / "r.npz", gpus=2)


def test_strange_words_in_a_recording_do_not_end_a_comment(tmp_path: Path) -> None:
    about = {"schema": "moe-placer/recording/1", "format": "x\nengine: trtllm\n#", "engine": ["a"], "sources": "many"}
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(tmp_path / "r.npz", load=np.ones((2, 6), int), source_load=np.ones((2, 2, 6), int), about=text)
    assert draft(tmp_path, tmp_path / "r.npz", gpus=2, gpus_per_node=1).engine is None


def test_other_arrays_are_no_recording(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", other=np.ones((2, 6)))
    with pytest.raises(InputError, match="neither load nor topk"):
        draft(tmp_path, tmp_path / "r.npz", gpus=2)
