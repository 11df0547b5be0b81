"""Writes one synthetic recording the way each engine's code writes it."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch_writer import save

Ints = np.ndarray


@dataclass
class Truth:
    """Tokens of some ranks in some steps: ``topk[step][rank]`` [tokens, decoder layers, top_k], -1 in dense layers."""

    experts: int
    top_k: int
    dense: tuple[int, ...]
    layers: int
    ranks: int
    topk: list[list[Ints]]
    p2l: Ints  # [decoder layers, slots]
    seed: int

    @property
    def moe(self) -> list[int]:
        return [layer for layer in range(self.layers) if layer not in self.dense]

    def counts(self, step: int, rank: int) -> Ints:
        """Times that each expert was chosen [decoder layers, experts]."""
        return count(self.topk[step][rank], self.experts)

    @property
    def source_load(self) -> Ints:
        """[ranks, MoE layers, experts]."""
        steps = range(len(self.topk))
        return np.array([sum(self.counts(step, rank) for step in steps)[self.moe] for rank in range(self.ranks)])

    @property
    def load(self) -> Ints:
        return self.source_load.sum(axis=0)

    @property
    def window_load(self) -> Ints:
        """[steps with choices, MoE layers, experts]."""
        all_steps = np.array(
            [sum(self.counts(step, rank) for rank in range(self.ranks))[self.moe] for step in range(len(self.topk))]
        )
        return all_steps[all_steps.any(axis=(1, 2))]

    @property
    def tokens(self) -> Ints:
        """All tokens [tokens, MoE layers, top_k], by step and rank."""
        return np.concatenate([rank for step in self.topk for rank in step])[:, self.moe]

    def physical(self, step: int, rank: int) -> Ints:
        """Return slot ids [decoder layers, tokens, 8] of the choices, any replica of each expert; -1 for none."""
        rng = np.random.default_rng((self.seed, step, rank))
        logical = self.topk[step][rank]
        ids = np.full((self.layers, len(logical), 8), -1, np.int32)
        for layer in self.moe:
            for token in range(len(logical)):
                for k in np.flatnonzero(logical[token, layer] >= 0):
                    ids[layer, token, k] = rng.choice(np.flatnonzero(self.p2l[layer] == logical[token, layer, k]))
        return ids


def count(ids: Ints, experts: int) -> Ints:
    """Count ids [tokens, layers, k] from 0 on, the slow way."""
    table = np.zeros((ids.shape[1], experts), np.int64)
    for token in ids:
        for layer, chosen in enumerate(token):
            for expert in chosen:
                if expert >= 0:
                    table[layer, expert] += 1
    return table


def make(
    seed: int = 0, *, dense: tuple[int, ...] = (0,), layers: int = 3, ranks: int = 2, steps: int = 3, top_k: int = 2,
    experts: int = 6, redundant: int = 2,
) -> Truth:  # fmt: skip
    """Draw a recording; every expert of every MoE layer is chosen at least once."""
    rng = np.random.default_rng(seed)
    moe = [layer for layer in range(layers) if layer not in dense]
    topk = []
    for step in range(steps):
        row = []
        for rank in range(ranks):
            tokens = int(rng.integers(0, 4)) + (experts if step == rank == 0 else 0)
            ids = np.full((tokens, layers, top_k), -1, np.int32)
            for token in range(tokens):
                for layer in moe:
                    ids[token, layer] = rng.permutation(experts)[:top_k]
            if step == rank == 0:
                ids[:experts, moe, 0] = np.arange(experts)[:, None]
                ids[:experts, moe, 1:] = (np.arange(experts)[:, None, None] + np.arange(1, top_k)) % experts
            row.append(ids)
        topk.append(row)
    extra = rng.integers(0, experts, (layers, redundant))
    p2l = np.concatenate([np.tile(np.arange(experts), (layers, 1)), extra], axis=1)
    p2l = rng.permuted(p2l, axis=1).astype(np.int64)
    return Truth(experts, top_k, dense, layers, ranks, topk, p2l, seed)


def write_sglang_stat(truth: Truth, file: Path, empty: int = 2) -> Path:
    """Write counts by step, summed over ranks, in a buffer with unused steps."""
    steps = [sum(truth.counts(step, rank) for rank in range(truth.ranks)) for step in range(len(truth.topk))]
    buffer = np.array(steps + [np.zeros((truth.layers, truth.experts))] * empty, np.int32)
    return save({"rank": 0, "logical_count": buffer, "average_utilization_rate_over_window": None}, file)


def write_sglang_detail(
    truth: Truth, folder: Path, *, by_token: bool, misc: bool = False, alike: bool = False, arriving: bool = False
) -> list[Path]:
    """Write one file per rank, with all passes.

    Parameters
    ----------
    misc : bool
        DeepEP reported what it sent: as in SGLang, in one list that all passes share and each pass empties.
    alike : bool
        Every rank records rank 0's tokens.
    arriving : bool
        Ranks count what arrives at their own slots.
    """
    folder.mkdir(exist_ok=True)
    files = []
    for rank in range(truth.ranks):
        records: list[dict[str, Any]] = []
        shared: list[Any] = []
        for step in range(len(truth.topk)):
            source = 0 if alike else rank
            ids = truth.physical(step, source)
            counts = count(ids.transpose(1, 0, 2), truth.p2l.shape[1]).astype(np.int32)
            if arriving:
                every = [
                    count(truth.physical(step, r).transpose(1, 0, 2), truth.p2l.shape[1]) for r in range(truth.ranks)
                ]
                share = truth.p2l.shape[1] // truth.ranks
                counts = np.zeros_like(counts)
                counts[:, rank * share : (rank + 1) * share] = sum(every)[:, rank * share : (rank + 1) * share]
            record: dict[str, Any] = {"forward_pass_id": 10 + step, "rank": rank, "gatherer_key": "primary"}
            if by_token:
                lengths = [ids.shape[1] // 2, ids.shape[1] - ids.shape[1] // 2]
                record |= {"input_ids": list(range(ids.shape[1])), "positions": list(range(ids.shape[1]))}
                record |= {
                    "extend_seq_lens": lengths,
                    "forward_mode": 1,
                    "topk_ids_of_layer": ids,
                    "misc_objects": shared,
                }
            if misc:
                shared.clear()
                for layer in truth.moe:
                    per_rank = [100 * rank + 10 * layer + step + other for other in range(truth.ranks)]
                    sent = {"num_tokens_per_rank": per_rank, "num_tokens_per_rdma_rank": [sum(per_rank)]}
                    shared.append({"layer_id": layer, **sent, "num_tokens_per_expert": [1] * 8})
            records.append({**record, "global_physical_count": counts})
        content = {"records": records, "last_physical_to_logical_map": truth.p2l}
        files.append(save(content, folder / f"expert_distribution_recorder_17.5_{rank}.pt"))
    return files


def write_safetensors(arrays: dict[str, Ints], file: Path) -> Path:
    """Write the format of safetensors: length of the header, header, values."""
    names = {"int64": "I64", "int32": "I32", "int16": "I16", "uint8": "U8"}
    header, values = {}, b""
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        offsets = [len(values), len(values) + len(raw)]
        header[name] = {"dtype": names[str(array.dtype)], "shape": list(array.shape), "data_offsets": offsets}
        values += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + values)
    return file


def write_trtllm(truth: Truth, folder: Path, *, raw: bool, chunked: bool = False) -> Path:
    """Write TensorRT-LLM's statistics folder; ``chunked`` drops the first token of each raw iteration."""
    folder.mkdir(exist_ok=True)
    meta = {"num_experts": truth.experts, "num_experts_per_token": truth.top_k}
    (folder / "meta_info.json").write_text(json.dumps(meta))
    for rank in range(truth.ranks):
        counts, choices = {}, {}
        for step in range(len(truth.topk)):
            for layer in truth.moe:
                key = f"{50 + step}_{layer}"
                counts[key] = truth.counts(step, rank)[layer].astype(np.int32)
                choices[key] = truth.topk[step][rank][1 if chunked else 0 :, layer].astype(np.int32)
        write_safetensors(counts, folder / f"rank{rank}.safetensors")
        if raw:
            write_safetensors(choices, folder / f"rank{rank}_raw.safetensors")
    return folder


