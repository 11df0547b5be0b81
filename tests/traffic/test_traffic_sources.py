"""Recordings that know on which rank each token started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_instance

from moe_placer.errors import InputError
from moe_placer.instance import Instance
from moe_placer.problem.demand import demand
from moe_placer.traffic import load_traffic


def by_source(folder: Path, ranks: int = 8, **changes: Any) -> Path:
    """Write a recording of 2 MoE layers and 4 experts whose ranks each want another pair of experts."""
    rng = np.random.default_rng(1)
    rank = np.repeat(np.arange(ranks), 5)
    first = rng.integers(0, 4, (len(rank), 2))
    topk = np.stack([first, (first + 1 + rank[:, None] % 3) % 4], axis=2)
    table = np.array(
        [[np.bincount(topk[rank == r, layer].ravel(), minlength=4) for layer in range(2)] for r in range(ranks)]
    )
    arrays = {"load": table.sum(axis=0), "topk": topk, "source_load": table, "token_source": rank, **changes}
    np.savez(folder / "recording.npz", **{name: array for name, array in arrays.items() if array is not None})
    return folder / "recording.npz"


def sourced(file: Path, kind: str, **traffic: Any) -> Instance:
    return tiny_instance(
        traffic={"kind": kind, "files": [str(file)], "sources": "recorded", "tokens_per_gpu": 100.0, **traffic}
    )


@pytest.mark.parametrize("kind", ["load", "trace"])
@pytest.mark.parametrize("ranks", [4, 8, 12])
def test_each_node_has_the_traffic_of_its_own_ranks(tmp_path: Path, kind: str, ranks: int) -> None:
    file = by_source(tmp_path, ranks)
    instance = sourced(file, kind)
    traffic = load_traffic(instance)
    assert traffic.mix.tolist() == np.eye(4).tolist()
    with np.load(file) as stored:
        each = ranks // 4
        for node, recording in enumerate(traffic.recordings):
            own = stored["source_load"][node * each : (node + 1) * each].sum(axis=0)
            assert np.array_equal(recording.load, own)
            assert recording.tokens.tolist() == [5 * each] * 2
            assert (recording.topk is not None) == (kind == "trace")
    # What every node asks for, in all: 200 tokens of 2 GPUs, shared out like its own ranks' choices.
    asked = demand(instance, traffic)
    assert asked.sum(axis=2) == pytest.approx(np.full(asked.shape[:2], 400.0))
    assert asked[0, 1] == pytest.approx(400 * traffic.recordings[1].load[0] / traffic.recordings[1].load[0].sum())


def test_instances_without_sources_have_the_hash_they_had() -> None:
    assert tiny_instance(traffic={"sources": "mix"}).sha256 == tiny_instance().sha256
    assert tiny_instance(traffic={"sources": "recorded"}).sha256 != tiny_instance().sha256


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("load", {"source_load": None}, "no array `source_load`"),
        ("load", {"ranks": 6}, "6 source ranks, expected a multiple of cluster.nodes (4)"),
        ("load", {"source_load": np.ones((8, 2, 5))}, "float64 of shape [8, 2, 5]"),
        ("load", {"source_load": np.ones((8, 2, 4))}, "other counts"),
        ("trace", {"token_source": None}, "no array `token_source`"),
        ("trace", {"token_source": np.arange(40)}, "rank 39"),
        ("trace", {"token_source": np.full(40, -1)}, "rank -1"),
        ("trace", {"token_source": np.zeros(40, int)}, "no tokens of node 1"),
        ("trace", {"token_source": np.zeros(39, int)}, "int64 of shape [39]"),
        ("trace", {"token_source": np.zeros(40)}, "float64 of shape [40]"),
    ],
)
def test_recordings_whose_sources_do_not_fit(tmp_path: Path, kind: str, changes: dict[str, Any], says: str) -> None:
    file = by_source(tmp_path, **changes)
    with pytest.raises(InputError) as caught:
        load_traffic(sourced(file, kind))
    (mistake,) = caught.value.mistakes
    assert says in str(mistake)


def test_sources_want_a_recording_of_their_own(tmp_path: Path) -> None:
    file = by_source(tmp_path)
    table = np.zeros((8, 2, 4), int)
    table[0] = 9
    with pytest.raises(InputError, match="no tokens of node 1 in MoE layer 0"):
        load_traffic(sourced(by_source(tmp_path, load=table[0], source_load=table), "load"))
    with pytest.raises(InputError, match="one or the other"):
        sourced(file, "load", mix=[[1.0]] * 4)
    with pytest.raises(InputError, match="one file for sources: recorded"):
        sourced(file, "load", files=[str(file), str(file)])
    np.save(tmp_path / "load.npy", np.ones((2, 4)))
    with pytest.raises(InputError, match="without source ranks"):
        load_traffic(sourced(tmp_path / "load.npy", "load"))
