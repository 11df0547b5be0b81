"""The commands that are measured, and a row for every run of one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.checkouts import REPOSITORY, Checkout
from benchmarks.kept_runs import Row

__all__ = ["CASES", "Case", "command_rows"]


@dataclass(frozen=True)
class Case:
    """A command on an instance of ``instances/``.

    Attributes
    ----------
    instance : str
    command : str
    options : tuple of str
    placed_by : str or None
        The case of `solve`, by its ``name``, whose placement it takes; None: it takes none.
    before : bool
        Whether the earlier commit is measured too: not where that took minutes, or did not end.
    """

    instance: str
    command: str
    options: tuple[str, ...] = ()
    placed_by: str | None = None
    before: bool = True

    @property
    def name(self) -> str:
        """The command as a user types it, without files."""
        return " ".join([self.command, *self.options])


_LONG = ("--time-limit", "600")
_STEP = ("--replicas", "0")
_COARSE = (*_STEP, "--sharing", "coarse")
CASES = (
    Case("h100-128", "solve"),
    Case("h100-128", "solve", ("--no-dag",)),
    Case("dsv3-320", "solve", ("--no-dag",)),
    Case("dsv3-320", "solve", ("--solver", "eplb")),
    Case("dsv3-320", "solve", ("--solver", "eplb", "--quick"), before=False),
    Case("scale-1024", "solve", ("--no-dag", "--gap", "0.01", *_LONG), before=False),
    Case("scale-1024", "solve", ("--no-dag", *_LONG), before=False),
    Case("h100-128", "schedule", _STEP, "solve --no-dag"),
    Case("dsv3-320", "schedule", _STEP, "solve --no-dag"),
    Case("h100-128", "schedule", _COARSE, "solve --no-dag", before=False),
    Case("dsv3-320", "schedule", _COARSE, "solve --no-dag", before=False),
    Case("scale-1024", "schedule", _COARSE, " ".join(["solve", "--no-dag", *_LONG]), before=False),
    Case("h100-128", "verify", ("--no-dag",), "solve --no-dag"),
    Case("dsv3-320", "verify", ("--no-dag",), "solve --no-dag"),
    Case("scale-1024", "verify", ("--no-dag",), " ".join(["solve", "--no-dag", *_LONG])),
)


def command_rows(now: Checkout, before: Checkout | None, cases: Sequence[Case], scratch: Path) -> Iterator[Row]:
    """Yield a row for every case and checkout; both check and simulate the placement that this checkout has found.

    Parameters
    ----------
    now, before : Checkout
        The earlier one may be left out.
    cases : sequence of Case
        Those of `solve` before those that take their placements.
    scratch : Path
        A folder for results.
    """
    placements: dict[tuple[str, str], Path] = {}
    for number, case in enumerate(cases):
        for checkout in (now, *([before] if before and case.before else [])):
            output = scratch / f"{number}-{checkout.commit}"
            arguments = [case.command, str(REPOSITORY / "instances" / f"{case.instance}.yaml")]
            if case.placed_by is not None:
                arguments.append(str(placements[case.instance, case.placed_by]))
            if case.command == "solve":
                arguments += ["--workers", "1", "-o", str(output)]
            ran = checkout.run([*arguments, *case.options, "--json"], scratch)
            if checkout is now and case.command == "solve":
                placements[case.instance, case.name] = output / "placement.json"
            head = {"instance": case.instance, "command": case.name, "commit": checkout.commit, "exit": ran.code}
            told = json.loads(ran.out) if ran.code == 0 else {"error": ran.err.strip()[-300:]}
            yield head | {"cpu_s": round(ran.cpu_s, 3), "peak_bytes": ran.peak_bytes} | _figures(case.command, told)


def _figures(command: str, told: Row) -> Row:
    """Return what a run's JSON says of quality: of a solve its links and gaps, of a step its length."""
    if "error" in told:
        return told
    if command == "solve":
        gap = told["gap"] or {}
        return {"z": told["total_z"], "median_gap": gap.get("median"), "largest_gap": gap.get("max")}
    return {"step_us": told["latency_us"]} if command == "schedule" else {"ok": told["ok"]}
