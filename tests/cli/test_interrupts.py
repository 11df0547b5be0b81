"""Ctrl-C and SIGTERM at any step: sent when a step is reached, not after some time."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from forked import Forks

from moe_placer.cli import interrupts

REPO = Path(__file__).parents[2]
TINY = REPO / "instances" / "tiny.yaml"
SIGNALLED = REPO / "tests" / "signalled.py"
DRAWN = {f"simplified_moe_dag.{suffix}" for suffix in ("dot", "json", "svg")}
EVERYTHING = {"placement.json", *DRAWN, *(f"detailed_expert_dag.{suffix}" for suffix in ("dot", "html", "json", "svg"))}
SOLVE = ["solve", str(TINY), "-o", "out", "--solver", "greedy", "--json", "--workers", "1"]
AT_ONCE = "moe-placer: interrupted; files that are there are whole\n"


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    files: set[str]


def looked_at(code: int, out: str, err: str, folder: Path) -> Ended:
    """Return how a run ended; nothing else than ``out`` may be left in its folder."""
    for word in ("Traceback", "Exception ignored", "defect"):
        assert word not in err
    left = {path.name for path in folder.iterdir()}
    assert left <= {"out"}
    return Ended(code, out, err, {path.name for path in (folder / "out").iterdir()} if left else set())


def run(folder: Path, steps: Sequence[str], *arguments: str) -> Ended:
    """Run a command from its very start to its very end, with signals at some steps."""
    command = [sys.executable, str(SIGNALLED), *steps, "--", *arguments]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    return looked_at(process.returncode, process.stdout, process.stderr, folder)


Scenario = tuple[Sequence[str], Sequence[str]]  # signals at steps, and the arguments of the command


def run_all(
    forks: Forks, folder: Path, scenarios: Mapping[str, Scenario], before: Path | None = None
) -> dict[str, Ended]:
    """Run commands in processes that have everything loaded, each in a folder of its own, with ``before`` as `out`."""
    ended = {}
    for name, (steps, arguments) in scenarios.items():
        here = folder / name
        here.mkdir()
        if before is not None:
            shutil.copytree(before, here / "out")
        done = forks.run(*arguments, folder=here, steps=steps)
        ended[name] = looked_at(done.returncode, done.stdout, done.stderr, here)
    return ended


@pytest.fixture(scope="module")
def solved(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Solve without a signal; return the result, and how many functions that entered."""
    folder = tmp_path_factory.mktemp("solved")
    ended = run_all(forks, folder, {"alone": ([f"calls:{folder / 'calls'}"], SOLVE)})["alone"]
    assert (ended.code, ended.err, ended.files) == (0, "", EVERYTHING)
    return folder / "alone" / "out", int((folder / "calls").read_text())


def check_solved(ended: Ended, number: int) -> None:
    """A solve that was told to stop has all that it says it has, or nothing, and says which."""
    if ended.code == 0:
        told = json.loads(ended.out)
        assert told["verified"] is True
        assert {Path(name).name for name in told["files"]} == ended.files
        assert ended.files in ({"placement.json"}, {"placement.json", *DRAWN}, EVERYTHING)
        assert (ended.files == EVERYTHING) != ("stopped drawing" in ended.err)
    else:
        assert ended.code == 128 + number
        assert ended.err.endswith(AT_ONCE)
        assert (ended.out, ended.files) == ("", set())


def check_calls(forks: Forks, folder: Path, steps: range) -> set[int]:
    """Send a signal at each of these steps of a solve; return the exit codes."""
    numbers = {step: (signal.SIGINT, signal.SIGTERM)[step % 2] for step in steps}
    runs = {str(step): ([f"{number.name}@call:{step}"], SOLVE) for step, number in numbers.items()}
    ended = run_all(forks, folder, runs)
    for step, number in numbers.items():
        check_solved(ended[str(step)], number)
    return {one.code for one in ended.values()}


def test_a_signal_at_any_step_leaves_all_or_nothing(forks: Forks, tmp_path: Path, solved: tuple[Path, int]) -> None:
    codes = check_calls(forks, tmp_path, range(1, solved[1], solved[1] // 12 | 1))
    assert codes & {130, 143}
    assert 0 in codes


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 9))
def test_a_signal_at_each_step_leaves_all_or_nothing(
    first: int, forks: Forks, tmp_path: Path, solved: tuple[Path, int]
) -> None:
    assert check_calls(forks, tmp_path, range(first, solved[1], 8)) <= {0, 130, 143}


@pytest.mark.parametrize("module", ["click", "moe_placer.cli.commands", "numpy", "moe_placer.solve.solve"])
def test_a_signal_during_start_up_ends_it_quietly(module: str, tmp_path: Path) -> None:
    number = signal.SIGTERM if module.startswith("moe_placer") else signal.SIGINT
    ended = run(tmp_path, [f"{number.name}@import:{module}"], *SOLVE)
    assert ended == (128 + number, "", AT_ONCE, set())


def test_a_signal_after_the_result_is_there_changes_nothing(forks: Forks, tmp_path: Path) -> None:
    """Nor while the interpreter shuts down: the default action of a signal then would hide the exit code."""
    at = ("enter:moe_placer.cli.solve_command:_tell", "exit")
    steps = [f"{name}@{step}" for step in at for name in ("SIGINT", "SIGTERM")]
    ended = run_all(forks, tmp_path, {"late": (steps, SOLVE)})["late"]
    assert (ended.code, ended.err, ended.files) == (0, "", EVERYTHING)
    assert json.loads(ended.out)["verified"] is True


