"""Changes the core's code in one place at a time, and sees whether a test notices: ``make mutants``.

The changes are those of Cosmic Ray (a comparison turned, a number off by one, a loop that never runs, ...), drawn at
random over all places of the modules. Only tests that execute the changed lines run, the quickest first, until one
fails. Everything happens in a replica of the repository. What no test notices is printed and makes the exit code 1,
unless ``equivalent_mutants.txt`` has it: these change nothing that anybody can see, each for the reason given there.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MODULES = (
    *("moe_placer/search/moves.py", "moe_placer/bounds/bounds.py", "moe_placer/bounds/relaxation.py"),
    *("moe_placer/bounds/assignment.py", "moe_placer/problem/compile.py", "moe_placer/result.py"),
    *("moe_placer/verifier/*.py",),
)
TESTS = (
    *("bounds", "decomposition", "fabric", "problem", "search", "solve", "solvers", "verifier"),
    *("dag/test_dag_failures.py", "test_placement.py"),
)
EQUIVALENT = Path(__file__).parent / "equivalent_mutants.txt"
_ENOUGH_S = 60.0  # of tests for one change, as they took unchanged; the quickest come first
_SLOWER = 6.0  # times as long, and the change counts as noticed: it goes on for ever


@dataclass(frozen=True)
class Change:
    """One place where one of Cosmic Ray's operators changes a module."""

    module: str
    operator: str
    arguments: tuple[tuple[str, Any], ...]
    occurrence: int
    first: tuple[int, int]  # line and column
    last: tuple[int, int]


def find_changes(root: Path) -> list[Change]:
    """List all changes of all modules, but for those of type annotations, which nothing evaluates."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.plugins import get_operator, operator_names

    found = []
    for module in sorted({path for pattern in MODULES for path in root.glob(pattern)}):
        tree, ignored = get_ast_from_path(module), list(_annotations(module))
        for name in operator_names():
            if name == "core/NoOp" or get_operator(name).arguments():
                continue
            operator = get_operator(name)()
            places = (place for node in ast_nodes(tree) for place in operator.mutation_positions(node))
            for occurrence, (first, last) in enumerate(places):
                if not any(low <= first < high for low, high in ignored):
                    found.append(Change(str(module.relative_to(root)), name, (), occurrence, first, last))
    return found


def _annotations(module: Path) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        for field in ("annotation", "returns"):
            part = getattr(node, field, None)
            if part is not None:
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def draw(changes: Sequence[Change], count: int, seed: int) -> list[Change]:
    """Draw places without replacement, and one change at each: places with many possible changes count once."""
    rng, places = random.Random(seed), defaultdict(list)
    for change in changes:
        places[change.module, change.first].append(change)
    drawn = rng.sample(sorted(places), min(count, len(places)))
    return [rng.choice(places[place]) for place in drawn]


class Watch:
    """A pytest plugin: notes which test executes which line, and how long it takes."""

    def __init__(self, coverage: Any) -> None:
        self.coverage, self.seconds = coverage, dict[str, float]()

    def pytest_runtest_setup(self, item: Any) -> None:
        """Have the coverage of everything from here on, fixtures too, counted for this test."""
        self.coverage.switch_context(item.nodeid)
        self.seconds[item.nodeid] = -sum(os.times()[:4])

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Note processor seconds; a test that is skipped by its mark was never set up."""
        if nodeid in self.seconds:
            self.seconds[nodeid] += sum(os.times()[:4])


