"""A watcher: what it does with recordings, what it writes, and what is left when it is killed at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic
from command_line import COMMAND, fails, run

from moe_placer.cli.results import result_schema
from moe_placer.errors import InputError, UsageError
from moe_placer.files import is_unfinished
from moe_placer.instance import Instance, load_instance
from moe_placer.instance.writer import dump_instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement, load_placement
from moe_placer.replan.budget import Budget
from moe_placer.solve.solve import solve
from moe_placer.verifier import verify
from moe_placer.verifier.verification import CONSTRAINTS
from moe_placer.watch.journal import Journal
from moe_placer.watch.prometheus import metrics_text
from moe_placer.watch.recordings import arrivals, load_shares, read_arrival
from moe_placer.watch.store import WatchStore
from moe_placer.watch.watcher import Watcher, WatchPolicy

WATCHED: dict[str, Any] = {
    "model": {"experts": 8, "top_k": 2},
    "placement": {"slots_per_gpu": 2, "replica_routing": "even", "replicas": {"redundant_slots": 8}},
}
# A forked child asks for no lock that another thread of the test runner may have held: it plans, writes and dies.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

POLICY = WatchPolicy(settle_s=0.0, budget=Budget(moves=6), limits=Limits(time_s=60.0, work=0.01))
# For deaths: bounding changes nothing on disk, and takes half of a look.
UNBOUNDED = replace(POLICY, limits=replace(POLICY.limits, bounds=False))


@pytest.fixture(scope="module")
def planned() -> tuple[Instance, Placement]:
    instance = tiny_instance(**WATCHED)
    return instance, solve(instance, tiny_traffic(instance, 0), solver="greedy", limits=Limits(time_s=5.0)).placement


def record(folder: Path, name: str, seed: int, choices: float = 1e5) -> None:
    """Write counts, as any engine's exporter could."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    counts = np.maximum(1, np.rint(choices * rng.dirichlet(np.full(8, 0.5), size=2))).astype(np.int64)
    np.save(folder / name, counts)
    at = 1_700_000_000 + seed
    os.utime(folder / name, (at, at))


def watcher(tmp_path: Path, planned: tuple[Instance, Placement], policy: WatchPolicy = POLICY) -> Watcher:
    found = Watcher(tmp_path / "in", WatchStore(tmp_path / "out"), planned[0], policy)
    found.begin(planned[1])
    return found


def test_a_plan_is_put_in_force_where_it_pays_and_every_one_is_kept(tmp_path: Path, planned: Any) -> None:
    record(tmp_path / "in", "one.npy", 1)
    watch = watcher(tmp_path, planned)
    (entry,) = watch.look()
    assert (entry["event"], entry["version"]) == ("plan", 1)
    assert entry["moves"] <= 6
    assert entry["total_z"][1] + entry["busiest_gpu"][1] < sum(entry["total_z"][:1] + entry["busiest_gpu"][:1])
    assert watch.look() == []
    record(tmp_path / "in", "two.npy", 2)
    record(tmp_path / "in", "three.npy", 3)
    old, new = watch.look()
    assert (old["event"], old["recording"]) == ("superseded", "two.npy")
    assert new["event"] == "plan"
    assert new["drift"] > 0
    plans = sorted(path.name for path in (tmp_path / "out" / "plans").iterdir())
    assert plans == ["000000", "000001", "000002"]
    current = json.loads((tmp_path / "out" / "current.json").read_text())
    assert current["placement"] == "plans/000002/placement.json"
    assert load_placement(tmp_path / "out" / "plans" / "000000" / "placement.json").gpu == planned[1].gpu
    traffic = read_arrival(planned[0], arrivals(tmp_path / "in")[-1], 0.0)
    assert verify(
        planned[0], watch.store.current(), traffic, load_placement(tmp_path / "out/plans/000001/placement.json")
    ).ok
    assert np.allclose(watch.store.planned_load((2, 8)), load_shares(traffic))


