"""Real packets against the simulator's network: the committed rows, what is sent, and (``-m netns``) sending it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.fidelity.packets_page import RANK, RATIO, agreements, packets_section, packets_summary
from benchmarks.netns import measured, namespaces
from benchmarks.netns.cases import SETUPS, Case, SetUp, bytes_between, instance_of
from benchmarks.netns.exchange import MAX_BYTES, Exchange, exchange
from benchmarks.netns.measured import single_flow
from benchmarks.netns.namespaces import Namespaces, why_not
from benchmarks.netns.testbed import PAYLOAD, fat_tree, one_switch
from moe_placer.dag.flows import read_flows
from moe_placer.fabric import is_nic
from moe_placer.instance.sizes import dispatch_wire
from moe_placer.limits import Limits
from moe_placer.solve.solve import solve
from moe_placer.traffic.recording import Recording, Traffic

REPO = Path(__file__).parents[2]
REPORT = max((REPO / "reports").glob("*-fidelity"))


def rows_of_report() -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (REPORT / "results.jsonl").read_text().splitlines()]
    return [row for row in rows if row["part"] == "packets"]


def drawn(nodes: int) -> Traffic:
    topk = np.argsort(np.random.default_rng(1).random((200, 4, 64)), axis=2)[:, :, :6].astype(np.int64)
    load = np.stack([np.bincount(topk[:, row].ravel(), minlength=64) for row in range(4)])
    return Traffic((Recording("drawn", load.astype(np.float64), np.full(4, 200.0), topk),), np.ones((nodes, 1)))


def test_every_set_up_is_within_both_limits() -> None:
    rows = rows_of_report()
    found = {one.setup: one for one in agreements(rows)}
    assert list(found) == [setup.name for setup in SETUPS]
    assert {name: (one.ratio, one.rank) for name, one in found.items() if not one.holds} == {}
    for setup in SETUPS:
        some = [row for row in rows if row["setup"] == setup.name]
        assert len({(row["solver"], row["seed"]) for row in some}) >= 10
        assert len({row["layer"] for row in some}) == 4
    assert all(abs(share - 1) <= 0.02 for row in rows for share in row["single_flow"])


def test_one_pipe_per_node_does_not_predict_nics_of_gpus() -> None:
    rows = [row for row in rows_of_report() if row["setup"] == "NICs, destination-gpu"]
    (whole,), (pipe,) = agreements(rows), agreements(rows, "busiest_shared_link_s")
    assert pipe.ratio < 0.8 < whole.ratio
    assert pipe.rank < whole.rank - 0.2


@pytest.mark.parametrize("setup", SETUPS[:1] + SETUPS[4:6], ids=lambda setup: setup.name)
def test_bytes_of_hosts_are_those_of_links(setup: SetUp) -> None:
    instance = instance_of(setup, 4.0)
    traffic = drawn(instance.cluster.nodes)
    limits = Limits(bounds=False, workers=1)
    flows = read_flows(instance, solve(instance, traffic, solver="random", seed=1, limits=limits).placement, traffic)
    flow = flows.layer(0)
    sent = bytes_between(instance, flow)
    load = dict(zip(flows.links, (flow.load * dispatch_wire(instance).token_bytes).tolist(), strict=True))
    if setup.network == "tree":
        leaving = [load[f"node{host}->leaf{host // 4}"] for host in range(8)]
        arriving = [load[f"leaf{host // 4}->node{host}"] for host in range(8)]
    else:
        leaving = [load[f"node{host // 8}->node{host // 8}/nic{host % 8}"] for host in range(32)]
        arriving = [load[f"node{host // 8}/nic{host % 8}->node{host // 8}"] for host in range(32)]
    assert any(map(is_nic, load)) == (setup.network == "nics")
    np.testing.assert_allclose(sent.sum(axis=1), leaving, atol=len(sent))  # whole bytes
    np.testing.assert_allclose(sent.sum(axis=0), arriving, atol=len(sent))


def row(setup: str, measured: float, predicted: float, **more: Any) -> dict[str, Any]:
    return {
        "setup": setup, "solver": "eplb", "seed": 0, "layer": 1, "measured": measured, "predicted": predicted,
        "busiest_link_s": predicted, "busiest_shared_link_s": 1.0 / predicted, "runs": [measured], "mbit": 4.0,
        "single_flow": [1.0, 1.0], "source": "here", "sure": "drawn", **more,
    }  # fmt: skip


def test_agreement_by_hand() -> None:
    rows = [row("a", 1.0, 0.9), row("a", 2.0, 1.9), row("a", 3.0, 3.0), row("b", 1.0, 1.2), row("b", 2.0, 1.1)]
    a, b = agreements(rows)
    assert (a.ratio, a.rank, a.holds) == (0.95, pytest.approx(1.0), True)
    assert (b.rank, b.holds) == (pytest.approx(-1.0), False)
    text = "\n".join(packets_section(rows))
    assert "Beyond a limit: b." in text
    assert "Source: here (drawn)." in text
    assert "without a core" not in text
    assert "at most 3.0% of an exchange" in "\n".join(packets_section([{**one, "waited": 0.03} for one in rows]))
    assert packets_summary(rows) is not None
    assert "Every set-up" in "\n".join(packets_section(rows[:3]))
    assert packets_summary([]) is None
    assert "Not measured" in "\n".join(packets_section([]))
    assert RATIO == (0.90, 1.05)
    assert RANK == 0.9


def test_exchanges_without_a_core_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A starved process stretches all exchanges, but may let one flow alone pass."""
    sent = np.zeros((8, 8), dtype=np.int64)
    case = Case("eplb", 0, 1, (sent,), 1.0, 1.0, 1.0)
    monkeypatch.setattr(measured, "cases", lambda *_: [case])
    monkeypatch.setattr(measured, "_testbed", lambda *_: nullcontext())
    monkeypatch.setattr(measured, "single_flow", lambda *_: 1.0)
    for waits, refused in (([0.02, 0.05, 0.9], False), ([0.5, 0.05, 0.9], True)):
        runs = iter([Exchange(2.0, 0, 0.1, waited) for waited in waits])
        monkeypatch.setattr(measured, "exchange", lambda *_, runs=runs, **__: next(runs))
        made = measured.packet_rows(SETUPS[0], tmp_path, repeats=3)
        if refused:
            with pytest.raises(measured.BusyError, match="without a core for 50% of an exchange, expected at most 10%"):
                list(made)
        else:
            (found,) = made
            assert (found["waited"], found["measured"]) == (0.9, 2.0)


