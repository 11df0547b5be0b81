"""What a watcher tells Prometheus: a file for the textfile collector of its node exporter, from the journal alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["metrics_text"]

_VERDICTS = ("plan", "kept", "refused", "superseded")


def metrics_text(entries: Sequence[dict[str, Any]], now: float) -> str:
    """Return the text of the file: the watcher's series.

    Parameters
    ----------
    entries : sequence of dict
        Lines of the journal.
    now : float
        Seconds since 1970.
    """
    lines: list[str] = []
    for name, kind, words, series in _families(entries, now):
        lines += [f"# HELP moe_placer_watch_{name} {words}", f"# TYPE moe_placer_watch_{name} {kind}"]
        lines += [f"moe_placer_watch_{name}{label} {value:.17g}" for label, value in series]
    return "\n".join(lines) + "\n"


def _families(entries: Sequence[dict[str, Any]], now: float) -> Iterator[tuple[str, str, str, list[tuple[str, float]]]]:
    """Yield name, type, help and values."""
    plans = [entry for entry in entries if entry["event"] == "plan"]
    measured = [entry for entry in entries if "total_z" in entry]
    if plans:
        yield "plan_version", "gauge", "Number of the plan in force.", [("", plans[-1]["version"])]
        yield "plan_age_seconds", "gauge", "Since the plan is in force.", [("", now - plans[-1]["at"])]
    moves = sum(entry.get("moves", 0) for entry in plans)
    yield "moves_total", "counter", "Replicas loaded for all plans.", [("", float(moves))]
    counts = [(f'{{verdict="{v}"}}', float(sum(e["event"] == v for e in entries))) for v in _VERDICTS]
    yield "looks_total", "counter", "Recordings by what became of them.", counts
    if entries:
        last = [(f'{{verdict="{v}"}}', float(entries[-1]["event"] == v)) for v in _VERDICTS]
        yield "last_verdict", "gauge", "1 for what became of the last recording.", last
        yield "last_look_timestamp_seconds", "gauge", "Of the last recording.", [("", entries[-1]["at"])]
    if measured:
        last_one = measured[-1]
        at = 1 if last_one["event"] == "plan" else 0  # what is in force now
        z, gpu = float(last_one["total_z"][at]), float(last_one["busiest_gpu"][at])
        yield "busiest_links_cost", "gauge", "Sum over layers, tokens per step at node-link speed.", [("", z)]
        yield "busiest_gpus_tokens", "gauge", "Sum over layers, per step.", [("", gpu)]
        if last_one.get("nic_z"):  # journals of older versions have none
            nics = float(last_one["nic_z"][at])
            yield "busiest_nics_cost", "gauge", "Sum over layers, tokens per step at node-link speed.", [("", nics)]
        if last_one["bound"] is not None and z > 0:
            gap = 1 - last_one["bound"] / z
            yield "gap_ratio", "gauge", "Share of the cost above what the budget can reach at best.", [("", gap)]
        drift = "Share of the load that is at other experts than the plan was made for."
        yield "drift_ratio", "gauge", drift, [("", float(last_one["drift"]))]