def test_it_says_why_it_did_nothing(tmp_path: Path, planned: Any) -> None:
    instance, _ = planned
    record(tmp_path / "in", "one.npy", 1)
    dear = WatchPolicy(steps=1e-9, settle_s=0.0, limits=POLICY.limits)
    (kept,) = watcher(tmp_path, planned, dear).look()
    assert kept["event"] == "kept"
    assert "not worth it" in kept["reason"]
    record(tmp_path / "in", "few.npy", 2, choices=40)
    (few,) = watcher(tmp_path, planned).look()
    assert few["event"] == "refused"
    assert "says too little" in few["reason"]
    (tmp_path / "in" / "bad.npz").write_bytes(b"PK nothing")
    (bad,) = watcher(tmp_path, planned).look()
    assert bad["event"] == "refused"
    assert watcher(tmp_path, planned).look() == []  # once is enough
    young = WatchPolicy(settle_s=3600.0, limits=POLICY.limits)
    (tmp_path / "in" / "young.npy").write_bytes(b"half of it")
    assert watcher(tmp_path, planned, young).look() == []
    np.save(tmp_path / "in" / "other.npy", np.ones((3, 8), dtype=np.int64))
    with pytest.raises(InputError, match="as tiny has"):
        read_arrival(instance, next(one for one in arrivals(tmp_path / "in") if one.path.name == "other.npy"), 0.0)


def test_gpus_that_failed_are_replanned_for_whatever_it_costs(tmp_path: Path, planned: Any) -> None:
    record(tmp_path / "in", "one.npy", 1)
    watch = watcher(tmp_path, planned, WatchPolicy(steps=0.0, settle_s=0.0, limits=POLICY.limits))
    assert [entry["event"] for entry in watch.look()] == ["kept"]
    watch.instance = planned[0].with_hardware(0, (3,))
    assert watch.look() == []
    (entry,) = watch.look(again=True)
    assert (entry["event"], entry["reason"]) == ("plan", "what was out of service came back")
    assert all(3 not in gpus for row in watch.store.current().gpu for gpus in row)
    watch.instance = planned[0]
    (entry,) = watch.look(again=True)
    assert entry["event"] == "plan"
    assert sum(map(len, watch.store.current().gpu[0])) == 16


def test_an_instance_that_is_wrong_is_refused_and_the_one_before_stays(tmp_path: Path, planned: Any) -> None:
    record(tmp_path / "in", "one.npy", 1)
    watch = watcher(tmp_path, planned)
    watch.look()
    broken = tmp_path / "broken.yaml"
    broken.write_text("nonsense: [")
    (entry,) = watch.reread(lambda: load_instance(broken))
    assert entry["event"] == "refused"
    assert "the instance stays as it was: " in entry["reason"]
    assert watch.instance is planned[0]
    assert watch.look() == []
    (entry,) = watch.reread(lambda: planned[0].with_hardware(0, (3,)))
    assert entry["reason"] == "what was out of service came back"
    assert metrics_text(watch.store.journal.entries, watch.clock())


def test_metrics_are_few_and_follow_from_the_journal(tmp_path: Path, planned: Any) -> None:
    record(tmp_path / "in", "one.npy", 1)
    watch = watcher(tmp_path, planned)
    watch.look()
    text = metrics_text(watch.store.journal.entries, watch.clock() + 5)
    series = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert len(series) < 30
    assert float(series["moe_placer_watch_plan_version"]) == 1
    assert float(series["moe_placer_watch_plan_age_seconds"]) >= 5
    assert float(series['moe_placer_watch_last_verdict{verdict="plan"}']) == 1
    assert float(series["moe_placer_watch_moves_total"]) == watch.store.journal.entries[-1]["moves"]
    assert "gap_ratio" in text
    assert metrics_text([], 0.0).count("looks_total{") == 4


