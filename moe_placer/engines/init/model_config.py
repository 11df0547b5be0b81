"""Reads a Hugging Face ``config.json`` of a Mixture-of-Experts model as the section ``model`` of an instance."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_placer.errors import InputError, Mistake
from moe_placer.files import not_json, read_bounded

__all__ = ["ConfigModel", "read_model_config"]

_MOST_BYTES = 5_000_000
_EXPECTED = "a Hugging Face config.json of a Mixture-of-Experts model"

Config = Mapping[str, Any]


@dataclass(frozen=True)
class ConfigModel:
    """A model as its config describes it.

    Attributes
    ----------
    name : str
        The config's ``model_type``.
    fields : dict
        Of the section ``model``.
    comments : dict of str to str
        Why a field has its value, where that is not plain.
    notes : tuple of str
        What the instance does not hold.
    """

    name: str
    fields: dict[str, Any]
    comments: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Family:
    """Names of a family's fields; ``dense`` lists layers without experts, ``shared`` is the width of shared ones."""

    experts: str
    expert_hidden_size: str
    dense: Callable[[_Reader], list[int]]
    top_k: str = "num_experts_per_tok"
    mla: bool = False
    shared: Callable[[_Reader], int] = lambda _: 0


def _no_dense(reader: _Reader) -> list[int]:
    del reader
    return []


def _first_k_dense(reader: _Reader) -> list[int]:
    """DeepSeek: the first layers are dense, and of the others all but every moe_layer_freq-th."""
    first, step = reader.count("first_k_dense_replace", default=0, least=0), reader.count("moe_layer_freq", default=1)
    return [i for i in range(reader.count("num_hidden_layers")) if i < first or i % step]


def _sparse_step(reader: _Reader) -> list[int]:
    """Qwen: dense are the layers that are listed, and all but every decoder_sparse_step-th."""
    step, listed = reader.count("decoder_sparse_step", default=1), reader.config.get("mlp_only_layers") or []
    if not isinstance(listed, list) or not all(type(layer) is int for layer in listed):
        raise reader.wrong("mlp_only_layers", "no list of layers", "a list of whole numbers")
    return [i for i in range(reader.count("num_hidden_layers")) if i in set(listed) or (i + 1) % step]


def _shared_count(reader: _Reader) -> int:
    """DeepSeek and GLM: shared experts are as wide as routed ones, and counted."""
    return reader.count("n_shared_experts", default=0, least=0) * reader.count("moe_intermediate_size")


def _shared_width(reader: _Reader) -> int:
    """Qwen2-MoE: one shared expert with a width of its own."""
    return reader.count("shared_expert_intermediate_size", default=0, least=0)


_DEEPSEEK = _Family("n_routed_experts", "moe_intermediate_size", _first_k_dense, mla=True, shared=_shared_count)
_QWEN = _Family("num_experts", "moe_intermediate_size", _sparse_step, shared=_shared_width)
_LOCAL = _Family("num_local_experts", "intermediate_size", _no_dense)

FAMILIES: dict[str, _Family] = {
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "glm4_moe": _Family("n_routed_experts", "moe_intermediate_size", _first_k_dense, shared=_shared_count),
    "qwen2_moe": _QWEN,
    "qwen3_moe": _QWEN,
    "olmoe": _Family("num_experts", "intermediate_size", _no_dense),
    "mixtral": _LOCAL,
    "gpt_oss": _LOCAL,
}

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_QUANTIZED = {"fp8": "fp8", "mxfp4": "fp4", "nvfp4": "fp4"}
# What quantized checkpoints leave as it was: fp8 (DeepSeek-V3) quantizes all large projections, fp4 only the experts.
_UNQUANTIZED = {
    "fp8": ("scores", "kv_cache", "gate", "head", "activations"),
    "fp4": ("attention", "scores", "kv_cache", "dense", "shared", "gate", "head", "activations"),
}


def read_model_config(file: Path, dtype: str | None = None) -> ConfigModel:
    """Read a config; ``dtype`` overrides the precision that it states.

    Raises
    ------
    InputError
        The file is missing or damaged, or of a model that is not known or not complete; all that is wrong is listed.
    """
    try:
        config = json.loads(read_bounded(file, _MOST_BYTES, _EXPECTED))
    except (ValueError, RecursionError) as error:
        raise InputError(Mistake(not_json(error), _EXPECTED, file=file)) from None
    if not isinstance(config, dict):
        raise InputError(Mistake("no JSON object", _EXPECTED, file=file))
    known = ", ".join(FAMILIES)
    name = str(config.get("model_type", "none"))[:60]
    if name not in FAMILIES and isinstance(config.get("text_config"), dict):
        config = {**config["text_config"], "quantization_config": _quantization(config)}
        name = str(config.get("model_type", "none"))[:60]
    if name not in FAMILIES:
        raise InputError(Mistake(name, f"one of {known}; or write the section model by hand", "model_type", file))
    return _Reader(file, config).model(name, FAMILIES[name], dtype)