def test_it_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert (reason := why_not())
    assert "needs root" in reason
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (reason := why_not())
    assert "iproute2" in reason


@pytest.fixture(scope="module")
def namespaces_here() -> None:
    if reason := why_not():
        pytest.skip(f"no real packets: {reason}")


def what_is_there() -> tuple[list[Path], list[Path], Path]:
    """Devices of this namespace, namespaces with names, and this namespace."""
    named = Path("/run/netns")
    names = sorted(named.iterdir()) if named.exists() else []
    return sorted(Path("/sys/class/net").iterdir()), names, Path("/proc/thread-self/ns/net").readlink()


@pytest.mark.netns
@pytest.mark.usefixtures("namespaces_here")
@pytest.mark.parametrize("uplinks", ["spray", "hashed"])
def test_an_all_to_all_takes_what_its_links_need(uplinks: Any) -> None:
    before = what_is_there()
    sent = np.full((4, 4), 60_000) - np.diag([60_000] * 4)
    with fat_tree(4, 2, 2, 8.0, 4.0) as testbed:
        assert single_flow(testbed, 4.0) == pytest.approx(1.0, abs=0.02)  # an uplink is slower than a host's link
        took = exchange(testbed, [sent], uplinks=uplinks, flows_per_pair=4, seed=0)
    assert what_is_there() == before
    # Of a leaf's 2 hosts 4 pairs go up, over two links of 4 Mbit/s.
    needed = 4 * 60_000 * 8 / (2 * 4e6 * PAYLOAD)
    # Hashed, all 16 flows on one of the two spines would take twice as long.
    assert needed * 0.9 <= took.seconds <= needed * (1.25 if uplinks == "spray" else 2.2)
    assert took.retransmitted == 0
    assert 0 <= took.waited <= 1
    assert os.sched_getscheduler(0) == os.SCHED_OTHER  # only while it sends


