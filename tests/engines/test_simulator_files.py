"""Files of other simulators: aiconfigurator's systems, LLMServingSim's logs."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from drafted import SMALL, draft, recorded
from drafted import write as write_text
from hypothesis import given, settings
from hypothesis import strategies as st
from told import told

from moe_placer.engines.init import PRESETS, read_system
from moe_placer.engines.recordings import Options, read_recording
from moe_placer.errors import InputError

# As aiconfigurator-core 0.12.0 has them, without what is not read.
H100 = {
    "gpu": {
        "mem_bw": 3350000000000,
        "mem_bw_empirical_scaling_factor": 0.8,
        "mem_capacity": 85899345920,
        "bfloat16_tc_flops": 989000000000000,
        "fp8_tc_flops": 1978000000000000,
        "sm_version": 90,
    },
    "node": {"num_gpus_per_node": 8, "inter_node_bw": 50000000000, "intra_node_bw": 450000000000},
}
GB200 = {
    "gpu": H100["gpu"] | {"fp4_tc_flops": 10**16},
    "node": {
        "num_gpus_per_node": 4,
        "num_gpus_per_rack": 72,
        "inter_rack_bw": 100000000000,
        "inter_node_bw": 900000000000,
        "intra_node_bw": 900000000000,
    },
}


def write(folder: Path, content: Any, name: str = "h100_sxm.yaml") -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def test_a_system_is_a_gpu_and_what_joins_gpus(tmp_path: Path) -> None:
    system = read_system(write(tmp_path, H100))
    preset = system.preset
    assert (preset.name, preset.gpus_per_node) == ("h100-sxm", 8)
    assert (preset.memory_gb, preset.memory_bandwidth_tb_per_s) == (85.89934592, 3.35)
    assert preset.tflops == {"bf16": 989.0, "fp8": 1978.0}
    assert (preset.nvlink_gb_per_s, preset.node_gb_per_s) == (450.0, 400.0)  # 8 GPUs x 50 GB/s
    assert (system.nodes_per_rack, system.oversubscription) == (None, None)


def test_an_instance_is_made_of_it(tmp_path: Path) -> None:
    wishes = {"gpus": 16, "system": read_system(write(tmp_path, H100))}
    instance = draft(tmp_path, recorded(tmp_path), **wishes)
    cluster = instance.cluster
    assert (cluster.nodes, cluster.gpus_per_node, cluster.gpu.name) == (2, 8, "h100-sxm")
    assert (cluster.gpu.peak_tflops, cluster.nvlink_gb_per_s) == (989.0, 450.0)
    assert cluster.fabric.node_gb_per_s == 400.0


def test_racks_are_nvlink_domains_or_leaves(tmp_path: Path) -> None:
    system = read_system(write(tmp_path, GB200, "gb200.yaml"))
    instance = draft(tmp_path, recorded(tmp_path), gpus=144, slots_per_gpu=1, system=system)
    fabric: Any = instance.cluster.fabric
    assert (instance.cluster.nodes, instance.cluster.nvlink_domain_nodes, fabric.nodes_per_leaf) == (36, 18, 36)
    assert (fabric.node_gb_per_s, fabric.oversubscription) == (400.0, 1.0)  # 4 GPUs x 100 GB/s between racks
    # Kernels that send once per node have no domains of several: racks count as leaves.
    instance = draft(tmp_path, recorded(tmp_path), gpus=144, slots_per_gpu=1, system=system, dispatch="per-node")
    fabric = instance.cluster.fabric
    assert instance.cluster.nvlink_domain_nodes is None
    assert (instance.cluster.nodes, fabric.nodes_per_leaf) == (36, 18)
    assert (fabric.node_gb_per_s, fabric.oversubscription) == (3600.0, 9.0)  # 900 GB/s in a rack, 100 between racks


def test_the_command_takes_it_in_the_place_of_a_gpu(tmp_path: Path) -> None:
    common = ("init", "--model", write_text(tmp_path, "config.json", SMALL), "--recording", recorded(tmp_path))
    system = write(tmp_path, H100)
    told(*common, "--gpus", 8, "--system", system, "-o", tmp_path / "i.yaml")
    assert "aiconfigurator's system file h100_sxm.yaml" in (tmp_path / "i.yaml").read_text()
    both = told(*common, "--gpus", 8, "--system", system, "--gpu", "h100", "-o", tmp_path / "j.yaml", code=1)
    assert "one of --gpu and --system" in both.err


def test_every_mistake_of_a_system_is_listed(tmp_path: Path) -> None:
    gpu = {key: value for key, value in H100["gpu"].items() if key != "mem_bw"}
    node = GB200["node"] | {"num_gpus_per_rack": 70, "inter_node_bw": "fast"}
    with pytest.raises(InputError) as caught:
        read_system(write(tmp_path, {"gpu": gpu, "node": node}))
    assert [(mistake.path, mistake.found) for mistake in caught.value.mistakes] == [
        ("gpu.mem_bw", "nothing"),
        ("node.inter_node_bw", "'fast'"),
        ("node.num_gpus_per_rack", "70"),
    ]
    for text in ("", "gpu: 3", "[1, 2]", "a: [", "gpu: {}\nnode: {}", "\x00", "gpu: &a [*a]"):
        with pytest.raises(InputError):
            read_system(write(tmp_path, text))


@settings(max_examples=60)
@given(st.data())
def test_damaged_systems_give_one_message(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    text = yaml.safe_dump(GB200)
    first = data.draw(st.integers(0, len(text)))
    last = data.draw(st.integers(first, len(text)))
    broken = text[:first] + data.draw(st.text(max_size=8)) + text[last:]
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    file.write_text(broken, encoding="utf-8", errors="replace")
    with suppress(InputError):  # any other exception fails
        assert read_system(file).preset.memory_gb > 0


def test_the_systems_of_the_package_are_read() -> None:
    package = importlib.util.find_spec("aiconfigurator_core")
    if package is None or not package.submodule_search_locations:
        pytest.skip("aiconfigurator-core is not installed")
    folder = Path(next(iter(package.submodule_search_locations))) / "systems"
    h100 = read_system(folder / "h100_sxm.yaml").preset
    ours = PRESETS["h100"]
    assert h100.node_gb_per_s == ours.node_gb_per_s
    assert h100.nvlink_gb_per_s == ours.nvlink_gb_per_s
    assert h100.tflops["bf16"] == ours.tflops["bf16"]
    systems = [file for file in folder.glob("*.yaml") if "tc_flops" in file.read_text()]
    assert len(systems) >= 10
    for file in systems:
        assert read_system(file).preset.tflops["bf16"] > 0


def line(layer: int, batch: str, counts: list[int], k: int = 2, policy: str = "RAND") -> str:
    tokens = sum(counts) // k
    head = f"[12:00:01] INFO GateRouter layer={layer} policy={policy} E={len(counts)} k={k} batch={batch}"
    return f"{head} tokens={tokens} assigned={counts}\n"


def log(folder: Path, text: str, name: str = "sim.log") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_a_log_is_counts_of_batches(tmp_path: Path) -> None:
    text = "start\n" + line(1, "0", [2, 0, 4]) + "other\n" + line(2, "0", [1, 3, 2])
    text += line(1, "1", [0, 0, 2]) + line(2, "1", [2, 0, 0]) + line(1, "1", [4, 0, 0])
    found = read_recording([log(tmp_path, text)], Options())
    assert found.load.tolist() == [[6, 0, 6], [3, 3, 2]]
    about = found.about
    assert (about.steps, about.top_k, about.layers, about.dense_layers) == (3, 2, (1, 2), (0,))
    assert found.arrays["window_load"].sum(axis=0).tolist() == found.load.tolist()


def test_lists_may_be_broken_over_lines(tmp_path: Path) -> None:
    text = line(0, "0", [2, 0, 4]).replace("0, 4", "0,\n      4")
    assert read_recording([log(tmp_path, text)], Options()).load.tolist() == [[2, 0, 4]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nothing of that kind\n", "found no such line"),
        ("layer=0 policy=RR E=4 k=1 ep=2 batch=0 tokens=4 local=[2, 2] activated=[1, 1]\n", "found tokens by rank"),
        (line(0, "0", [2, 0, 4]).replace("tokens=3", "tokens=4"), "1: found 6 choices, expected 4 tokens x k=2 = 8"),
        (line(0, "0", [2, 0, 4]).replace("E=3", "E=4"), "1: found 3 words in `assigned`, expected counts of 4 experts"),
        ("\n" + line(0, "0", [2, 4]).replace("2,", "x,"), "2: found words that are no counts"),
        (line(0, "0", [2, 0, 4]) + line(1, "0", [2, 4]), "2: found 2 experts, k=2, expected 3 experts, k=2, as before"),
        (line(10**6, "0", [2, 4]), "expected layers below 10,000"),
    ],
)
def test_wrong_logs_name_the_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read_recording([log(tmp_path, text)], Options())
    assert says in str(caught.value)


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=6), st.integers(1, 3))
def test_logs_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]], k: int) -> None:
    table = np.array(rows) * k  # any multiple of k is choices of whole tokens
    text = "".join(line(0, str(batch), counts, k) for batch, counts in enumerate(table.tolist()))
    file = log(tmp_path_factory.getbasetemp(), text, "round.log")
    if not table.any():
        with pytest.raises(InputError, match="no choice of any expert"):
            read_recording([file], Options())
        return
    found = read_recording([file], Options())
    assert found.load.tolist() == [table.sum(axis=0).tolist()]


@settings(max_examples=60)
@given(st.data())
def test_damaged_logs_give_one_message(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    text = line(0, "0", [2, 0, 4]) + line(1, "0", [1, 3, 2])
    first = data.draw(st.integers(0, len(text)))
    last = data.draw(st.integers(first, len(text)))
    broken = text[:first] + data.draw(st.text(max_size=8)) + text[last:]
    file = tmp_path_factory.getbasetemp() / "fuzzed.log"
    file.write_text(broken, encoding="utf-8", errors="replace")
    with suppress(InputError):  # any other exception fails
        assert read_recording([file], Options()).load.sum() > 0
