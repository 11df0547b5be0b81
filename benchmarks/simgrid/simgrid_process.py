"""Runs all-to-alls in SimGrid: a task (see `simulate`) on standard input becomes a file, named as argument, of µs.

A process of its own, since SimGrid has one engine a process, and speaks on standard error.
"""

from __future__ import annotations

import ctypes
import json
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["run"]

_SPEED = 1e9  # of hosts, which compute nothing
_WIDE = 1e18  # bytes/s of links that only delay
_US = 1e6
_WEIGHT_S = 1e-9  # latency per path that makes a flow weigh 1 / paths: SimGrid's shares are inverse to latency


def run(task: dict[str, Any]) -> list[list[float]]:
    """Run the cases of a task one after the other; return when their transfers ended, in µs from the case's begin."""
    simgrid = _load()
    # Its lazy updates were seen to let weighted flows exceed a link's capacity, by up to 11%; full ones do not.
    options = {"precision/timing": "1e-13", "network/optim": "Full", **task["config"]}
    engine = simgrid.Engine(
        ["crosscheck", *(f"--cfg={name}:{value}" for name, value in options.items()), "--log=root.thresh:warning"]
    )
    hosts = _build(simgrid, engine, task)
    ends: list[list[float]] = []

    def drive() -> None:
        for case in task["cases"]:
            begun, transfers = simgrid.Engine.clock, []
            for start_us, flows in case:
                simgrid.this_actor.sleep_until(begun + start_us / _US)
                transfers.append(
                    [
                        simgrid.Comm.sendto_async(hosts[source, path], hosts[target, path], size)
                        for source, target, path, size in flows
                    ]
                )
            for flows in transfers:
                simgrid.ActivitySet(flows).wait_all()
            ends.append([_US * (max(flow.finish_time for flow in flows) - begun) for flows in transfers])

    next(iter(hosts.values())).add_actor("driver", drive)
    engine.run()
    return ends


def _load() -> Any:
    """Import SimGrid, whose wheel puts its library beside the extension, where the system does not look for it."""
    spec = find_spec("simgrid")
    assert spec is not None
    assert spec.origin is not None
    for library in Path(spec.origin).parent.glob("libsimgrid.so.*"):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return import_module("simgrid")


def _build(simgrid: Any, engine: Any, task: dict[str, Any]) -> dict[tuple[int, int], Any]:
    """Build the platform; the n-th path between two nodes joins the n-th hosts of both."""
    zone = engine.netzone_root.add_netzone_full("fabric")
    links = []
    for number, bandwidth in enumerate(task["bytes_per_s"]):
        link = zone.add_link(f"link{number}", float(bandwidth))
        link.set_latency(task["latency_us"] / _US)
        links.append(link)
    hosts: dict[tuple[int, int], Any] = {}
    for source, target, paths in task["paths"]:
        for number, path in enumerate(paths):
            for node in (source, target):
                if (node, number) not in hosts:
                    hosts[node, number] = zone.add_host(f"node{node}-{number}", _SPEED)
            route = [links[k] for k in path]
            if task["fair_pairs"]:
                route.insert(0, zone.add_link(f"weight{source}-{target}-{number}", _WIDE))
                route[0].set_latency(_WEIGHT_S * len(paths))
            ends = hosts[source, number], hosts[target, number]
            zone.add_route(*ends, [simgrid.LinkInRoute(link) for link in route], False)
    zone.seal()
    return hosts


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(run(json.load(sys.stdin))), encoding="utf-8")
