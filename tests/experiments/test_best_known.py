"""No objective is below a bound: not in the file, not in a report, not in a solve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_placer.errors import InputError
from moe_placer.experiments.best_known import proved_total, read_best_known, update_best_known
from moe_placer.instance import load_instance
from moe_placer.limits import Limits
from moe_placer.solve.solve import solve
from moe_placer.traffic import load_traffic

REPO = Path(__file__).parents[2]
REPORTED = REPO / "library" / "reported.yaml"
ENTRIES = {entry["instance"]: entry for entry in read_best_known(REPORTED)}
REPORTS = [
    folder
    for folder in sorted((REPO / "reports").iterdir())
    if any('"traffic_sha256"' in file.read_text() for file in folder.glob("r*s.jsonl"))
]
ROUNDING = 1e-9


def beats(z: float, bound: float) -> bool:
    return z < bound * (1 - ROUNDING)


def test_no_instance_has_two_entries() -> None:
    assert len(ENTRIES) == len(read_best_known(REPORTED))


@pytest.mark.parametrize("path", sorted((REPO / "instances").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_instance_has_an_entry_of_its_own(path: Path) -> None:
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
        assert (REPO / "reports" / record["report"]).is_dir()


def runs_of(report: Path) -> Iterator[dict[str, Any]]:
    """Yield what each verified run of a report found and proved, from comparisons and from benchmarks of 0.1.0."""
    for file in report.glob("r*s.jsonl"):
        keys: dict[str, str] = {}
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if file.name == "rows.jsonl":
                if not row["failed"]:
                    covers = row["bound_holds_for_any_copies"]
                    yield {**row, "z": row["z"], "bound": row["bound"], "covers": covers}
            elif row["kind"] == "instance":
                keys[row["sha256"]] = row["traffic_sha256"]
            elif row["status"] == "ok":
                found = {"z": row["traffic"]["solved_for"]["z_total"], "bound": proved_total(row)}
                traffic = keys[row["instance_sha256"]]
                yield {**row, **found, "covers": row["covers_copies"], "traffic_sha256": traffic}


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.name)
def test_no_report_beats_or_contradicts_the_best_known(report: Path) -> None:
    rows = list(runs_of(report))
    assert rows
    for row in rows:
        entry = ENTRIES.get(row["instance"])
        # An instance that has changed since is another one, and so is other traffic.
        keys = ("instance_sha256", "traffic_sha256")
        if entry is None or any(entry[key] != row[key] for key in keys):
            continue
        who = f"{report.name}: {row['solver']}"
        assert not beats(row["z"], entry["objective"]["value"]), f"{who} found a better {row['z']}"
        assert not beats(row["z"], entry["bound"]["value"]), f"{who} is below the bound"
        if row["covers"]:
            assert not beats(entry["bound"]["value"], row["bound"]), f"{who} proved {row['bound']}"
            assert not beats(entry["objective"]["value"], row["bound"]), f"{who} proved too much"


@pytest.mark.parametrize(
    "name",
    [
        *("tiny", "h100-128-nonblocking"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("h100-128", "h100-128-oversubscribed", "ep8-traditional")
        ),
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


INSTANCE = {"kind": "instance", "name": "some", "sha256": "a", "traffic_sha256": "b", "recordings": ["r"]}
RUN = {
    "kind": "run",
    "status": "ok",
    "instance": "some",
    "instance_sha256": "a",
    "solver": "auto",
    "version": "1",
    "covers_copies": True,
    "proof": ["dual", "dual"],
    "recheckable": [True, True],
}


def run(z: float, bound: float, **changes: Any) -> dict[str, Any]:
    figures = {"traffic": {"solved_for": {"z_total": z}}, "bound": [bound / 2, bound / 2]}
    return {**RUN, **figures, **changes}


def updated(path: Path, *rows: dict[str, Any], date: str = "2026-01-01") -> dict[str, Any]:
    update_best_known(path, [INSTANCE, *rows], {"date": date}, "some-comparison")
    (entry,) = read_best_known(path)
    return dict(entry)


def test_only_what_is_better_is_entered(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    first = updated(path, run(10.0, 8.0))
    assert first["bound"]["proved"] == "dual in 2 layers; derived anew by the verifier"
    assert updated(path, run(11.0, 7.0), date="2026-02-02") == first
    assert updated(path, run(9.0, 9.0, status="invalid"), date="2026-02-02") == first
    better = updated(path, run(9.5, 9.0, solver="cpsat"), date="2026-03-03")
    assert (better["objective"]["value"], better["objective"]["solver"]) == (9.5, "cpsat")
    assert (better["bound"]["value"], better["bound"]["date"]) == (9.0, "2026-03-03")


def test_a_bound_for_one_choice_of_replicas_is_no_bound_of_the_instance(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    updated(path, run(10.0, 8.0))
    assert updated(path, run(10.0, 9.0, covers_copies=False))["bound"]["value"] == 8.0


def test_a_solver_s_word_is_no_bound(tmp_path: Path) -> None:
    entry = updated(tmp_path / "best.yaml", run(10.0, 8.0, recheckable=[True, False]))
    assert entry["bound"]["value"] == 4.0


def test_a_file_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text("just a word")
    with pytest.raises(InputError, match="entries"):
        read_best_known(path)
