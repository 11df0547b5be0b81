"""Finds out what kind of recording some files are, and reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from moe_placer.engines.recordings.bundle_trace import is_bundle_trace, read_bundle_trace
from moe_placer.engines.recordings.esft_scores import is_expert_scores, read_expert_scores, scores_in
from moe_placer.engines.recordings.import_options import Options
from moe_placer.engines.recordings.llmservingsim_log import LOG_SUFFIXES, read_gate_log
from moe_placer.engines.recordings.load_matrix import LOAD_SUFFIXES, read_load_matrices
from moe_placer.engines.recordings.recorded import Recorded
from moe_placer.engines.recordings.recorded_tables import read_recorded_tables
from moe_placer.engines.recordings.routed_experts import is_routed_experts, read_routed_experts
from moe_placer.engines.recordings.sglang_detail import is_detail, read_detail
from moe_placer.engines.recordings.sglang_stat import is_stat, read_stat
from moe_placer.engines.recordings.trtllm_statistics import is_statistics_folder, read_statistics
from moe_placer.engines.recordings.vllm_load_stats import read_load_stats
from moe_placer.engines.torch_file import TorchFile, read_torch_file
from moe_placer.errors import InputError, Mistake
from moe_placer.traffic.token_table import TABLE_SUFFIXES, is_token_table

__all__ = ["KINDS", "read_recording"]

KINDS = (
    "SGLang: expert_distribution_recorder_*.pt (modes stat, per_pass, per_token; a file, or the folder of all ranks), "
    "*.pt of format sglang.moe_bundle_trace.v1; TensorRT-LLM: the folder EXPERT_STATISTIC_PATH; vLLM: routed_experts "
    "(.npy, .npz, or responses as .json, .jsonl), eplb_load_stats (.jsonl); "
    "ESFT: expert_weights_*.txt (or their folder); LLMServingSim: its log (.log, .txt); "
    "tables of tokens (.parquet, .arrow, .feather); counts [layers, experts] or "
    "[steps, layers, experts]: .npy, .npz, .csv, .json, .parquet"
)
_MOST_FILES = 4096
_IN_FOLDERS = {".pt", ".npy", ".npz", ".jsonl"} | TABLE_SUFFIXES

_TORCH: tuple[tuple[Callable[[object], bool], Callable[[Sequence[TorchFile], Options], Recorded]], ...] = (
    (is_stat, read_stat),
    (is_detail, read_detail),
    (is_bundle_trace, read_bundle_trace),
)


def read_recording(paths: Sequence[Path], options: Options) -> Recorded:
    """Read one recording: a file, all files of it, or the folder that they are in.

    Raises
    ------
    InputError
        A file is missing, damaged, hostile, of no known kind, or does not belong to the others.
    """
    if len(paths) == 1 and is_statistics_folder(paths[0]):
        return read_statistics(paths[0], options)
    files = _files(paths)
    suffixes = {file.suffix.lower() for file in files}
    if suffixes == {".pt"}:
        return _read_torch(files, options)
    if is_routed_experts(files):
        return read_routed_experts(files, options)
    if suffixes == {".jsonl"}:
        return read_load_stats(files, options)
    if is_expert_scores(files):
        return read_expert_scores(files, options)
    if suffixes <= LOG_SUFFIXES:
        return read_gate_log(files, options)
    if suffixes <= TABLE_SUFFIXES and is_token_table(files[0]):
        return read_recorded_tables(files, options)
    if suffixes <= LOAD_SUFFIXES:
        return read_load_matrices(files, options)
    unknown = next((file for file in files if file.suffix.lower() not in LOAD_SUFFIXES), files[0])
    found = (
        f"files of several kinds ({', '.join(sorted(suffixes))})" if len(suffixes) > 1 else "an unknown kind of file"
    )
    raise InputError(Mistake(found, f"one of: {KINDS}", file=unknown))


def _files(paths: Sequence[Path]) -> list[Path]:
    """Replace folders by the recordings in them."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = scores_in(path)
            inside = inside or sorted(file for file in path.iterdir() if file.suffix.lower() in _IN_FOLDERS)
            if not inside:
                raise InputError(Mistake("a folder without recordings", f"one of: {KINDS}", file=path))
            files += inside
        else:
            files.append(path)
    if len(files) > _MOST_FILES:
        raise InputError(Mistake(f"{len(files):,} files", f"at most {_MOST_FILES:,}", file=files[0]))
    return files


def _read_torch(files: Sequence[Path], options: Options) -> Recorded:
    opened = [read_torch_file(file) for file in files]
    for is_kind, read in _TORCH:
        if is_kind(opened[0].content):
            other = next((file for file in opened if not is_kind(file.content)), None)
            if other is not None:
                raise other.wrong("another recording", f"files of one kind: {opened[0].path.name} is of another")
            return read(opened, options)
    raise opened[0].wrong("no recording that is known", f"one of: {KINDS}")
