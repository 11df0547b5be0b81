"""What attention and MLPs come to, against figures of models that others state, and the verifier's own reckoning."""

from __future__ import annotations

from typing import Any

import pytest
from builders import tiny_instance
from dag_examples import REFERENCE
from hypothesis import given, settings
from hypothesis import strategies as st
from model_figures import parameters

from moe_placer.errors import InputError
from moe_placer.instance import Instance, load_instance
from moe_placer.instance.gpu_presets import PRESETS
from moe_placer.instance.model_parts import (
    attention_weights,
    dtype_of,
    kv_shards,
    kv_values,
    pair_flops,
    peak_tflops,
)
from moe_placer.instance.schema import Model
from moe_placer.instance.sizes import expert_bytes, expert_us, memory_parts
from moe_placer.verifier.capacity import sizes
from moe_placer.verifier.layer_time import expert_token_us

MLA = {"kind": "mla", "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}
DEEPSEEK_V3: dict[str, Any] = {
    "layers": 61, "dense_layers": [0, 1, 2], "hidden_size": 7168, "attention_heads": 128, "head_dim": 128,
    "experts": 256, "top_k": 8, "expert_hidden_size": 2048, "expert_matrices": 3, "dense_hidden_size": 18432,
    "shared_expert_hidden_size": 2048, "attention": MLA, "vocab_size": 129_280, "dtype": "fp8",
}  # fmt: skip
QWEN3_235B: dict[str, Any] = {
    "layers": 94, "hidden_size": 4096, "attention_heads": 64, "head_dim": 128, "experts": 128, "top_k": 8,
    "expert_hidden_size": 1536, "expert_matrices": 3, "attention": {"kind": "gqa", "kv_heads": 4},
    "vocab_size": 151_936, "dtype": "bf16",
}  # fmt: skip


def _tiny(changes: dict[str, Any]) -> Instance:
    return tiny_instance(**changes)


@pytest.mark.parametrize(
    ("fields", "total", "active"),
    # DeepSeek-V3's report states 671 and 37 billion (of which 0.9 in the embedding), Qwen3's 235 and 22.
    [(DEEPSEEK_V3, 671.0, 37.5), (QWEN3_235B, 235.1, 22.2)],
    ids=["deepseek-v3", "qwen3-235b"],
)
def test_models_have_as_many_parameters_as_their_makers_say(fields: Any, total: float, active: float) -> None:
    assert parameters(Model.model_validate(fields)) == pytest.approx((total, active), rel=0.003)


def test_latent_attention_keeps_little_of_a_token_and_works_on_the_latent_in_decode() -> None:
    model = Model.model_validate(DEEPSEEK_V3)
    # 7168 x 1536 + 1536 x 24,576; 7168 x 576; 512 x 32,768; 16,384 x 7168
    assert attention_weights(model) == 11_010_048 + 37_748_736 + 4_128_768 + 16_777_216 + 117_440_512
    assert kv_values(model) == 576  # DeepSeek-V2's report, table 1: 4.5 heads of keys and values, here of 128 each
    assert kv_shards(model, 8) == 1
    assert pair_flops(model, "prefill") == 2 * 128 * (192 + 128)
    assert pair_flops(model, "decode") == 2 * 128 * (576 + 512)


def test_full_heads_keep_28_times_as_much_as_four() -> None:
    full = Model.model_validate({**QWEN3_235B, "attention": {"kind": "mha"}})
    grouped = Model.model_validate(QWEN3_235B)
    assert kv_values(full) == 16 * kv_values(grouped) == 2 * 64 * 128
    assert (kv_shards(full, 8), kv_shards(grouped, 8), kv_shards(grouped, 2)) == (8, 4, 2)
    assert pair_flops(full, "decode") == pair_flops(grouped, "prefill") == 4 * 64 * 128
    assert attention_weights(full) == 4 * 4096 * 64 * 128
    assert attention_weights(grouped) == 2 * 4096 * 68 * 128


def test_what_is_not_said_of_attention_is_mha_with_four_full_projections() -> None:
    plain, said = tiny_instance(), _tiny({"model": {"attention": {"kind": "mha"}}})
    assert memory_parts(plain) == memory_parts(said)
    assert plain.sha256 != said.sha256  # other content, though it means the same
    assert attention_weights(plain.model) == 4 * 64 * 4 * 16


def test_fields_that_are_absent_leave_the_hash_alone() -> None:
    # As version 0.1.0 computed it: placements that were made then stay valid.
    assert load_instance(REFERENCE).sha256 == "46b51102f083adf23560a9089f7519b6efbbb2158e8a801325054ebedbd7b76d"
    assert _tiny({"model": {"shared_expert_hidden_size": 5}}).sha256 != tiny_instance().sha256
    assert _tiny({"cluster": {"gpu": {"dtype_tflops": {"fp8": 5.0}}}}).sha256 != tiny_instance().sha256


def test_a_dtype_without_a_peak_runs_as_the_next_wider_one() -> None:
    def peak(dtype: str, **stated: float) -> float:
        gpu = {"peak_tflops": 7.0, "dtype_tflops": stated}
        changes = {"model": {"dtypes": {"experts": dtype}}, "cluster": {"gpu": gpu}}
        instance = _tiny(changes)
        assert expert_token_us(instance) == pytest.approx(expert_us(instance, 1.0))  # the verifier's own
        return peak_tflops(instance, "experts")

    assert peak("fp8", fp8=20.0, bf16=10.0) == 20
    assert peak("fp4", fp8=20.0, bf16=10.0) == 20
    assert peak("fp8", bf16=10.0) == peak("fp16", bf16=10.0) == 10
    assert peak("fp32", bf16=10.0) == peak("bf16", fp8=20.0) == peak("bf16") == 7


def test_a_gpu_by_name_brings_all_its_peaks_where_parts_differ() -> None:
    alike = _tiny({"cluster": {"gpu": "h100-sxm"}})
    differ = _tiny({"cluster": {"gpu": "h100-sxm"}, "model": {"dtypes": {"experts": "fp8"}}})
    assert alike.cluster.gpu.dtype_tflops == {}
    assert differ.cluster.gpu.dtype_tflops == PRESETS["h100"].tflops
    assert (dtype_of(differ.model, "experts"), dtype_of(differ.model, "attention")) == ("fp8", "bf16")
    assert expert_bytes(differ) == expert_bytes(alike) / 2
    assert expert_us(differ, 10.0) == pytest.approx(expert_us(alike, 10.0) * 989 / 1979)


def test_heads_of_keys_divide_the_heads() -> None:
    with pytest.raises(InputError, match=r"model\.attention\.kv_heads: found 3, expected a divisor"):
        _tiny({"model": {"attention": {"kind": "gqa", "kv_heads": 3}}})


DTYPES = st.sampled_from([None, "fp32", "bf16", "fp16", "fp8", "fp4"])
ATTENTION = st.one_of(
    st.none(),
    st.just({"kind": "mha"}),
    st.builds(lambda n: {"kind": "gqa", "kv_heads": n}, st.sampled_from([1, 2, 4])),
    st.fixed_dictionaries(
        {"kind": st.just("mla"), "kv_lora_rank": st.integers(1, 90), "qk_rope_head_dim": st.integers(1, 40)},
        optional={"q_lora_rank": st.integers(1, 90), "qk_nope_head_dim": st.integers(1, 40)},
    ),
)


@given(
    attention=ATTENTION,
    dtypes=st.fixed_dictionaries(dict.fromkeys(("attention", "dense", "shared", "experts", "head"), DTYPES)),
    model=st.fixed_dictionaries(
        {"dense_matrices": st.sampled_from([None, 2, 3]), "expert_matrices": st.sampled_from([2, 3])},
        optional={"shared_expert_hidden_size": st.integers(1, 99), "dense_hidden_size": st.integers(1, 99)},
    ),
    tp=st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_the_verifier_reckons_the_same_memory(attention: Any, dtypes: Any, model: Any, tp: int) -> None:
    given_model = {**model, "attention": attention, "dtypes": dtypes}
    instance: Instance = _tiny({"model": given_model, "parallelism": {"attention_tp": tp}})
    assert sizes(instance) == pytest.approx((memory_parts(instance).total, expert_bytes(instance)))