def _quantization(config: Config) -> Any:
    """Find how a model of text and images says that it is quantized."""
    return config.get("quantization_config") or config["text_config"].get("quantization_config")


class _Reader:
    """Reads one config, and collects what is wrong with it."""

    def __init__(self, file: Path, config: Config) -> None:
        self.file = file
        self.config = config
        self.mistakes: list[Mistake] = []

    def model(self, name: str, family: _Family, dtype: str | None) -> ConfigModel:
        layers, heads = self.count("num_hidden_layers"), self.count("num_attention_heads")
        hidden = self.count("hidden_size")
        precision, why = (dtype, "--dtype") if dtype else self._dtype()
        dense = family.dense(self) if not self.mistakes else []
        head_dim = self.count("v_head_dim") if family.mla else self.count("head_dim", default=max(1, hidden // heads))
        fields: dict[str, Any] = {
            "layers": layers,
            "dense_layers": dense,
            "hidden_size": hidden,
            "attention_heads": heads,
            "head_dim": head_dim,
            "experts": self.count(family.experts),
            "top_k": self.count(family.top_k),
            "expert_hidden_size": self.count(family.expert_hidden_size),
            "expert_matrices": 3,
            "dtype": precision,
            "vocab_size": self.count("vocab_size"),
            "attention": self._attention(family, heads),
        }
        if dense:
            fields["dense_hidden_size"] = self.count("intermediate_size")
        if shared := family.shared(self):
            fields["shared_expert_hidden_size"] = shared
        if isinstance(self.config.get("topk_group"), int) and self.count("n_group", default=1) > 1:
            fields |= {"expert_groups": self.count("n_group"), "top_groups": self.count("topk_group")}
        if kept := _UNQUANTIZED.get(precision):
            fields["dtypes"] = dict.fromkeys(kept, "bf16")
        if self.mistakes:
            raise InputError(self.mistakes)
        comments = {"dtype": why, "expert_matrices": "gate, up and down"}
        if family.mla:
            comments["head_dim"] = "v_head_dim"
        if kept:
            comments["dtypes"] = f"what {precision} checkpoints leave as it is"
        return ConfigModel(name, fields, comments, tuple(self._notes()))

    def _attention(self, family: _Family, heads: int) -> dict[str, Any]:
        """Return the section ``attention``."""
        if not family.mla:
            kept = self.count("num_key_value_heads", default=heads)
            return {"kind": "mha"} if kept == heads else {"kind": "gqa", "kv_heads": kept}
        names = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim")
        ranks = {"q_lora_rank": self.count("q_lora_rank")} if self.config.get("q_lora_rank") is not None else {}
        return {"kind": "mla", **{name: self.count(name) for name in names}, **ranks}

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number of the config; of a wrong one, note the mistake and go on."""
        value = self.config.get(key)
        value = default if value is None else value
        if type(value) is int and least <= value <= 100_000_000:
            return value
        found = "nothing" if value is None else repr(value)[:60]
        self.mistakes.append(Mistake(found, f"a whole number of {least} or more", key, self.file))
        return least

    def wrong(self, key: str, found: str, expected: str) -> InputError:
        """Say what is wrong with a field."""
        return InputError(Mistake(found, expected, key, self.file))

    def _dtype(self) -> tuple[str, str]:
        """Return the precision of the experts, and where it is from."""
        quantized = self.config.get("quantization_config")
        if isinstance(quantized, dict):
            method = str(quantized.get("quant_method"))[:40]
            if method in _QUANTIZED:
                return _QUANTIZED[method], f"quantization_config: {method}"
            expected = f"one of {', '.join(_QUANTIZED)}; or say which with --dtype"
            self.mistakes.append(Mistake(method, expected, "quantization_config.quant_method", self.file))
            return "bf16", ""
        key = "torch_dtype" if "torch_dtype" in self.config else "dtype"
        stated = str(self.config.get(key))[:40]
        if stated in _DTYPES:
            return _DTYPES[stated], key
        expected = f"one of {', '.join(_DTYPES)}; or say which with --dtype"
        self.mistakes.append(Mistake(stated, expected, key, self.file))
        return "bf16", ""

    def _notes(self) -> list[str]:
        notes = []
        if predict := self.config.get("num_nextn_predict_layers"):
            notes.append(f"{predict} layer for multi-token prediction is left out")
        if self.config.get("sliding_window") and self.config.get("use_sliding_window", True):
            notes.append("attention over a sliding window counts as attention over the whole context")
        return notes
