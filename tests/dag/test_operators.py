"""The graph down to operators: what it must come to by hand, and for every example in both phases."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import pytest
from command_line import TINY, fails, run
from dag_examples import VARIANTS, example

from moe_placer.dag.build import build_dag
from moe_placer.dag.operation import Dag
from moe_placer.dag.operators import Attended, refine
from moe_placer.dag.operators.draw_operators import draw_operators
from moe_placer.dag.texts import to_dot, to_json
from moe_placer.instance import Instance
from moe_placer.instance.schema import Mla
from moe_placer.schedule.durations import context_flops
from moe_placer.schedule.workload import Phase, Workload
from moe_placer.verifier.dags import verify_dags

LATENT = [name for name in VARIANTS if isinstance(example(name)[0].model.attention, Mla)]
# Those whose operators differ, for what takes longer; `test_operators_come_to_their_operation` has all.
SOME = (
    *("small", "one-gpu", "no-dense-layers", "tensor-parallel-over-nodes", "uneven-tensor-parallelism"),
    *("no-tensor-parallelism", "sharded-experts", "once-per-node-even", "once-per-gpu", "failed-group-over-nodes"),
)
CORE = {"attention_scores", "attention_context"}


def refined(name: str, attended: Attended | None = None) -> tuple[Instance, Dag, Dag]:
    some = example(name)
    coarse = build_dag(*some)
    return some[0], coarse, refine(coarse, some[0], attended)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", VARIANTS)
def test_operators_come_to_their_operation(name: str, phase: Phase) -> None:
    """FLOPs and bytes of all operators of an operation are its own, less what they hand on among themselves."""
    instance, coarse, fine = refined(name, Attended(phase, 4096.0))
    operators = defaultdict(list)
    for one in fine.operations():
        operators[one.detail.get("part_of")].append(one)
    for op in coarse.operations():
        parts = operators[op.id]
        if not parts:
            assert fine.operation(op.id).flops == op.flops
            assert fine.operation(op.id).bytes_read == pytest.approx(op.bytes_read)
            continue
        assert sum(one.flops for one in parts if one.kind not in CORE) == pytest.approx(op.flops)
        own = {one.id for one in parts}
        inside = sum(edge.bytes for one in parts for edge in fine.incoming(one.id) if edge.source in own)
        assert sum(one.bytes_read for one in parts) - inside == pytest.approx(op.bytes_read)
        if op.kind == "attention":
            tokens = next(iter(op.inputs.values()))[0]
            core = sum(one.flops for one in parts if one.kind in CORE)
            step = Workload(phase=phase, context=4096)
            assert core == pytest.approx(context_flops(instance, step, tokens))  # what a simulated step takes


def test_a_layer_by_hand() -> None:
    """Four heads of 16 on two GPUs, 200 tokens, 100 tokens of context; experts of 64 x 32."""
    _, _, fine = refined("small", Attended("decode", 100))
    ops = {op.id: op for op in fine.operations()}
    shapes = {
        edge.tensor: (edge.shape, edge.parts) for edge in fine.edges() if edge.target.startswith("L1.attention.g0")
    }
    assert shapes["query.g0"] == ((200.0, 2.0, 16), 2)
    assert shapes["scores.g0"] == ((200.0, 2.0, 100), 2)
    assert ops["L1.attention.g0.linear_qkv"].detail["weight"] == (96.0, 64)
    assert ops["L1.attention.g0.linear_proj"].detail["weight"] == (64, 32.0)
    assert ops["L1.attention.g0.attention_scores"].flops == 2 * 200 * 100 * 4 * 16
    assert ops["L1.attention.g0.attention_scores"].detail["cache_bytes"] == 200 * 100 * 4 * 16 * 2
    assert ops["L0.mlp.g0.linear_fc1"].detail["weight"] == (2 * 32 / 2, 64)  # dense layers: top_k times as wide
    tokens = next(iter(ops["L1.expert.e0.r0.linear_fc1"].inputs.values()))[0]
    assert ops["L1.expert.e0.r0.linear_fc1"].flops == 2 * tokens * 64 * 32
    assert ops["L1.self_attn_bda.g0"].inputs.keys() == {"self_attn_bda_block.g0", "self_attn_bda_residual.g0"}
    assert {edge.source for edge in fine.incoming("L1.self_attn_bda.g0")} == {"L1.attention_reduce.g0", "L0.mlp_bda.g0"}
    assert ops["L1.gate.g0.router_topk"].detail["module"] == "decoder.layers.1.mlp.router.routing"


@pytest.mark.parametrize("name", SOME)
def test_every_example_passes_the_verifier(name: str, tmp_path: Path) -> None:
    instance, placement, traffic = example(name)
    for stem, layers in (("layer_operators", [instance.moe_layers[-1]]), ("model_operators", None)):
        coarse = build_dag(instance, placement, traffic, layers, whole=layers is None)
        fine = refine(coarse, instance, Attended("decode", 100.0))
        (tmp_path / f"{stem}.json").write_text(to_json(fine, stem))
        (tmp_path / f"{stem}.dot").write_text(to_dot(fine, stem))
        if layers:
            drawn = draw_operators(fine)
            assert {shape.operation for shape in drawn.items if getattr(shape, "operation", "")} == set(fine.graph)
    checks = verify_dags(instance, placement, tmp_path, traffic)
    assert [(check.name, check.violations) for check in checks] == [("layer_operators", ()), ("model_operators", ())]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", LATENT)
def test_latent_attention_passes_the_verifier(name: str, phase: Phase, tmp_path: Path) -> None:
    instance, placement, traffic = example(name)
    fine = refine(build_dag(instance, placement, traffic, [1], whole=False), instance, Attended(phase, 100.0))
    (tmp_path / "layer_operators.json").write_text(to_json(fine, "layer_operators"))
    (tmp_path / "layer_operators.dot").write_text(to_dot(fine, "layer_operators"))
    drawn = draw_operators(fine)
    assert {shape.operation for shape in drawn.items if getattr(shape, "operation", "")} == set(fine.graph)
    (check,) = verify_dags(instance, placement, tmp_path, traffic)
    assert check.violations == ()


def test_latent_attention_by_hand() -> None:
    """Four heads of 16 + 8 on two GPUs, latents of 40 and 24, 200 tokens of hidden size 64 that see 100."""
    _, _, fine = refined("latent-attention-and-dense-between", Attended("decode", 100))
    ops = {op.kind: op for op in fine.operations() if op.id.startswith("L1.attention.g0.")}
    shapes = {
        edge.tensor: (edge.shape, edge.parts) for edge in fine.edges() if edge.target.startswith("L1.attention.g0.")
    }
    assert ops["linear_qkv_down_proj"].detail["weight"] == ((40 + 24 + 8) / 2, 64)
    assert ops["linear_q_up_proj"].detail["weight"] == (2 * (16 + 8), 40)
    assert ops["absorb_keys"].detail["weight"] == (2 * 16, 24)
    assert ops["absorb_keys"].flops == 2 * 200 * 4 * 16 * 24
    assert ops["attention_scores"].flops == 2 * 200 * 100 * 4 * (24 + 8)
    assert ops["attention_context"].flops == 2 * 200 * 100 * 4 * 24
    assert ops["attention_scores"].detail["cache_bytes"] == 200 * 100 * (24 + 8) * 2 * 2  # both GPUs read all of it
    assert shapes["latents.g0"] == ((200.0, 36.0), 2)
    assert shapes["absorbed_query.g0"] == ((200.0, 2.0, 24), 2)
    assert shapes["latent.g0"] == ((200.0, 24), 1)
    assert "linear_kv_up_proj" not in ops
    _, _, fine = refined("latent-attention-and-dense-between")
    ops = {op.kind: op for op in fine.operations() if op.id.startswith("L1.attention.g0.")}
    assert ops["linear_kv_up_proj"].detail["weight"] == (2 * (16 + 16), 24)
    assert ops["attention_scores"].flops == 2 * 200 * 2048.5 * 4 * (16 + 8)


@pytest.mark.parametrize("layer", [0, 1])
def test_nothing_in_the_drawing_lies_outside_or_on_something_else(layer: int) -> None:
    instance, placement, traffic = example("small")
    canvas = draw_operators(refine(build_dag(instance, placement, traffic, [layer], whole=False), instance))
    boxes = [
        (item.x, item.y, item.x + item.form.box[2], item.y + item.form.box[3])
        for item in canvas.items
        if getattr(item, "operation", "")
    ]
    assert len(boxes) > 30
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left < right <= canvas.width
        assert 0 <= top < bottom <= canvas.height
        for other in boxes[:index]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_the_command_writes_and_verify_reads(tmp_path: Path) -> None:
    assert run("solve", TINY, "-o", tmp_path, "--solver", "greedy", "--no-dag").returncode == 0
    placement = tmp_path / "placement.json"
    done = run("dag", TINY, placement, "-o", tmp_path, "--operators", "--phase", "decode", "--context", 300)
    assert done.returncode == 0, done.stderr
    files = {path.name for path in tmp_path.iterdir()} - {"placement.json"}
    layer = {f"layer_operators.{suffix}" for suffix in ("dot", "json", "svg", "html")}
    assert files == layer | {"model_operators.dot", "model_operators.json"}
    again = run("verify", TINY, placement)
    assert again.returncode == 0
    assert "model_operators" in again.stdout
    first = (tmp_path / "layer_operators.svg").read_bytes()
    run("dag", TINY, placement, "-o", tmp_path, "--operators", "--phase", "decode", "--context", 300)
    assert (tmp_path / "layer_operators.svg").read_bytes() == first
    fails(2, "dag", TINY, placement, "-o", tmp_path, "--layer", 1, says="--layer says which layer --operators draws")
    fails(2, "dag", TINY, placement, "-o", tmp_path, "--operators", "--layer", 99, says="there is no layer 99")


def test_attention_over_half_a_sequence() -> None:
    assert Attended("prefill", 4096).seen == 2048.5
    assert Attended("decode", 4096).seen == 4096
    assert math.isclose(Attended("prefill", 1).seen, 1)
