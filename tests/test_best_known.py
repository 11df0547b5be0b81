"""No objective is below a bound: not in the file, not in a report, not in a solve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe_placer.errors import InputError
from moe_placer.experiments.bench import read_best_known, update_best_known
from moe_placer.experiments.bench.report import read_report
from moe_placer.instance import load_instance
from moe_placer.limits import Limits
from moe_placer.solve.solve import solve
from moe_placer.traffic import load_traffic

REPO = Path(__file__).parent.parent
ENTRIES = {entry["instance"]: entry for entry in read_best_known(REPO / "instances" / "best_known.yaml")}
REPORTS = sorted((REPO / "reports").glob("*-bench"))
ROUNDING = 1e-9


def beats(z: float, bound: float) -> bool:
    return z < bound * (1 - ROUNDING)


@pytest.mark.parametrize("path", sorted((REPO / "instances").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_instance_has_an_entry_of_its_own(path: Path) -> None:
    if path.name == "best_known.yaml":
        assert len(ENTRIES) == len(read_best_known(path)), "an instance has two entries"
        return
    instance = load_instance(path)
    entry = ENTRIES[instance.name]
    assert entry["instance_sha256"] == instance.sha256, f"the entry {instance.name} is of another instance"
    if instance.traffic.kind != "trace":
        traffic = load_traffic(instance)
        assert entry["traffic_sha256"] == traffic.sha256, f"the entry {instance.name} is of other traffic"


@pytest.mark.parametrize("name", ENTRIES)
def test_no_objective_is_below_its_bound(name: str) -> None:
    objective, bound = ENTRIES[name]["objective"], ENTRIES[name]["bound"]
    assert not beats(objective["value"], bound["value"]), f"{objective} is below {bound}: one of them is wrong"
    for record in (objective, bound):
        assert {"value", "solver", "version", "date", "report"} < record.keys()
        assert (REPO / "reports" / record["report"] / "rows.jsonl").exists()


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.name)
def test_no_report_beats_or_contradicts_the_best_known(report: Path) -> None:
    for row in read_report(report)[1]:
        entry = ENTRIES.get(row["instance"])
        # An instance that has changed since is another one.
        if row["failed"] or entry is None or entry["instance_sha256"] != row["instance_sha256"]:
            continue
        assert entry["traffic_sha256"] == row["traffic_sha256"]
        assert not beats(row["z"], entry["objective"]["value"]), (
            f"{report.name}: {row['solver']} found a better {row['z']}"
        )
        assert not beats(row["z"], entry["bound"]["value"]), f"{report.name}: {row['solver']} is below the bound"
        if row["bound_holds_for_any_copies"]:
            assert not beats(entry["bound"]["value"], row["bound"]), (
                f"{report.name}: {row['solver']} proved {row['bound']}"
            )
            assert not beats(entry["objective"]["value"], row["bound"]), (
                f"{report.name}: {row['solver']} proved too much"
            )


@pytest.mark.parametrize(
    "name",
    [
        *("tiny", "h100-128", "h100-128-nonblocking", "h100-128-oversubscribed"),
        pytest.param("ep8-traditional", marks=pytest.mark.slow),
    ],
)
def test_a_quick_solve_respects_the_best_bound(name: str) -> None:
    instance, entry = load_instance(REPO / "instances" / f"{name}.yaml"), ENTRIES[name]
    traffic = load_traffic(instance)
    assert (instance.sha256, traffic.sha256) == (entry["instance_sha256"], entry["traffic_sha256"]), (
        f"the entry {name} is of another instance"
    )
    found = solve(instance, traffic, limits=Limits(time_s=4.0)).verification
    assert not beats(found.total_z, entry["bound"]["value"]), f"z {found.total_z} is below the best known bound"
    assert not beats(entry["objective"]["value"], found.total_bound), (
        f"bound {found.total_bound} is above the best known z"
    )


ROW = {
    "failed": None,
    "verified": True,
    "instance": "some",
    "instance_sha256": "a",
    "traffic_sha256": "b",
    "recordings": ["r"],
    "solver": "auto",
    "version": "1",
    "bound_holds_for_any_copies": True,
    "proofs": {"dual": 2},
}


def updated(path: Path, *rows: dict[str, Any], date: str = "2026-01-01") -> dict[str, Any]:
    update_best_known(path, [{**ROW, **row} for row in rows], {"date": date}, "some-bench")
    (entry,) = read_best_known(path)
    return dict(entry)


def test_only_what_is_better_is_entered(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    first = updated(path, {"z": 10.0, "bound": 8.0})
    assert first["bound"]["proved"] == "dual in 2 layers; derived anew by the verifier"
    assert updated(path, {"z": 11.0, "bound": 7.0}, date="2026-02-02") == first
    assert updated(path, {"z": 9.0, "bound": 9.0, "verified": False}, {"failed": "killed by SIGKILL"}) == first
    better = updated(path, {"z": 9.5, "bound": 9.0, "solver": "cpsat"}, date="2026-03-03")
    assert (better["objective"]["value"], better["objective"]["solver"]) == (9.5, "cpsat")
    assert (better["bound"]["value"], better["bound"]["date"]) == (9.0, "2026-03-03")


def test_a_bound_for_one_choice_of_copies_is_no_bound_of_the_instance(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    updated(path, {"z": 10.0, "bound": 8.0})
    entry = updated(path, {"z": 10.0, "bound": 9.0, "bound_holds_for_any_copies": False})
    assert entry["bound"]["value"] == 8.0


def test_a_file_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text("just a word")
    with pytest.raises(InputError, match="entries"):
        read_best_known(path)
