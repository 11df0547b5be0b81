"""Rows of predicted and measured exchanges, set-up by set-up."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.netns.cases import METHODS, SetUp, cases
from benchmarks.netns.exchange import Exchange, exchange
from benchmarks.netns.testbed import PAYLOAD, Testbed, fat_tree, one_switch

__all__ = ["MBIT", "WAITED", "BusyError", "packet_rows", "single_flow"]

Row = dict[str, Any]

# Of a host's link: so slow that two busy cores are not what binds.
MBIT = {"tree": 10.0, "nics": 4.0}
_HASHED_FLOWS = 8  # from node to node: one per GPU, as an instance has it that says nothing
WAITED = 0.1  # share of an exchange in which its process may be without a core
_OFF = 0.02  # how far one flow alone may be from its link
_ALONE_S = 2.0  # long beside the burst that a filter lets through
_FILES = 8192  # both ends of all connections of the largest exchange, with room to spare
_SOURCE = "TCP over Linux network namespaces (veth, tbf) on the machine of environment.json"


class BusyError(RuntimeError):
    """Links were not as fast as they are shaped: the machine was too busy, or the links are too fast for it."""


def packet_rows(
    setup: SetUp, folder: Path, *, repeats: int, methods: Sequence[tuple[str, int]] = METHODS, mbit: float | None = None
) -> Iterator[Row]:
    """Yield a row for every layer of every placement: predicted seconds, and measured ones, the median of repeats.

    Parameters
    ----------
    setup : SetUp
    folder : Path
        Where the traces are.
    repeats : int
        Exchanges of each case; with hashed uplinks each draws anew which flow takes which spine.
    methods : sequence of (solver, seed)
    mbit : float, optional
        Of a host's link, in Mbit/s.

    Raises
    ------
    BusyError
        One flow alone, before or after the others, was not within 2% of its link, or exchanges waited for a core.
    """
    mbit = mbit or MBIT[setup.network]
    found = list(cases(setup, mbit, folder, methods))  # before there is any namespace
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, most) if most > 0 else _FILES, most))
    with _testbed(setup, mbit) as testbed:
        before = single_flow(testbed, mbit)
        rows = []
        for case in found:
            runs = [
                exchange(testbed, case.transfers, uplinks=setup.uplinks, flows_per_pair=_HASHED_FLOWS, seed=seed)
                for seed in range(repeats)
            ]
            _require_a_core(runs)
            seconds = [round(run.seconds, 4) for run in runs]
            measured = median(seconds)
            rows.append({
                "part": "packets", "setup": setup.name, "solver": case.solver, "seed": case.seed, "layer": case.layer,
                "unit": "s", "measured": measured, "predicted": round(case.network_s, 4),
                "ratio": round(case.network_s / measured, 4), "limit": None,
                "busiest_link_s": round(case.link_s, 4), "busiest_shared_link_s": round(case.node_s, 4),
                "runs": seconds, "bytes": sum(int(sent.sum()) for sent in case.transfers), "mbit": mbit,
                "retransmitted": sum(run.retransmitted for run in runs),
                "waited": round(max(run.waited for run in runs), 4), "source": _SOURCE, "sure": "measured here",
            })  # fmt: skip
        after = single_flow(testbed, mbit)
    for row in rows:
        yield row | {"single_flow": [round(before, 4), round(after, 4)]}


def _require_a_core(runs: Sequence[Exchange]) -> None:
    """Refuse runs of one case that say more of the machine than of the links."""
    waited = median(run.waited for run in runs)
    if waited > WAITED:
        raise BusyError(
            f"the process that sends and receives was without a core for {waited:.0%} of an exchange, expected at most "
            f"{WAITED:.0%}: leave this machine more time"
        )


def single_flow(testbed: Testbed, mbit: float) -> float:
    """Return how fast one flow alone is, over what its link is shaped to; the first of three that is within 2%.

    Raises
    ------
    BusyError
        None of them is within 2%.
    """
    hosts = len(testbed.listening)
    sent = np.zeros((hosts, hosts), dtype=np.int64)
    sent[0, hosts - 1] = round(_ALONE_S * mbit * 1e6 / 8 * PAYLOAD)
    shares = []
    for seed in range(3):
        shares.append(_ALONE_S / exchange(testbed, [sent], uplinks="hashed", flows_per_pair=1, seed=seed).seconds)
        if abs(shares[-1] - 1) <= _OFF:
            return shares[-1]
    found = ", ".join(f"{share:.3f}" for share in shares)
    raise BusyError(
        f"a flow alone reaches {found} of its link of {mbit:g} Mbit/s, not within {_OFF:.0%}: leave this machine more "
        "time, or give links less"
    )


def _testbed(setup: SetUp, mbit: float) -> AbstractContextManager[Testbed]:
    # Twice oversubscribed over 2 spines: an uplink is as fast as a host's link.
    return fat_tree(8, 4, 2, mbit, mbit) if setup.network == "tree" else one_switch(32, mbit)