def write_routed_experts(truth: Truth, folder: Path, kind: str, *, with_dense: bool) -> Path:
    """Write one array for each step and rank; dense layers hold zeros where they are there at all."""
    rows = list(range(truth.layers)) if with_dense else truth.moe
    arrays = [np.maximum(ids[:, rows], 0).astype(np.int32) for step in truth.topk for ids in step if len(ids)]
    file = folder / f"routed.{kind}"
    if kind == "npy":
        np.save(file, np.concatenate(arrays))
    elif kind == "npz":
        np.savez_compressed(file, **{f"request-{i}": array for i, array in enumerate(arrays)})
    else:
        responses = [
            {"id": f"cmpl-{i}", "choices": [{"index": 0, "text": "…", "routed_experts": as_base64(array)}]}
            for i, array in enumerate(arrays)
        ]
        text = json.dumps(responses) if kind == "json" else "\n".join(map(json.dumps, responses)) + "\n"
        file.write_text(text)
    return file


def as_base64(array: Ints) -> str:
    stream = io.BytesIO()
    np.save(stream, array)
    return base64.b64encode(stream.getvalue()).decode()


def write_vllm_stats(truth: Truth, file: Path, *, meta: bool = True) -> Path:
    """Write counts of physical slots by step; a replica gets all of an expert's load or a part."""
    rng = np.random.default_rng(truth.seed)
    lines: list[dict[str, Any]] = []
    if meta:
        lines.append({"record_type": "eplb_load_meta", "version": 1, "model": "m", "num_ranks": truth.ranks})
    for step in range(len(truth.topk)):
        logical = sum(truth.counts(step, rank) for rank in range(truth.ranks))[truth.moe]
        p2l = rng.permuted(truth.p2l[truth.moe], axis=1)
        load = np.zeros_like(p2l)
        for layer in range(len(p2l)):
            for expert in range(truth.experts):
                slots = np.flatnonzero(p2l[layer] == expert)
                load[layer, slots] = rng.multinomial(logical[layer, expert], np.full(len(slots), 1 / len(slots)))
        record = {"record_type": "eplb_load_stats", "version": 1, "step": step}
        lines.append({**record, "expert_load": load.tolist(), "p2l_map": p2l.tolist()})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def write_bundle_trace(truth: Truth, file: Path, gate: str = "model.layers.{}.mlp.gate") -> Path:
    """Write sets of experts with source rank and count, layer by layer."""
    layers = []
    for layer in truth.moe:
        bundles: dict[tuple[int, tuple[int, ...]], int] = {}
        for step in truth.topk:
            for rank, ids in enumerate(step):
                for token in ids:
                    key = (rank, tuple(sorted(map(int, token[layer]))))
                    bundles[key] = bundles.get(key, 0) + 1
        items = sorted(bundles.items())
        layers.append(
            {
                "gate": gate.format(layer),
                "source_rank": np.array([source for (source, _), _ in items], np.int16),
                "topk_experts": np.array([experts for (_, experts), _ in items], np.int16),
                "count": np.array([count for _, count in items], np.int16),
            }
        )
    content = {"format": "sglang.moe_bundle_trace.v1", "num_ranks": truth.ranks, "top_k": truth.top_k, "layers": layers}
    return save(content, file)
