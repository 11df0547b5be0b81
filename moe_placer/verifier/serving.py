"""What serving loses while weights travel: on every link they wait in line with the tokens.

While transfers use a link for a share ``u`` of its time, tokens that need it for ``t`` wait for that share, too: an
all-to-all takes as long as the link with the largest ``t * (1 + u)``. Combine crosses every link the other way round
than dispatch does, and weights one way only, so that each has a busiest link of its own. A node's tokens leave, and
arrive, evenly by the NICs of its GPUs, so that on the links at its ends the busiest NIC's share counts; a NIC that is a
link of its own has its own share. NVLink is not counted.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier import rules
from moe_placer.verifier.capacity import GB, sizes, wire_bytes
from moe_placer.verifier.layer_time import busiest_gpu, expert_token_us
from moe_placer.verifier.links import Network
from moe_placer.verifier.loads import read_network
from moe_placer.verifier.migration import held_by, routes_of_pairs
from moe_placer.verifier.placed_layers import read_layers
from moe_placer.verifier.transfer_file import TransferRecord, Transfers
from moe_placer.verifier.verification import Violation

__all__ = ["check_serving", "serving_loss_us", "step_gain_us"]

Floats = npt.NDArray[np.float64]

TOLERANCE = 1e-6  # relative, of a stated loss or gain
ROUNDING = 1e-12  # of a step: what two sums of the same terms may differ by


@dataclass(frozen=True, eq=False)
class _Serving:
    """The MoE layers of a step while nothing travels.

    Attributes
    ----------
    network : Network
    out_us, back_us : float array [MoE layers, links]
        Microseconds that each link needs for what a layer dispatches, and for what it combines.
    step_us : float
        Of all layers one after the other: busiest link, and busiest GPU.
    """

    network: Network
    out_us: Floats
    back_us: Floats
    step_us: float

    def slowed_us(self, share: Floats) -> float:
        """Return the microseconds of a step while weights use these shares of links [links]."""
        slowed = self.step_us
        for us in (self.out_us, self.back_us):
            slowed += float((us * (1 + share)).max(axis=1, initial=0.0).sum() - us.max(axis=1, initial=0.0).sum())
        return slowed


def serving_loss_us(
    instance: Instance,
    traffic: Traffic,
    current: Placement,
    placement: Placement,
    transfers: Sequence[TransferRecord],
    slow: Mapping[int, float] | None = None,
) -> float:
    """Return the microseconds that serving stands still for, in effect, while transfers run.

    Between two moments at which a transfer starts or ends, a step of ``T`` takes ``T + D``: of the time between them,
    ``D / (T + D)`` is lost. What serves is the current placement, or where GPUs that it uses are out of service, the
    new one. Steps are the MoE layers alone, so that attention makes the loss smaller.

    Parameters
    ----------
    instance : Instance
    traffic : Traffic
        Of the steps.
    current, placement : Placement
        Before and after.
    transfers : sequence of TransferRecord
        With their times.
    slow : mapping, optional
        GPU to how many times as long it takes to compute.
    """
    serving = _read_serving(instance, traffic, current if _may_run(instance, current) else placement, slow)
    if not serving.step_us > 0:
        return 0.0
    lost = 0.0
    for span, share in _spans(instance, serving.network, transfers):
        lost += span * (1 - serving.step_us / serving.slowed_us(share))
    return lost


def step_gain_us(
    instance: Instance,
    traffic: Traffic,
    current: Placement,
    placement: Placement,
    slow: Mapping[int, float] | None = None,
) -> float | None:
    """Return the microseconds that the MoE layers of a step take less after than before, at links' real bandwidths.

    None where GPUs that the current placement uses are out of service: what ran on is neither of the two.

    Parameters
    ----------
    instance : Instance
    traffic : Traffic
        Of the steps.
    current, placement : Placement
        Before and after.
    slow : mapping, optional
        GPU to how many times as long it takes to compute.
    """
    if not _may_run(instance, current):
        return None
    before, after = (_read_serving(instance, traffic, one, slow).step_us for one in (current, placement))
    gain = before - after
    return 0.0 if abs(gain) <= ROUNDING * before else gain


def check_serving(
    instance: Instance, traffic: Traffic, current: Placement, placement: Placement, file: Transfers
) -> Iterator[Violation]:
    """Hold what a file says of serving, of a step's gain, and of when a migration is won back, to what follows from it.

    Parameters
    ----------
    instance : Instance
    traffic : Traffic
        Of the steps.
    current, placement : Placement
        Before and after.
    file : Transfers
        Replayed without a violation.
    """
    lost, slow = file.serving_loss_us, {int(gpu): factor for gpu, factor in file.slow_gpus.items()}
    if lost is not None:
        loss = serving_loss_us(instance, traffic, current, placement, file.transfers, slow)
        if not math.isclose(lost, loss, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            message = f"states that serving loses {lost:.9g} us, the transfers take {loss:.9g} from it"
            yield Violation("migration", message)
    if file.gain_us is not None:
        gain = step_gain_us(instance, traffic, current, placement, slow)
        if gain is not None and not math.isclose(file.gain_us, gain, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield Violation("migration", f"states that a step gains {file.gain_us:.9g} us, it gains {gain:.9g}")
    paused = file.us if lost is None else lost  # older versions know no engine that goes on
    for stated, us in ((file.break_even_steps, paused), (file.break_even_paused_steps, file.us)):
        if stated is None:
            continue
        if file.gain_us is None or not file.gain_us > 0:
            yield Violation("migration", f"states that {stated:.9g} steps win it back, and no gain")
            continue
        steps = float(np.ceil(us / file.gain_us))  # infinite for a gain next to nothing
        if not math.isclose(stated, steps, rel_tol=TOLERANCE, abs_tol=0.5):
            yield Violation("migration", f"states that {stated:.9g} steps win it back, its figures give {steps:,.0f}")


def _may_run(instance: Instance, current: Placement) -> bool:
    """Whether no GPU that a placement uses is out of service."""
    used = {gpu for _, _, gpu in held_by(instance, current)}
    return not set(instance.placement.failed_gpus) & used and max(used, default=0) < instance.gpus


def _read_serving(
    instance: Instance, traffic: Traffic, placement: Placement, slow: Mapping[int, float] | None
) -> _Serving:
    network = read_network(instance)
    replicas = rules.read_replicas(instance, placement)
    layers = read_layers(instance, network, traffic, replicas, set(instance.moe_layers))
    of_layer: list[list[rules.Replica]] = [[] for _ in layers]
    for replica in replicas:
        of_layer[replica.row].append(replica)
    tokens = sum(busiest_gpu(layer, own, slow) for layer, own in zip(layers, of_layer, strict=True))
    model, unit = instance.model, instance.placement
    back = wire_bytes(model, unit.combine_dtype) / wire_bytes(model, unit.dispatch_dtype)
    out_us = np.stack([layer.load for layer in layers]) * network.us_per_token
    back_us = out_us[:, _twins(network.links)] * back  # twins have one bandwidth
    links_us = out_us.max(axis=1, initial=0.0).sum() + back_us.max(axis=1, initial=0.0).sum()
    return _Serving(network, out_us, back_us, float(links_us) + tokens * expert_token_us(instance))


def _twins(links: Sequence[str]) -> list[int]:
    """Return the link in the other direction of each link."""
    place = {name: link for link, name in enumerate(links)}
    return [place["->".join(reversed(name.split("->")))] for name in links]


def _spans(instance: Instance, network: Network, transfers: Sequence[TransferRecord]) -> Iterator[tuple[float, Floats]]:
    """Yield every span in which the same transfers run between nodes: microseconds, and their shares of links."""
    per_node, fabric = instance.cluster.gpus_per_node, instance.cluster.fabric
    far = [one for one in transfers if one.source // per_node != one.target // per_node]
    if not far:
        return
    alone_us = 1e6 * sizes(instance)[1] * per_node / (fabric.node_gb_per_s * GB * fabric.link_utilization)
    wires = _Wires(network, instance)
    start, end = np.array([one.start_us for one in far]), np.array([one.end_us for one in far])
    starts, ends = iter(np.argsort(start, kind="stable").tolist()), iter(np.argsort(end, kind="stable").tolist())
    begins, stops = next(starts), next(ends)
    running: set[int] = set()
    for begin, until in pairwise(np.unique(np.concatenate([start, end])).tolist()):
        while begins is not None and start[begins] <= begin:
            running.add(begins)
            begins = next(starts, None)
        while stops is not None and end[stops] <= begin:
            running.discard(stops)
            stops = next(ends, None)
        if running:
            speeds = [(far[i], alone_us / (far[i].end_us - far[i].start_us)) for i in sorted(running)]
            yield until - begin, wires.shares(speeds)


class _Wires:
    """Which share of its time each link is used by transfers."""

    def __init__(self, network: Network, instance: Instance) -> None:
        cluster = instance.cluster
        self._per_node, self._bandwidth, self._routes = (
            cluster.gpus_per_node,
            network.bandwidth,
            routes_of_pairs(network),
        )
        self._own = cluster.fabric.node_gb_per_s / cluster.gpus_per_node
        nics = cluster.gpus_per_node if cluster.nics is None else cluster.nics.per_node
        self._gpus_of_nic = max(1, cluster.gpus_per_node // nics)
        nics_of_gpu = max(1, nics // cluster.gpus_per_node)
        self._at: dict[tuple[int, bool], list[int]] = defaultdict(list)
        self._nics: dict[tuple[int, int, bool], list[int]] = defaultdict(list)
        for link, name in enumerate(network.links):
            begins, _, ends = name.partition("->")
            for end, other, sends in ((begins, ends, True), (ends, begins, False)):
                if re.fullmatch(r"node\d+", end):
                    node, nic = int(end[4:]), other.partition("/nic")[2]
                    at = self._nics[node, int(nic) // nics_of_gpu, sends] if nic else self._at[node, sends]
                    at.append(link)

    def shares(self, running: Sequence[tuple[TransferRecord, float]]) -> Floats:
        """Return the shares of links [links], given transfers and their parts of a GPU's NICs' full speed."""
        share = np.zeros(len(self._bandwidth))
        nics: dict[tuple[int, int, bool], float] = defaultdict(float)
        for one, speed in running:
            pair = (one.source // self._per_node, one.target // self._per_node)
            for link, part in self._routes[pair].items():
                share[link] += part * self._own / self._bandwidth[link] * speed
            for gpu, sends in ((one.source, True), (one.target, False)):
                node, place = divmod(gpu, self._per_node)
                nics[node, place // self._gpus_of_nic, sends] += speed / self._gpus_of_nic
        for (node, nic, sends), used in nics.items():
            links = self._at[node, sends] + self._nics[node, nic, sends]
            share[links] = np.maximum(share[links], used)
        return share