def watch_tests(root: Path, answer: Path) -> int:
    """Run the unchanged code's tests; write which run each line, and their seconds."""
    import coverage
    import pytest

    measured = coverage.Coverage(data_file=None, source_pkgs=["moe_placer"], config_file=False)
    watch = Watch(measured)
    measured.start()
    code = pytest.main(["-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in TESTS)], plugins=[watch])
    measured.stop()
    data, lines = measured.get_data(), {}
    for file in data.measured_files():
        if Path(file).is_relative_to(root):
            by_line = {
                str(line): [test for test in tests if test] for line, tests in data.contexts_by_lineno(file).items()
            }
            lines[str(Path(file).relative_to(root))] = by_line
    answer.write_text(json.dumps({"lines": lines, "seconds": watch.seconds}), encoding="utf-8")
    return int(code)


def tests_of(change: Change, known: dict[str, Any]) -> list[str]:
    """Name the tests that execute a changed line, the quickest first, as far as there is time."""
    lines = known["lines"].get(change.module, {})
    tests = {test for line in range(change.first[0], change.last[0] + 1) for test in lines.get(str(line), [])}
    if not tests:  # it runs when the module is loaded, if at all: whoever uses the module may notice
        tests = {test for some in lines.values() for test in some}
    ordered = sorted(tests, key=lambda test: (known["seconds"].get(test, 0.0), test))
    chosen, spent = [], 0.0
    for test in ordered:
        spent += known["seconds"].get(test, 0.0)
        if chosen and spent > _ENOUGH_S:
            break
        chosen.append(test)
    return chosen


def attempt(change: Change, root: Path, known: dict[str, Any]) -> tuple[str, str]:
    """Make a change, run its tests, undo it; return what became of it, and the diff."""
    from cosmic_ray.mutating import _make_diff, use_mutation
    from cosmic_ray.plugins import get_operator

    tests = tests_of(change, known)
    with use_mutation(root / change.module, get_operator(change.operator)(), change.occurrence) as (before, after):
        diff = "\n".join(_make_diff(before, after, Path(change.module)))
        if not tests:
            return "untested", diff
        expected = sum(known["seconds"].get(test, 0.0) for test in tests)
        return _run(root, tests, _SLOWER * expected + 30.0), diff


def _run(root: Path, tests: Sequence[str], most_s: float) -> str:
    """Run tests in a fork, which has the heavy libraries already; processor seconds count, not the clock."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        import pytest

        given = root / "given.txt"
        given.write_text("\n".join(tests), encoding="utf-8")
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", f"@{given}"])) & 0xFF)
    begun = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        if _seconds_of(pid) > most_s or time.monotonic() - begun > 20 * most_s:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "slow"
        time.sleep(0.05)


def _seconds_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def equivalent() -> set[str]:
    """Read the changes that are known to change nothing; a comment before each says why."""
    blocks = EQUIVALENT.read_text(encoding="utf-8").split("\n\n") if EQUIVALENT.exists() else []
    kept = ("\n".join(line for line in block.splitlines() if not line.startswith("#")) for block in blocks)
    return {text.strip() for text in kept if text.strip()}


def essence(module: str, diff: str) -> str:
    """Return what of a diff tells a change apart: its module, and the lines removed and added."""
    lines = [line for line in diff.splitlines() if line[:1] in {"-", "+"} and line[:3] not in {"---", "+++"}]
    return "\n".join([module, *lines])


def main() -> int:
    """Draw changes, try each, and say which no test noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, default=ROOT / "out" / "mutants.jsonl", help="where results are written")
    parser.add_argument("--watch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        return watch_tests(Path.cwd(), options.watch)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        root = Path(folder) / "repository"
        shutil.copytree(
            ROOT, root, symlinks=True, ignore=shutil.ignore_patterns(".*", "out", "*.egg-info", "__pycache__")
        )
        os.environ |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        sys.dont_write_bytecode = True
        sys.path[:0] = [str(root)]
        os.chdir(root)
        known = _watched(root)
        results = _try_all(draw(find_changes(root), options.count, options.seed), root, known, options.rows)
    return _report(results)


def _watched(root: Path) -> dict[str, Any]:
    answer = root / "watched.json"
    done = subprocess.run([sys.executable, str(root / "tests" / "mutants.py"), "--watch", str(answer)], cwd=root)
    if done.returncode != 0:
        sys.exit("the tests must pass before anything is changed")
    known: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    print(f"{len(known['seconds'])} tests, {sum(known['seconds'].values()):,.0f} s in all")
    return known


def _try_all(changes: Sequence[Change], root: Path, known: dict[str, Any], rows: Path) -> list[dict[str, str]]:
    for library in ("hypothesis", "networkx", "numpy", "ortools.sat.python.cp_model", "pydantic", "scipy.optimize"):
        importlib.import_module(library)  # what every fork needs; nothing of moe_placer, which changes
    assert not any(name.split(".")[0] == "moe_placer" for name in sys.modules)
    rows.parent.mkdir(parents=True, exist_ok=True)
    results = []
    with rows.open("w", encoding="utf-8") as stream:
        for number, change in enumerate(changes, start=1):
            outcome, diff = attempt(change, root, known)
            row = {"outcome": outcome, "module": change.module, "operator": change.operator, "diff": diff}
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            results.append(row)
            print(
                f"{number}/{len(changes)} {outcome:<9} {change.module}:{change.first[0]} {change.operator}", flush=True
            )
    return results


def _report(results: Sequence[dict[str, str]]) -> int:
    known, count = equivalent(), Counter(row["outcome"] for row in results)
    alive = [row for row in results if row["outcome"] in {"survived", "untested"}]
    real = [row for row in alive if essence(row["module"], row["diff"]) not in known]
    for row in real:
        print(f"\n{row['outcome']}: {row['operator']}\n{essence(row['module'], row['diff'])}")
    share = len(real) / max(1, len(results) - (len(alive) - len(real)))
    print(
        f"\n{len(results)} changes: {count['killed']} noticed, {count['slow']} made a test go on for ever, "
        f"{len(alive)} not noticed, of which {len(alive) - len(real)} change nothing; {len(real)} real ({share:.1%})"
    )
    return int(bool(real))


if __name__ == "__main__":
    sys.exit(main())