def test_busiest_nics_are_told_where_nics_are_links(tmp_path: Path) -> None:
    nics = {"per_node": 2, "gb_per_s": 200.0, "receive": "source-rail"}
    instance = tiny_instance(**WATCHED, cluster={"nics": nics})
    placement = solve(instance, tiny_traffic(instance, 0), solver="greedy", limits=Limits(time_s=5.0)).placement
    record(tmp_path / "in", "one.npy", 1)
    watch = watcher(tmp_path, (instance, placement), UNBOUNDED)
    (entry,) = watch.look()
    traffic = read_arrival(instance, arrivals(tmp_path / "in")[0], 0.0)
    for plan, told in zip((placement, watch.store.current()), entry["nic_z"], strict=True):
        found = verify(instance, plan, traffic)
        nic = ["/nic" in link for link in found.links]
        assert told == pytest.approx(found.cost[:, nic].max(axis=1).sum())
    assert f"busiest_nics_cost {entry['nic_z'][1]:.17g}\n" in metrics_text(watch.store.journal.entries, 0.0)


def test_a_line_without_its_end_is_cut_off_and_other_damage_is_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"event": "kept", "at": 1.0})
    with journal.path.open("ab") as stream:
        stream.write(b'{"event": "pl')
    again = Journal(journal.path)
    assert again.entries == journal.entries
    again.append({"event": "kept", "at": 2.0})
    assert len(Journal(journal.path).entries) == 2
    journal.path.write_bytes(b"{}\n" + journal.path.read_bytes())
    with pytest.raises(InputError, match="a line of a watcher's journal"):
        Journal(journal.path)


MEASURED = {"total_z": [2.0, 1.0], "busiest_gpu": [2.0, 1.0], "bound": None, "drift": 0.0}


@pytest.mark.parametrize(
    "line",
    [
        {"event": "kept"},
        {"event": "kept", "at": "now"},
        {"event": "kept", "at": float("nan")},
        {"event": "cancelled", "at": 1.0},
        {"event": "kept", "at": 1.0, "fingerprint": ["a"]},
        {"event": "plan", "at": 1.0, "version": 0},
        {"event": "plan", "at": 1.0, "gpu_sha256": "a"},
        {"event": "plan", "at": 1.0, "gpu_sha256": "a", "version": 1},
        {"event": "plan", "at": 1.0, "gpu_sha256": "a", "version": -7},
        {"event": "plan", "at": 1.0, "gpu_sha256": "a", "version": 0.0},
        {"event": "kept", "at": 1.0, **MEASURED, "moves": "many"},
        {"event": "kept", "at": 1.0, **MEASURED, "bound": "low"},
        {"event": "kept", "at": 1.0, **MEASURED, "busiest_gpu": None},
        ["event"],
    ],
)
def test_a_line_that_no_watcher_writes_is_an_error(line: Any, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=r"journal.jsonl:1: found .* expected a line of a watcher's journal"):
        Journal(path)


def test_a_file_of_somebody_else_is_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "mine"}')
    with pytest.raises(InputError, match="a line of a watcher's journal"):
        Journal(path)
    assert path.read_text() == '{"event": "mine"}'
    path.write_text('{"at": 17')  # of a watcher that was killed
    assert Journal(path).entries == []
    assert path.read_text() == ""


def test_what_is_no_plan_of_its_own_is_left_alone(tmp_path: Path) -> None:
    kept = [tmp_path / "plans" / "summer" / "notes.txt", tmp_path / "plans" / "readme.md"]
    left = [tmp_path / "plans" / name / "placement.json" for name in ("000000", ".000001.moe-placer-0123abcd")]
    for path in (*kept, *left):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("something")
    WatchStore(tmp_path)
    assert [path.exists() for path in kept] == [True, True]
    assert [path.parent.exists() for path in left] == [False, False]
    for stranger in ("000000/thesis.txt", "000007/placement.json"):
        path = tmp_path / "plans" / stranger
        path.parent.mkdir()
        path.write_text("something")
        with pytest.raises(InputError, match=f"plans/{path.parent.name}, which no line of journal.jsonl names"):
            WatchStore(tmp_path)
        assert path.read_text() == "something"
        shutil.rmtree(path.parent)


