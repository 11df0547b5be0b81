"""What ESFT logs of its router: every token's choices, layer by layer, in files of text."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from command_line import REPO
from hypothesis import given, settings
from hypothesis import strategies as st
from told import told

from moe_placer.engines.recordings import Options, read_recording
from moe_placer.errors import InputError
from moe_placer.library import open_library, recheck_record
from moe_placer.traffic import load_traffic

TRACES = REPO.parent / "shared" / "traces"
Ids = npt.NDArray[np.integer]


def write(folder: Path, topk: Ids, seq: Ids) -> Path:
    """Write choices [tokens, layers, top_k] as ESFT does: a file for each layer, from 1, a line for each sequence."""
    folder.mkdir(exist_ok=True)
    for layer in range(topk.shape[1]):
        lines = []
        for number in range(int(seq.max()) + 1):
            ids = topk[seq == number, layer].ravel()
            lines.append("\t".join(map(str, ids)) + "\t\t" + "\t".join(["0.0414"] * len(ids)) + "\n")
        (folder / f"expert_weights_{layer + 1}.txt").write_text("".join(lines))
    return folder


def choices(tokens: int = 40, layers: int = 12, top_k: int = 3, experts: int = 9) -> Ids:
    generator = np.random.default_rng(1)
    return np.argsort(generator.random((tokens, layers, experts)), axis=2)[:, :, :top_k]


def test_choices_and_sequences_come_back(tmp_path: Path) -> None:
    topk, seq = choices(), np.repeat([0, 1, 2], [10, 26, 4])
    folder = write(tmp_path / "scores", topk, seq)
    out = tmp_path / "out.npz"
    done = told("import", folder, "-o", out, "--json").json
    assert (done["format"], done["top_k"], done["tokens"], done["steps"]) == ("expert scores of ESFT", 3, 40, 3)
    assert done["layers"] == list(range(1, 13))  # as the names say, not as a folder sorts them
    read = np.load(out)
    assert read["topk"].tolist() == topk.tolist()
    assert read["seq"].tolist() == seq.tolist()
    assert read["load"].tolist() == [np.bincount(topk[:, layer].ravel(), minlength=9).tolist() for layer in range(12)]


def test_some_tokens_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    topk = choices()
    found = read_recording([write(tmp_path / "scores", topk, np.zeros(40, int))], Options(keep_tokens=7, experts=16))
    assert found.arrays["topk"].shape == (7, 12, 3)
    assert found.load.shape == (12, 16)
    assert found.load.sum() == topk.size


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "an empty file"),
        ("1\t2\t\t0.5\n", "1: found 2 experts and 1 weights"),
        ("1\t2\t0.5\t0.5\n", "1: found what are no numbers of experts"),
        ("1\t2\t\t0.5\t0.5\n1\tx\t\t0.5\t0.5\n", "2: found what are no numbers of experts"),
        ("1\t8192\t\t0.5\t0.5\n", "found expert 8192, expected less than 8,192"),
        ("1\t\u00e9\t\t0.5\t0.5\n", "bytes that are no text"),
        ("1\t2\t3\t4\t\t1\t1\t1\t1\n", "found other sequences, expected the sequences of expert_weights_1.txt"),
    ],
)
def test_wrong_files_name_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    good = tmp_path / "expert_weights_1.txt"
    good.write_text("1\t2\t\t0.5\t0.5\n")
    (tmp_path / "expert_weights_2.txt").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_recording([tmp_path], Options())
    assert says in str(caught.value)


def test_two_files_of_one_layer_are_two_recordings(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, choices(layers=1), np.zeros(40, int)) for name in ("a", "b")]
    with pytest.raises(InputError, match="two files of one layer"):
        read_recording(folders, Options())
    with pytest.raises(InputError, match="ids from 0 to 4"):
        read_recording(folders[:1], Options(experts=5))


@settings(max_examples=40)
@given(st.data())
def test_damaged_files_give_one_message(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    text = "1\t2\t\t0.5\t0.5\n3\t1\t\t0.5\t0.5\n"
    first = data.draw(st.integers(0, len(text)))
    last = data.draw(st.integers(first, len(text)))
    file = tmp_path_factory.getbasetemp() / "expert_weights_7.txt"
    file.write_text(text[:first] + data.draw(st.text(max_size=6)) + text[last:], encoding="utf-8", errors="replace")
    with suppress(InputError):  # any other exception fails
        assert read_recording([file], Options()).load.sum() > 0


def test_the_library_knows_its_recordings_after_their_conversion(tmp_path: Path) -> None:
    """As the record's own commands name folders and files, with the lines that the source has."""
    library = open_library(REPO / "library")
    record = library.record("dsv2-lite-128")
    for needed in record.recordings:
        if not (TRACES / needed.file).exists():
            pytest.skip("no real traces")
        trace = np.load(TRACES / needed.file)
        program, command, folder, option, out = needed.commands[-1].split()
        assert (program, command, option, out) == ("moe-placer", "import", "-o", needed.file)
        source = write(tmp_path / Path(folder).name, trace["topk"], trace["seq"])
        told(command, source, option, tmp_path / out)
        assert (tmp_path / out).read_bytes() != (TRACES / out).read_bytes()
    assert load_traffic(library.instance(record, tmp_path)).sha256 == record.traffic_sha256
    first = tmp_path / record.recordings[0].file
    arrays = dict(np.load(first))
    arrays["topk"][0, 0] = arrays["topk"][0, 0][::-1]
    np.savez(first, **arrays)
    found = recheck_record(library, record, tmp_path)
    assert (found.verdict, len(found.problems)) == ("skipped", 1)
    assert "has other choices than the record's" in found.problems[0]