AT_START, AT_END, DRAWING = (
    f"enter:moe_placer.{name}"
    for name in ("solve.solve:solve", "solve.solve:_verified", "dag.draw_detailed:draw_detailed")
)
INSPECT, FINISHING = ["inspect", "missing.yaml"], "enter:moe_placer.cli.interrupts:finish"
SCENARIOS: dict[str, Scenario] = {
    "drawing": ([f"SIGTERM@{DRAWING}"], SOLVE),
    "at once": ([f"SIGINT@{AT_START}", f"SIGTERM@{AT_START}"], SOLVE),
    "twice": (["impatient", f"SIGINT@{AT_START}", f"SIGTERM@{AT_END}"], SOLVE),
    "twice drawing": (["impatient", f"SIGINT@{DRAWING}", f"SIGTERM@{DRAWING}"], SOLVE),
    "thrice": (["impatient", f"SIGTERM@{AT_START}", f"SIGINT@{DRAWING}", f"SIGTERM@{DRAWING}"], SOLVE),
    "in each phase": (["impatient", f"SIGINT@{AT_START}", f"SIGINT@{DRAWING}"], SOLVE),
    "error": ([f"SIGINT@{FINISHING}", f"SIGTERM@{FINISHING}"], INSPECT),
    "late error": (["SIGINT@exit", "SIGTERM@exit"], INSPECT),
}


@pytest.fixture(scope="module")
def ended(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """How every scenario ended."""
    return run_all(forks, tmp_path_factory.mktemp("scenarios"), SCENARIOS)


def test_a_signal_while_drawing_keeps_the_placement_and_whole_drawings(ended: dict[str, Ended]) -> None:
    check_solved(ended["drawing"], signal.SIGTERM)
    assert ended["drawing"].files == {"placement.json", *DRAWN}
    told = "\nstopping: drawing no more, keeping the placement (again to give up)\n"
    assert ended["drawing"].err.startswith(told)


def test_two_signals_at_once_are_one_wish(ended: dict[str, Ended]) -> None:
    assert (ended["at once"].code, ended["at once"].files) == (0, EVERYTHING)
    assert ended["at once"].err == "\nstopping: keeping the best placement so far (again to give up)\n"


@pytest.mark.parametrize("name", ["twice", "twice drawing", "thrice"])
def test_a_second_wish_gives_up_and_leaves_the_folder_as_it_was(name: str, ended: dict[str, Ended]) -> None:
    assert ended[name].code == 143
    check_solved(ended[name], signal.SIGTERM)


def test_one_wish_in_each_phase_gives_nothing_up(ended: dict[str, Ended]) -> None:
    assert (ended["in each phase"].code, ended["in each phase"].files) == (0, {"placement.json", *DRAWN})


def test_an_error_is_told_or_else_the_interrupt(ended: dict[str, Ended]) -> None:
    assert (ended["error"].code, ended["error"].err) == (130, AT_ONCE)
    told = ended["late error"]
    assert (told.code, told.err.count("\n"), "no such file" in told.err) == (1, 1, True)


def test_commands_that_nobody_can_stop_halfway_end_at_once(
    forks: Forks, tmp_path: Path, solved: tuple[Path, int]
) -> None:
    verify, dag = ["verify", str(TINY), "out/placement.json"], ["dag", str(TINY), "out/placement.json", "-o", "out"]
    placed = tmp_path / "placed"
    placed.mkdir()
    shutil.copy(solved[0] / "placement.json", placed)
    verifying = "SIGTERM@enter:moe_placer.verifier.check:verify"
    (tmp_path / "runs").mkdir()
    runs: dict[str, Scenario] = {
        "verify": ([verifying], verify),
        "dag": ([verifying], dag),
        "drawing": ([f"SIGINT@{DRAWING}"], dag),
    }
    ended = run_all(forks, tmp_path / "runs", runs, placed)
    assert ended["verify"] == ended["dag"] == (143, "", AT_ONCE, {"placement.json"})
    assert (ended["drawing"].code, ended["drawing"].files) == (130, {"placement.json", *DRAWN})
    assert {Path(line).name for line in ended["drawing"].out.splitlines()} <= DRAWN


SPAM = """if True:
    import os, signal, sys, threading, time
    from moe_placer.cli import interrupts
    interrupts.install()
    interrupts.listen("stopping")
    ended = threading.Event()
    def spam():
        while not ended.is_set():
            for number in interrupts.SIGNALS:
                os.kill(os.getpid(), number)
    thread = threading.Thread(target=spam)
    interrupts._ONE_REQUEST_S = float("inf")
    thread.start()
    interrupts.finish()
    print("done", flush=True)
    time.sleep(0.2)
    ended.set()
    thread.join()
"""


def test_signals_that_come_while_handlers_change_make_no_noise() -> None:
    process = subprocess.run([sys.executable, "-c", SPAM], capture_output=True, text=True, timeout=240)
    assert (process.returncode, process.stdout) == (0, "done\n")
    assert process.stderr in {"", "\nstopping\n"}


def test_other_complaints_of_python_are_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    monkeypatch.setattr(interrupts._State, "installed", True)
    monkeypatch.setattr(interrupts._State, "finished", False)
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    try:
        interrupts.finish()
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in interrupts.SIGNALS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for error in (OSError("Signal 2 ignored due to race condition"), OSError("else"), ValueError("race condition")):
        sys.unraisablehook(SimpleNamespace(exc_value=error))  # type: ignore[arg-type]
    assert [str(unraisable.exc_value) for unraisable in told] == ["else", "race condition"]