@pytest.mark.parametrize("damage", ["cut", "text", "shape", "whole numbers", "nan"])
def test_damaged_shares_of_load_are_an_error(damage: str, tmp_path: Path, planned: Any) -> None:
    record(tmp_path / "in", "one.npy", 1)
    watch = watcher(tmp_path, planned, UNBOUNDED)
    watch.store.put(planned[1], planned[0], None, np.full((2, 8), 0.125), {"at": 1.0})
    watcher(tmp_path, planned, UNBOUNDED)
    path = watch.store.plan_folder(1) / "load.npy"
    other = {"shape": np.ones((9, 9)), "whole numbers": np.ones((2, 8), dtype=int), "nan": np.full((2, 8), np.nan)}
    if damage in other:
        np.save(path, other[damage])
    else:
        path.write_bytes(path.read_bytes()[:-5] if damage == "cut" else b"hello")
    with pytest.raises(InputError, match=r"load.npy: found .* expected shares of load of 2 MoE layers x 8 experts"):
        watcher(tmp_path, planned, UNBOUNDED)


def _killed(tmp_path: Path, planned: tuple[Instance, Placement], prepare: Callable[[], None]) -> bool:
    """Look in a child process that ``prepare`` makes kill itself; whether it was still alive then."""
    child = os.fork()
    if not child:
        prepare()
        try:
            watcher(tmp_path, planned, UNBOUNDED).look()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def _killed_at(event: int, tmp_path: Path, planned: tuple[Instance, Placement]) -> bool:
    """Look in a child process that kills itself at its n-th change of the folder; whether it was still alive then."""
    left, out = [event], str(tmp_path / "out")

    def count(name: str, arguments: tuple[Any, ...]) -> None:
        if name in {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}:
            left[0] -= any(isinstance(one, str | Path) and str(one).startswith(out) for one in arguments)
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return _killed(tmp_path, planned, lambda: sys.addaudithook(count))


def _killed_at_call(call: int, tmp_path: Path, planned: tuple[Instance, Placement]) -> bool:
    """Look in a child process that kills itself at its n-th call of any function; whether it was still alive then."""
    left = [call]

    def count(_frame: Any, event: str, _argument: Any) -> None:
        left[0] -= event == "call"
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return _killed(tmp_path, planned, lambda: sys.setprofile(count))


def _goes_on(tmp_path: Path, planned: tuple[Instance, Placement]) -> None:
    """Start again after a death: the last good plan is in force, and nothing unfinished is left."""
    watch = watcher(tmp_path, planned, UNBOUNDED)
    plan = watch.store.current()
    broken = {one.rule for one in verify(planned[0], plan, tiny_traffic(planned[0], 0)).violations}
    assert broken.isdisjoint(CONSTRAINTS)
    pointed = json.loads((tmp_path / "out" / "current.json").read_text())
    assert pointed["version"] == watch.store.version
    names = {path.name for path in (tmp_path / "out" / "plans").iterdir()}
    assert names == {f"{version:06d}" for version in range(watch.store.version + 1)}
    watch.look()
    assert watch.look() == []
    left = [path.name for path in (tmp_path / "out").rglob("*") if is_unfinished(path.name)]
    assert left == []


def test_killed_at_any_moment_it_goes_on_from_the_last_good_plan(tmp_path: Path, planned: Any) -> None:
    """The moments are those at which something changes in its folder, one after the other."""
    event, number = 0, 0
    while True:
        record(tmp_path / "in", "next.npy", number)
        killed = _killed_at(event, tmp_path, planned)
        _goes_on(tmp_path, planned)
        if not killed:
            break
        event, number = event + 5, number + 1
    assert event > 20


