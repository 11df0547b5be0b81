"""``moe-placer init``: from a model's config, a recording and a few options to an instance that is valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from engine_recordings import make, write_routed_experts, write_sglang_detail, write_sglang_stat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import fails, run
from test_topologies import IBNET, NCCL, TREE
from torch_writer import save

from moe_placer.engines.init import (
    PRESETS,
    Wishes,
    draft_instance,
    inspect_recordings,
    instance_text,
    read_model_config,
)
from moe_placer.engines.init.model_config import FAMILIES
from moe_placer.engines.recordings import Options, read_recording, write_recording
from moe_placer.errors import InputError
from moe_placer.instance import Instance, load_instance
from moe_placer.traffic import load_traffic

# As their makers publish them, but for fields that nothing here reads.
CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "first_k_dense_replace": 3,
        "moe_layer_freq": 1, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048, "intermediate_size": 18432, "num_attention_heads": 128, "v_head_dim": 128,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "vocab_size": 129280, "num_nextn_predict_layers": 1,
        "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    },
    "deepseek_v2": {
        "model_type": "deepseek_v2", "hidden_size": 2048, "num_hidden_layers": 27, "first_k_dense_replace": 1,
        "moe_layer_freq": 1, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
        "moe_intermediate_size": 1408, "intermediate_size": 10944, "num_attention_heads": 16, "v_head_dim": 128,
        "vocab_size": 102400, "torch_dtype": "bfloat16",
    },
    "kimi_k2": {
        "model_type": "kimi_k2", "hidden_size": 7168, "num_hidden_layers": 61, "first_k_dense_replace": 1,
        "moe_layer_freq": 1, "n_routed_experts": 384, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048, "intermediate_size": 18432, "num_attention_heads": 64, "v_head_dim": 128,
        "vocab_size": 163840, "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"},
    },
    "glm4_moe": {
        "model_type": "glm4_moe", "hidden_size": 5120, "num_hidden_layers": 92, "first_k_dense_replace": 3,
        "n_routed_experts": 160, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 1536,
        "intermediate_size": 12288, "num_attention_heads": 96, "head_dim": 128, "vocab_size": 151552,
        "torch_dtype": "bfloat16",
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe", "hidden_size": 4096, "num_hidden_layers": 94, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 1536, "intermediate_size": 12288, "num_attention_heads": 64,
        "head_dim": 128, "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": 151936,
        "torch_dtype": "bfloat16",
    },
    "qwen2_moe": {
        "model_type": "qwen2_moe", "hidden_size": 3584, "num_hidden_layers": 28, "num_experts": 64,
        "num_experts_per_tok": 8, "moe_intermediate_size": 2560, "intermediate_size": 18944,
        "num_attention_heads": 28, "decoder_sparse_step": 2, "mlp_only_layers": [3], "vocab_size": 151936,
        "shared_expert_intermediate_size": 20480, "dtype": "bfloat16",
    },
    "olmoe": {
        "model_type": "olmoe", "hidden_size": 2048, "num_hidden_layers": 16, "num_experts": 64,
        "num_experts_per_tok": 8, "intermediate_size": 1024, "num_attention_heads": 16, "vocab_size": 50304,
        "torch_dtype": "bfloat16",
    },
    "mixtral": {
        "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32, "num_local_experts": 8,
        "num_experts_per_tok": 2, "intermediate_size": 14336, "num_attention_heads": 32, "head_dim": None,
        "vocab_size": 32000, "torch_dtype": "float16",
    },
    "gpt_oss": {
        "model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 36, "num_local_experts": 128,
        "num_experts_per_tok": 4, "intermediate_size": 2880, "num_attention_heads": 64, "head_dim": 64,
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


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
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


def test_peaks_of_precisions_that_a_gpu_lacks() -> None:
    assert PRESETS["a100"].peak("fp8") == (312.0, "bf16")
    assert PRESETS["h100"].peak("fp4") == (1979.0, "fp8")
    assert PRESETS["b200"].peak("fp4") == (9000.0, "fp4")


# --- instances -----------------------------------------------------------------------------------------------------


def test_what_nobody_said_is_assumed_and_said_to_be(tmp_path: Path) -> None:
    instance = draft(tmp_path, recorded(tmp_path), gpus=2, gpus_per_node=1)
    assert (instance.engine, instance.placement.slots_per_gpu, instance.replicas_per_layer) == ("sglang", 3, 6)
    assert instance.model.dense_layers == (0,)
    assert (instance.traffic.kind, instance.traffic.sources) == ("trace", "recorded")  # type: ignore[union-attr]
    text = (tmp_path / "instance.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 140
    for said in (
        "# - cluster.gpu: H100 (--gpu); mfu 0.5",
        "NVIDIA H100 data sheet (SXM)",
        "# as it wrote the recording (--engine)",
        "2 source ranks: each node has the traffic of its own",
        "all nodes on one switch that never blocks",
        "SGLang prefers near copies",
        "shared experts are on every GPU",
    ):
        assert said in text.replace("\n#   ", " "), said
    truth = make()
    assert np.array_equal(sum(r.load for r in load_traffic(instance).recordings), truth.load)


def test_what_is_said_is_taken(tmp_path: Path) -> None:
    wishes: dict[str, Any] = {
        "name": "mine", "engine": "vllm", "gpu": "B200", "gpus": 8, "gpus_per_node": 2, "redundant_slots": 2,
        "attention_tp": 2, "tokens_per_gpu": 7.5, "node_gb_per_s": 123.0, "nodes_per_leaf": 2, "spines": 3,
        "oversubscription": 1.5,
    }  # fmt: skip
    instance = draft(tmp_path, recorded(tmp_path), **wishes)
    assert instance.name == "mine"
    assert instance.engine == "vllm"
    assert instance.cluster.gpu.name == "B200"
    assert instance.cluster.gpu.peak_tflops == 2250
    assert instance.replicas_per_layer == 8
    assert (instance.parallelism.attention_tp, instance.traffic.tokens_per_gpu) == (2, 7.5)
    expected = {"kind": "fat-tree", "nodes_per_leaf": 2, "spines": 3, "node_gb_per_s": 123.0, "oversubscription": 1.5}
    assert instance.cluster.fabric.model_dump() == {**expected, "link_utilization": 0.8}
    assert "oversubscription (" not in (tmp_path / "instance.yaml").read_text()


def test_source_ranks_that_do_not_fit_the_nodes_are_left_alone(tmp_path: Path) -> None:
    instance = draft(tmp_path, recorded(tmp_path), gpus=6, gpus_per_node=2)
    assert instance.traffic.sources == "mix"  # type: ignore[union-attr]
    assert "2 source ranks do not fit 3 nodes" in (tmp_path / "instance.yaml").read_text()


def test_counts_serve_where_some_tokens_are_left_out(tmp_path: Path) -> None:
    files = write_sglang_detail(make(), tmp_path / "dump", by_token=True)
    write_recording(tmp_path / "recording.npz", read_recording(files, Options(keep_tokens=5)))
    instance = draft(tmp_path, tmp_path / "recording.npz", gpus=2, gpus_per_node=1)
    assert instance.traffic.kind == "load"
    assert "trace: 5 of them" in (tmp_path / "instance.yaml").read_text()


def test_other_dispatch_needs_whole_tokens(tmp_path: Path) -> None:
    instance = draft(tmp_path, recorded(tmp_path), gpus=2, gpus_per_node=1, dispatch="per-node")
    assert (instance.placement.dispatch, instance.traffic.kind) == ("per-node", "trace")
    with pytest.raises(InputError, match="found counts only, expected whole tokens"):
        draft(tmp_path, stat(tmp_path), gpus=2, dispatch="per-node")


@pytest.mark.parametrize(
    ("wishes", "path", "says"),
    [
        ({}, "--gpus", "found nothing"),
        ({"gpus": 7, "gpus_per_node": 2}, "--gpus", "a multiple of 2"),
        ({"gpus": 4, "gpus_per_node": 1, "redundant_slots": 1}, "--redundant-slots", "7 slots on 4 GPUs, 1.75 each"),
        (
            {"gpus": 2, "gpus_per_node": 1, "slots_per_gpu": 2},
            "--slots-per-gpu",
            "4 slots for 6 experts, expected at least 3",
        ),
        ({"gpus": 2, "slots_per_gpu": 3, "redundant_slots": 0}, "--redundant-slots, --slots-per-gpu", "found both"),
        ({"gpus": 10**6}, "--gpus", ""),
        ({"gpus": 2, "gpus_per_node": 1, "name": "a/b"}, "--name", "a/b"),
        ({"gpus": 2, "gpus_per_node": 1, "oversubscription": 2.0}, "--oversubscription", "--nodes-per-leaf"),
        ({"gpus": 2, "gpus_per_node": 1, "spines": 2}, "--spines", "--nodes-per-leaf"),
        ({"gpus": 2, "gpus_per_node": 1, "nodes_per_leaf": 1, "oversubscription": 1e6}, "--oversubscription", "1000"),
    ],
)
def test_wishes_that_contradict(tmp_path: Path, wishes: dict[str, Any], path: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        draft(tmp_path, recorded(tmp_path), **wishes)
    mistake = caught.value.mistakes[0]
    assert mistake.path == path
    assert says in str(mistake)


def test_the_sizes_of_the_issue(tmp_path: Path) -> None:
    """128 experts on 64 GPUs: 32 redundant slots are no plan for an engine, 64 are."""
    np.savez(tmp_path / "load.npz", load=np.ones((94, 128), int))
    with pytest.raises(InputError, match=r"160 slots on 64 GPUs, 2.5 each, expected 0 .* or 64 "):
        draft(tmp_path, tmp_path / "load.npz", CONFIGS["qwen3_moe"], gpus=64, redundant_slots=32, engine="sglang")
    instance = draft(
        tmp_path, tmp_path / "load.npz", CONFIGS["qwen3_moe"], gpus=64, redundant_slots=64, engine="sglang"
    )
    assert instance.placement.slots_per_gpu == 3
    without = draft(tmp_path, tmp_path / "load.npz", CONFIGS["qwen3_moe"], gpus=64, redundant_slots=32)
    assert (without.engine, without.placement.slots_per_gpu) == (None, 3)


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


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_writes_an_instance_that_solve_takes(tmp_path: Path) -> None:
    config, recording = write(tmp_path, "config.json", SMALL), recorded(tmp_path)
    out = tmp_path / "folder" / "instance.yaml"
    arguments = ("init", "--model", config, "--recording", recording, "--gpus", 2, "--gpus-per-node", 1, "-o", out)
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("deepseek-v2-2xh100: 2 GPUs, 3 slots on each, 0 copies beyond one of each expert\n")
    assert "cluster.fabric: all nodes on one switch" in done.stdout
    assert done.stderr == f"Written: {out}\n"
    assert yaml.safe_load(out.read_text())["traffic"]["files"] == ["../recording.npz"]
    assert run("inspect", out).returncode == 0
    solved = run("solve", out, "-o", tmp_path / "out", "--no-dag", "--workers", 1, "--time-limit", 10)
    assert solved.returncode == 0, solved.stderr
    fails(1, *arguments, says="found a file that is there, expected another --output, or --force to replace it")
    content = json.loads(run(*arguments, "--force", "--json").stdout)
    assert content["schema"] == "moe-placer/init/1"
    assert content["instance"]["engine"] == "sglang"
    assert len(content["assumed"]) > 4


def test_the_command_reads_topologies(tmp_path: Path) -> None:
    config, recording = write(tmp_path, "config.json", SMALL), stat(tmp_path)
    base = ("init", "--model", config, "--recording", recording, "--force", "-o", tmp_path / "i.yaml")
    tree, node = write(tmp_path, "topology.conf", TREE), write(tmp_path, "node.xml", NCCL)
    done = run(*base, "--topology", tree, "--topology", node, "--oversubscription", 2, "--engine", "trtllm")
    assert done.returncode == 0, done.stderr
    instance = load_instance(tmp_path / "i.yaml")
    assert (instance.cluster.nodes, instance.cluster.gpus_per_node) == (8, 2)
    assert instance.cluster.fabric.node_gb_per_s == 75.0
    assert (
        "# Nodes in order (Slurm's topology.conf, tree and NCCL's topology): srv[1101-1104,1201-1203,1300]"
        in (tmp_path / "i.yaml").read_text()
    )
    ib = write(tmp_path, "ib.out", IBNET)
    done = run(*base, "--topology", ib, "--gpus-per-node", 1, "--hosts", "n[0-1],n2")
    assert done.returncode == 0, done.stderr
    fabric = load_instance(tmp_path / "i.yaml").cluster.fabric.model_dump()
    assert (fabric["nodes_per_leaf"], fabric["oversubscription"], fabric["node_gb_per_s"]) == (2, 2.0, 100.0)
    fails(1, *base, "--topology", tree, "--gpus", 8, says="--gpus: found 8, expected 64: 8 nodes of 8 GPUs")
    fails(1, *base, "--topology", tree, "--hosts", "srv[", says="--hosts: found brackets that do not match")
    fails(1, *base, "--topology", tree, "--hosts", "srv1101,srv1101", says="a host twice")
    fails(2, *base, "--hosts", "a", says="they need --topology FILE")
    fails(1, *base, "--topology", tmp_path / "none.conf", says="no such file")


def test_wrong_calls_write_nothing(tmp_path: Path) -> None:
    config, recording = write(tmp_path, "config.json", SMALL), stat(tmp_path)
    before = set(tmp_path.iterdir())
    base = ("init", "--model", config, "--recording", recording)
    fails(2, *base, says="Missing option '-o'")
    fails(2, "init", "--model", config, "-o", tmp_path / "i.yaml", says="Missing option '--recording'")
    fails(2, *base, "--gpu", "h1000", "-o", tmp_path / "i.yaml", says="--gpu")
    fails(1, *base, "--gpus", 4, "--gpus-per-node", 1, "--redundant-slots", 1, "-o", tmp_path / "i.yaml",
          says="--redundant-slots: found 6 experts + 1 redundant slots = 7 slots on 4 GPUs")  # fmt: skip
    fails(
        1,
        "init",
        "--model",
        tmp_path / "no.json",
        "--recording",
        recording,
        "-o",
        tmp_path / "i.yaml",
        says="no such file",
    )
    fails(
        1,
        "init",
        "--model",
        config,
        "--recording",
        config,
        "--gpus",
        2,
        "-o",
        tmp_path / "i.yaml",
        says="cannot be read",
    )
    assert set(tmp_path.iterdir()) == before


# --- the tutorial of docs/engines.md -------------------------------------------------------------------------------


def tutorial(folder: Path, layers: int, experts: int, *limits: Any) -> dict[str, Any]:
    """Run its commands on a recording with so many layers and experts, and return SGLang's file."""
    rng = np.random.default_rng(5)
    share = rng.lognormal(0, 0.66, (layers, experts))
    counts = np.zeros((20, layers, experts), np.int32)
    counts[:16] = rng.multinomial(65_536, share / share.sum(axis=1, keepdims=True), (16, layers))
    dump = {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}
    save(dump, folder / "expert_distribution_recorder_1764000000.pt")
    write(folder, "config.json", {**CONFIGS["qwen3_moe"], "num_hidden_layers": layers, "num_experts": experts})
    gpus = experts // 2
    init = ("init", "--model", "config.json", "--recording", "recording.npz", "--gpus", gpus, "--dtype", "fp8")
    done = run("import", "expert_distribution_recorder_1764000000.pt", "-o", "recording.npz", folder=folder)
    assert done.returncode == 0, done.stderr
    refused = run(*init, "--redundant-slots", experts // 4, "-o", "instance.yaml", folder=folder)
    assert refused.returncode == 1
    assert f"{gpus} GPUs, 2.5 each" in refused.stderr
    for command in (
        (*init, "--redundant-slots", gpus, "-o", "instance.yaml"),
        ("solve", "instance.yaml", "-o", "out", "--no-dag", *limits),
        ("export", "instance.yaml", "out/placement.json", "--format", "sglang", "-o", "plan.json"),
        ("check-file", "--format", "sglang", "plan.json", "--instance", "instance.yaml"),
    ):
        done = run(*command, folder=folder)
        assert done.returncode == 0, (command, done.stderr)
    plan: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return plan


def test_the_tutorial(tmp_path: Path) -> None:
    plan = tutorial(tmp_path, 3, 32, "--time-limit", 10, "--workers", 1)
    rows = np.array(plan["physical_to_logical_map"])
    assert rows.shape == (3, 48)
    assert all(set(row) == set(range(32)) for row in rows.tolist())


@pytest.mark.slow
def test_the_tutorial_in_full(tmp_path: Path) -> None:
    """94 layers of 128 experts on 8 x 8 H100: four commands in under two minutes on two idle cores."""
    plan = tutorial(tmp_path, 94, 128, "--time-limit", 60)
    assert np.array(plan["physical_to_logical_map"]).shape == (94, 192)