@pytest.mark.netns
@pytest.mark.usefixtures("namespaces_here")
def test_the_hottest_nic_decides() -> None:
    sent = np.zeros((6, 6), dtype=np.int64)
    sent[:5, 5] = 40_000
    with one_switch(6, 4.0) as testbed:
        took = exchange(testbed, [sent], uplinks="spray", flows_per_pair=1, seed=0)
        spread = exchange(testbed, [sent.T], uplinks="spray", flows_per_pair=1, seed=0)
    needed = 5 * 40_000 * 8 / (4e6 * PAYLOAD)
    assert took.seconds == pytest.approx(needed, rel=0.15)
    assert spread.seconds == pytest.approx(needed, rel=0.15)


@pytest.mark.netns
@pytest.mark.usefixtures("namespaces_here")
def test_an_exchange_is_bounded() -> None:
    with one_switch(2, 1.0) as testbed, pytest.raises(ValueError, match="at most"):
        exchange(testbed, [np.array([[0, MAX_BYTES + 1], [0, 0]])], uplinks="spray", flows_per_pair=1, seed=0)


@pytest.mark.netns
@pytest.mark.usefixtures("namespaces_here")
def test_a_killed_program_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = what_is_there()
    killed = tmp_path / "tc"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(killed.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RuntimeError, match="tc in host0: exit code -9"), one_switch(2, 1.0):
        pass
    assert what_is_there() == before


@pytest.mark.netns
@pytest.mark.usefixtures("namespaces_here")
def test_no_end_of_the_process_leaves_anything() -> None:
    """A device whose other end is in a namespace of the process goes with it, whether it is killed or interrupted."""
    for number in (signal.SIGKILL, signal.SIGINT):
        with Namespaces() as ours:
            ours.add("outside")
            script = (
                "import sys, time; from benchmarks.netns.namespaces import Namespaces\n"
                "spaces = Namespaces(); spaces.add('a')\n"
                f"spaces.run('a', 'ip', ['link add in0 type veth peer name out0 netns {ours.path('outside')}'])\n"
                "print('up', flush=True); time.sleep(60)\n"
            )
            child = subprocess.Popen([sys.executable, "-c", script], cwd=REPO, stdout=subprocess.PIPE)
            try:
                assert child.stdout is not None
                assert child.stdout.readline() == b"up\n"
                assert "out0" in devices(ours)
                child.send_signal(number)
                child.wait()
            finally:
                child.kill()
                child.wait()
            for _ in range(600):  # the kernel removes a namespace a moment after its last file is closed
                if "out0" not in devices(ours):
                    break
                time.sleep(0.05)
            assert "out0" not in devices(ours)


def devices(spaces: Namespaces) -> str:
    with spaces.inside("outside"):
        return subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout


def test_the_probe_is_a_shaped_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no token bucket filter, the reason says so instead of a traceback."""

    def refuse(self: Namespaces, name: str, program: str, lines: list[str]) -> None:
        raise RuntimeError("tc in probe: exit code 2: Specified qdisc kind is unknown")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(namespaces.shutil, "which", lambda name: f"/sbin/{name}")
    monkeypatch.setattr(Namespaces, "add", lambda self, name: None)
    monkeypatch.setattr(Namespaces, "run", refuse)
    assert (reason := why_not())
    assert "qdisc kind is unknown" in reason