def _calls_of_a_look(tmp_path: Path, planned: tuple[Instance, Placement]) -> int:
    """Count the function calls of a watcher that starts and puts a plan in force."""
    calls = [0]

    def count(_frame: Any, event: str, _argument: Any) -> None:
        calls[0] += event == "call"

    record(tmp_path / "in", "next.npy", 0)
    sys.setprofile(count)
    try:
        (entry,) = watcher(tmp_path, planned, UNBOUNDED).look()
    finally:
        sys.setprofile(None)
    assert entry["event"] == "plan"
    return calls[0]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_a_hundred_times_at_random_moments_it_goes_on_from_the_last_good_plan(
    tmp_path: Path, planned: Any
) -> None:
    """The moments are function calls at random, of reading, searching, checking and writing alike."""
    rng, kills, number = np.random.default_rng(0), 0, 1
    calls = _calls_of_a_look(tmp_path / "first", planned)
    while kills < 100:
        record(tmp_path / "in", "next.npy", number)
        kills += _killed_at_call(int(rng.integers(calls)), tmp_path, planned)
        _goes_on(tmp_path, planned)
        number += 1
    assert number < 200  # most of them died before they were done
    assert len(list((tmp_path / "out" / "plans").iterdir())) > 50


def test_the_command_looks_once_and_keeps_others_out(tmp_path: Path, planned: Any) -> None:
    from moe_placer.solve.folder import only_writer

    file, first = tmp_path / "instance.yaml", tmp_path / "first.json"
    file.write_text(dump_instance(planned[0]))
    planned[1].write(first)
    record(tmp_path / "in", "one.npy", 1)
    given = ("watch", tmp_path / "in", "--instance", file, "-o", tmp_path / "out", "--once", "--work", 0.02)
    fails(1, *given, "--current", tmp_path / "none.json", says="found no such file")
    assert not (tmp_path / "out").exists()
    fails(2, *given, says="give the one that runs now as --current")
    done = run(*given, "--current", first, "--metrics", tmp_path / "m.prom", "--settle", 0, "--json")
    assert done.returncode == 0, done.stderr
    jsonschema.validate(json.loads(done.stdout), result_schema("watch"))
    assert [entry["event"] for entry in json.loads(done.stdout)["entries"]] == ["plan"]
    record(tmp_path / "in", "two.npy", 2)
    assert "two.npy: plan 2" in run(*given).stderr
    assert "moe_placer_watch_plan_version 1" in (tmp_path / "m.prom").read_text()
    again = json.loads(run(*given, "--json").stdout)
    assert (again["version"], again["entries"]) == (2, [])
    with only_writer(tmp_path / "out"):
        fails(2, *given, says="another run is writing")
    fails(1, "watch", tmp_path / "none", *given[2:], says="a folder of recordings")
    with pytest.raises(UsageError, match="factor is -1"):
        WatchPolicy(factor=-1.0)


@pytest.mark.slow
def test_signals_reread_and_end(tmp_path: Path, planned: Any) -> None:
    file, first = tmp_path / "instance.yaml", tmp_path / "first.json"
    file.write_text(dump_instance(planned[0]))
    planned[1].write(first)
    record(tmp_path / "in", "one.npy", 1)
    options = ["--instance", file, "-o", tmp_path / "out", "--current", first, "--interval", 3600, "--work", 0.02]
    words = [*COMMAND, "watch", tmp_path / "in", *options]
    process = subprocess.Popen(list(map(str, words)))
    journal = tmp_path / "out" / "journal.jsonl"

    def lines() -> int:
        return len(journal.read_bytes().splitlines()) if journal.exists() else 0

    while lines() < 2:
        time.sleep(0.1)
        assert process.poll() is None
    file.write_text(dump_instance(planned[0].with_hardware(0, (3,))))
    time.sleep(0.5)
    process.send_signal(signal.SIGHUP)
    while lines() < 3:
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "came back" in journal.read_text().splitlines()[-1]
